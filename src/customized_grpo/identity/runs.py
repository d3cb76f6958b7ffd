"""A run's name: its own, and the same over all its restarts, wherever its folder is moved."""

import secrets
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
