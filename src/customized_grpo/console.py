"""Where commands print."""

import os
import sys
from collections.abc import Callable
from typing import Final

from rich.console import Console

RANK: Final = int(os.environ.get("RANK", "0"))
"""Of this process, as torchrun and accelerate set it."""

out: Final = Console(quiet=RANK != 0)
err: Final = Console(stderr=True, quiet=RANK != 0)

OnProgress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is, and of how much."""


def say(text: str, *, style: str | None = None, on: Console = out) -> None:
    """A line as it is: no markup, and never wrapped, so that a path can be taken out of it."""
    on.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def hush_libraries() -> None:
    """No loading bars of diffusers and transformers where nobody watches, and on ranks other than the main one.

    Downloads keep theirs, and so does loading in a terminal: a large model takes minutes.
    """
    if RANK == 0 and sys.stderr.isatty():
        return
    from diffusers.utils.logging import disable_progress_bar as hush_diffusers
    from transformers.utils.logging import disable_progress_bar as hush_transformers

    hush_diffusers()
    hush_transformers()
