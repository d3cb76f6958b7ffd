"""A run's name: its own, and the same over all its restarts, wherever its folder is moved."""

import os
import secrets
import shlex
from pathlib import Path
from typing import Final

from customized_grpo.atomic import replacing

FILE: Final = ".run"
"""Its file in the run's folder."""


def name_of(folder: Path) -> str | None:
    """The name of the run in a folder; None where none has begun."""
    try:
        return (folder / FILE).read_text(encoding="ascii").strip() or None
    except (FileNotFoundError, NotADirectoryError):
        return None


def named(folder: Path) -> str:
    """The name of the run in a folder, which gets one with its first start."""
    if (name := name_of(folder)) is not None:
        return name
    name = secrets.token_hex(8)
    with replacing(folder / FILE) as aside:
        aside.write_text(name + "\n", encoding="ascii")
    return name


def goes_on(folder: Path) -> str:
    """The command that goes on with the run in a folder, by the recipe that it wrote there; of several processes the
    end of it, as only their launcher's own options say the rest.
    """
    alone = int(os.environ.get("WORLD_SIZE") or 1) == 1
    program = "customized-grpo" if alone else "the same launcher with -m customized_grpo"
    return f"{program} train {shlex.quote(str(folder / 'config.yaml'))} run.resume=latest"
