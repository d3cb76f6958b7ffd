"""Commands that look and say: they end within seconds, and nothing that they import becomes garbage."""

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def brief() -> Iterator[None]:
    """Leave Python's garbage collector off inside, and spare the process its last round.

    Both look through a million objects of torch, a fifth of what such a command takes.
    """
    atexit.register(gc.freeze)
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
