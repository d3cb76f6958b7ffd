"""Ctrl-C and termination signals: finish the step, save, leave; a second Ctrl-C leaves at once."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from customized_grpo.identity.runs import goes_on


class StopRequest:
    """Set by the first SIGINT, SIGTERM or SIGUSR1; the trainer looks at it between steps."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen to the signals inside this block; the handlers before it come back afterwards."""
        watched = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        previous = {number: signal.signal(number, self._note) for number in watched}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def obeyed(self, done: int, folder: Path) -> str:
        """What is said once the run has stopped."""
        return f"stopped after step {done} and saved; go on by: {goes_on(folder)}"

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)
