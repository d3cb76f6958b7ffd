"""The recipe of a folder that was published on the hub, which says the policy to ``generate``."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from customized_grpo.policies.hub_files import hub_problem
from customized_grpo.recipe.loading import RecipeError
from customized_grpo.recipe.yaml_source import read_yaml

_CONFIG = "config.yaml"


def published_config(lora: str) -> Path:
    """The ``config.yaml`` of a LoRA's repository, in the hub's cache.

    It is others' text: one that names code (``type: module:attr``) is refused, as reading it would import that.

    Args:
        lora: organisation/name, or organisation/name/file.safetensors.

    Raises:
        RecipeError: there is none, the hub does not give it, or it is no recipe that may be read.
    """
    from huggingface_hub import errors, hf_hub_download

    repo = "/".join(lora.split("/")[:2])
    instead = "say which policy it is for with --config RECIPE"
    try:
        file = Path(hf_hub_download(repo, _CONFIG))
    except (OSError, errors.HFValidationError) as error:
        raise RecipeError(
            f"{lora}: no such file or folder, and no {_CONFIG} of it on the hub ({hub_problem(error, repo)}); give "
            f"a run or an adapter that is there, or {instead}"
        ) from error
    data, _ = read_yaml(file)
    if not {"run", "policy"} <= data.keys():
        raise RecipeError(f"{lora}: its {_CONFIG} is no recipe of customized-grpo; {instead}")
    if named := sorted({one for one in _types(data) if ":" in one}):
        raise RecipeError(f"{lora}: its {_CONFIG} names code ({', '.join(named)}), which is not imported; {instead}")
    return file


def _types(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, one in value.items():
            if key == "type" and isinstance(one, str):
                yield one
            yield from _types(one)
    elif isinstance(value, list):
        for one in value:
            yield from _types(one)
