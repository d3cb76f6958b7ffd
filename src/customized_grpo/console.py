"""Console output of commands."""

import os
import sys
from collections.abc import Callable
from typing import Final

from rich.console import Console

RANK: Final = int(os.environ.get("RANK", "0"))
"""Rank of this process, as set by torchrun and accelerate."""

out: Final = Console(quiet=RANK != 0)
err: Final = Console(stderr=True, quiet=RANK != 0)

OnProgress = Callable[[str, int, int], None]
"""Callback with (task, number done, total)."""


def say(text: str, *, style: str | None = None, on: Console = out) -> None:
    """Print a line verbatim: without markup and never wrapped, so that paths can be copied."""
    on.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def hush_libraries() -> None:
    """Hide loading bars of diffusers and transformers outside a terminal, and on all ranks but the main one.

    Downloads keep theirs, and so does loading in a terminal: a large model takes minutes.
    """
    if RANK == 0 and sys.stderr.isatty():
        return
    from diffusers.utils.logging import disable_progress_bar as hush_diffusers
    from transformers.utils.logging import disable_progress_bar as hush_transformers

    hush_diffusers()
    hush_transformers()
