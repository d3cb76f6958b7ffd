"""What is known of an image file after one look: its size, a hash of its pixels, or what is wrong with it.

Each distinct file is looked at once, however many rows use it, on as many processes as are asked for.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import final

from PIL import Image

from customized_grpo.data.images import ImageError, image_size, load_image, load_mask, save_image


@final
@dataclass(frozen=True, slots=True)
class Look:
    """One file to look at."""

    path: Path
    mask: bool = False
    decode: bool = True
    """Read every pixel; otherwise the head alone, which doesn't find a truncated file."""
    copy: Path | None = None
    """Write it there too, as the loader gives it; needs ``decode``."""


@final
@dataclass(frozen=True, slots=True)
class Seen:
    """What was found. ``problem`` is empty where nothing is wrong; then ``size`` is (width, height)."""

    path: Path
    size: tuple[int, int] = (0, 0)
    digest: str = ""
    """Of the decoded pixels, so it is equal for equal pictures in different files; empty if they weren't decoded."""
    coverage: float = 0.0
    """Of a mask: the share of pixels above one half."""
    problem: str = ""
    reason: str = ""


def look(wanted: Look) -> Seen:
    """Look at one file; whatever is wrong with it is part of the answer."""
    try:
        if not wanted.decode:
            return Seen(wanted.path, image_size(wanted.path))
        image = load_mask(wanted.path) if wanted.mask else load_image(wanted.path)
    except ImageError as error:
        return Seen(wanted.path, problem=error.problem, reason=error.reason)
    if wanted.copy is not None:
        save_image(image, wanted.copy)
    digest = blake2b(f"{image.mode} {image.size}".encode() + image.tobytes(), digest_size=16).hexdigest()
    return Seen(wanted.path, image.size, digest, _coverage(image) if wanted.mask else 0.0)


def _coverage(mask: Image.Image) -> float:
    return sum(mask.histogram()[128:]) / (mask.width * mask.height)


LookAll = Callable[[Iterable[Look]], Iterator[Seen]]


@contextmanager
def lookers(workers: int) -> Iterator[LookAll]:
    """A function that looks at many files and gives the answers in the same order.

    Args:
        workers: processes; 1: this one alone.
    """
    if workers == 1:
        yield lambda wanted: map(look, wanted)
        return
    # spawn: a fork of a process that holds threads of torch may hang
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield lambda wanted: _batched(pool, wanted, workers)


def _batched(pool: Executor, wanted: Iterable[Look], workers: int) -> Iterator[Seen]:
    """``pool.map`` in slices: it would take in an endless iterable whole."""
    stream = iter(wanted)
    while part := list(islice(stream, 64 * workers)):
        yield from pool.map(look, part, chunksize=8)


def default_workers() -> int:
    """Processors that this process may use, 16 at most."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(usable, 16))
