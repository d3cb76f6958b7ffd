"""Timing of a step: seconds per phase, the source of every ``time/*`` metric."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

import torch


@final
class Clock:
    """Adds up wall seconds by phase.

    Phases don't nest. The GPU is synchronised, so that work counts in the phase that launched it, but only the
    caller's stream: rewards in another one go on.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds: dict[str, float] = defaultdict(float)
        self._start = time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the seconds of this block to ``name``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            if self._device.type == "cuda":
                torch.cuda.current_stream(self._device).synchronize()
            self._seconds[name] += time.perf_counter() - start

    def drain(self) -> dict[str, float]:
        """``time/<phase>`` seconds since the last drain, ``time/step``, and the remainder as ``time/other``."""
        total = time.perf_counter() - self._start
        metrics = {f"time/{name}": seconds for name, seconds in self._seconds.items()}
        metrics["time/other"] = max(0.0, total - sum(self._seconds.values()))
        metrics["time/step"] = total
        self._seconds.clear()
        self._start = time.perf_counter()
        return metrics
