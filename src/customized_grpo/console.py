"""Console output of commands."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Final, Self, final

from rich.console import Console

RANK: Final = int(os.environ.get("RANK") or 0)
"""Rank of this process, as set by torchrun and accelerate."""

out: Final = Console(quiet=RANK != 0, emoji=False)
err: Final = Console(stderr=True, quiet=RANK != 0, emoji=False)

OnProgress = Callable[[str, int, int], None]
"""Callback with (task, number done, total)."""


def say(text: str, *, style: str | None = None, on: Console = out) -> None:
    """Print a line verbatim: without markup and never wrapped, so that paths can be copied."""
    on.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """A length of time for people, in its largest unit: "9.2 days", "3.5 hours", "4.2 minutes", "31.8 s"."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.{1 if seconds < 100 * size else 0}f} {unit}"
    return f"{seconds:.3g} s"


def remaining(seconds: float) -> str:
    """A time that is left, for people: "40 seconds", "6 minutes", "3 h 20 min", "2 days 3 h"."""
    if seconds < 90:
        return f"{max(1, round(seconds))} second{'s' if round(seconds) > 1 else ''}"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} minutes"
    hours = round(minutes / 60)
    if hours < 48:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{hours // 24} days {hours % 24} h"


@final
class Heartbeat:
    """Prints what is being done wherever a minute passed without a line, so that a log shows that its process lives.

    Silent in a terminal, which has something that moves, and on all ranks but the main one.
    """

    def __init__(
        self,
        doing: Callable[[], str],
        say: Callable[[str], None],
        *,
        every_s: float = 60.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._doing, self._say, self._every, self._now = doing, say, every_s, now
        self._last = now()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def heard(self) -> None:
        """Something was printed just now."""
        self._last = self._now()

    @property
    def is_due(self) -> bool:
        """Whether nothing was printed for too long."""
        return self._now() - self._last >= self._every

    def beat(self) -> None:
        """Print, if a line is due."""
        if self.is_due:
            self.heard()
            self._say(self._doing())

    def __enter__(self) -> Self:
        if RANK == 0 and not err.is_terminal:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(max(0.01, self._last + self._every - self._now())):
            self.beat()


@contextmanager
def alive(doing: str) -> Iterator[None]:
    """A line every minute on what is being done, without a terminal; also a decorator."""
    began = time.monotonic()
    with Heartbeat(
        lambda: f"{doing}, for {remaining(time.monotonic() - began)} so far", lambda text: say(text, on=err)
    ):
        yield


@contextmanager
def bars(prefix: str = "", *, every_s: float = 60.0) -> Iterator[OnProgress]:
    """One progress bar per task on a terminal; elsewhere a line on the newest task every minute."""
    if not err.is_terminal:
        counted = Counted(prefix)
        with Heartbeat(counted.line, lambda text: say(text, on=err), every_s=every_s):
            yield counted.tell
        return
    from rich.progress import Progress, TaskID

    tasks: dict[str, TaskID] = {}
    with Progress(console=err, transient=True) as shown:

        def tell(task: str, done: int, total: int) -> None:
            if task not in tasks:
                tasks[task] = shown.add_task(prefix + task)
            shown.update(tasks[task], completed=done, total=total)

        yield tell


@final
class Counted:
    """The newest of several counted tasks in words, with the time that it has left by its own pace."""

    def __init__(self, prefix: str = "", *, now: Callable[[], float] = time.monotonic) -> None:
        self._prefix, self._now = prefix, now
        self._task, self._done, self._total = "", 0, 0
        self._began, self._first = now(), 0

    def tell(self, task: str, done: int, total: int) -> None:
        """Progress of a task; an ``OnProgress``."""
        if task != self._task:
            self._task, self._began, self._first = task, self._now(), done
        self._done, self._total = done, total

    def line(self) -> str:
        """What is done now, how far it is, and what is left."""
        passed, new = self._now() - self._began, self._done - self._first
        if not self._task:
            return f"{self._prefix}loading, for {remaining(passed)} so far"
        left = f", about {remaining(passed / new * (self._total - self._done))} left" if new else ""
        return f"{self._prefix}{self._task}: {self._done} of {self._total}{left}"


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
