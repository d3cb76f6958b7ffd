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
    """The command that goes on with the run in a folder, by the recipe that it wrote there; of several processes by
    torchrun, whose options for several machines only its caller knows.
    """
    world, machines = (int(os.environ.get(name) or 1) for name in ("WORLD_SIZE", "GROUP_WORLD_SIZE"))
    program = "customized-grpo"
    if world > 1 and machines == 1:
        program = f"torchrun --standalone --nproc_per_node {world} -m customized_grpo"
    elif world > 1:
        program = "your launcher with -m customized_grpo"
    return f"{program} train {shlex.quote(str(folder / 'config.yaml'))} run.resume=latest"
