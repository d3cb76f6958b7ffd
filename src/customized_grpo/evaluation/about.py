"""Circumstances of a run, noted in its folder at each start: when, by which command, on what, with which versions."""

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from customized_grpo.atomic import replacing
from customized_grpo.recipe.problems import repeated

FILE: Final = "about.json"
_PACKAGES: Final = ("customized-grpo", "torch", "diffusers", "transformers", "peft", "accelerate")


def note(folder: Path, *, device: str, processes: int, step: int = 0) -> None:
    """Add this start to ``about.json``.

    Args:
        folder: the run's.
        device: name of what it runs on.
        processes: P.
        step: that the run goes on from.
    """
    start = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "step": step,
        "command": command(sys.argv),
        "device": device,
        "processes": processes,
        "versions": dict(_versions()),
    }
    with replacing(folder / FILE) as aside:
        aside.write_text(json.dumps([*starts(folder), start], indent=1) + "\n", encoding="utf-8")


def starts(folder: Path) -> list[Mapping[str, Any]]:
    """Starts of a run, oldest first; none where nothing readable was noted."""
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def command(argv: Sequence[str]) -> str:
    """The command line of a process as one would type it, without values that may be secrets."""
    program, *given = argv
    place = Path(program)
    name = "customized-grpo" if place.name == "__main__.py" and "customized_grpo" in place.parts else place.name
    return shlex.join([name, *map(repeated, given)])


def _versions() -> list[tuple[str, str]]:
    found = [("python", ".".join(map(str, sys.version_info[:3])))]
    for name in _PACKAGES:
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:  # run from its sources
            continue
    return found
