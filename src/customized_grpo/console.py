"""Console output of commands."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console

RANK: Final = int(os.environ.get("RANK") or 0)
"""Rank of this process, as set by torchrun and accelerate."""

out: Final = Console(quiet=RANK != 0)
err: Final = Console(stderr=True, quiet=RANK != 0)

OnProgress = Callable[[str, int, int], None]
"""Callback with (task, number done, total)."""


def say(text: str, *, style: str | None = None, on: Console = out) -> None:
    """Print a line verbatim: without markup and never wrapped, so that paths can be copied."""
    on.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def bars(prefix: str = "") -> Iterator[OnProgress]:
    """One progress bar per task on a terminal; silent elsewhere."""
    from rich.progress import Progress, TaskID

    tasks: dict[str, TaskID] = {}
    with Progress(console=err, disable=not err.is_terminal, transient=True) as shown:

        def tell(task: str, done: int, total: int) -> None:
            if task not in tasks:
                tasks[task] = shown.add_task(prefix + task)
            shown.update(tasks[task], completed=done, total=total)

        yield tell


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
