"""A recipe without what is private: paths of the machine, addresses of its network, and trackers.

What can't be told from public text stays, so ``leaks`` looks at the finished folder again.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from customized_grpo.identity.private import is_path, public
from customized_grpo.policies.adapters.tensor_files import read_metadata

RUN_DIR: Final = "runs/published"
_TEXTS: Final = frozenset({".md", ".yaml", ".json", ".txt"})


def public_recipe(config: Mapping[str, Any], base: str, *, joined: bool) -> dict[str, Any]:
    """A resolved recipe as others may read it; it draws the same images from the published folder.

    Args:
        config: of the run.
        base: hub id in place of ``policy.model``.
        joined: whether ``policy.base_lora`` is in the published file.
    """
    found: dict[str, Any] = public(config)
    found["run"] = {**found["run"], "dir": RUN_DIR, "resume": None, "cache": None, "trackers": []}
    policy = {**found["policy"], "model": base}
    for section in ("lora", "full"):
        if policy.get(section):
            policy[section] = {**policy[section], "path": None}
    if isinstance(policy.get("transformer"), str) and is_path(config["policy"]["transformer"]):
        policy["transformer"] = None
    if joined:
        policy["base_lora"] = None
    return {**found, "policy": policy}


def leaks(folder: Path, secrets: Iterable[str]) -> list[str]:
    """Files of a folder, of text and headers of weights, that hold one of ``secrets``."""
    needles = [one for one in dict.fromkeys(secrets) if len(one) > 2]
    texts: dict[Path, str] = {}
    for file in sorted(one for one in folder.rglob("*") if one.is_file()):
        if file.suffix in _TEXTS:
            texts[file] = file.read_text(encoding="utf-8")
        elif file.suffix == ".safetensors":
            texts[file] = "\n".join(read_metadata(file).values())
    return [file.relative_to(folder).as_posix() for file, text in texts.items() if any(one in text for one in needles)]
