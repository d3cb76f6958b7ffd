"""Inspection of image files: size, a hash of the pixels, or the problem.

Each distinct file is inspected once, however many rows use it, by any number of processes.
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
from typing import Literal, final

from PIL import Image

from customized_grpo.data.images import ImageError, Problem, has_frames, image_size, load_image, load_mask, save_image


@final
@dataclass(frozen=True, slots=True)
class Look:
    """Request to inspect one file."""

    path: Path
    mask: bool = False
    decode: bool = True
    """Read every pixel; otherwise only the header, which doesn't reveal a truncated file."""
    copy: Path | None = None
    """Path to which the loaded image is also written; needs ``decode``."""


@final
@dataclass(frozen=True, slots=True)
class Seen:
    """Result for one file. ``problem`` is empty if nothing is wrong; then ``size`` is (width, height)."""

    path: Path
    size: tuple[int, int] = (0, 0)
    digest: str = ""
    """Hash of the decoded pixels, so equal for equal pictures in different files; empty if not decoded."""
    coverage: float = 0.0
    """For a mask, the share of pixels above one half."""
    frames: bool = False
    """It has further frames or pages, which are not read."""
    problem: Problem | Literal[""] = ""
    reason: str = ""


def look(wanted: Look) -> Seen:
    """Inspect one file; a problem is part of the result, not an exception."""
    try:
        if not wanted.decode:
            return Seen(wanted.path, image_size(wanted.path), frames=has_frames(wanted.path))
        image = load_mask(wanted.path) if wanted.mask else load_image(wanted.path)
        frames = has_frames(wanted.path)
    except ImageError as error:
        return Seen(wanted.path, problem=error.problem, reason=error.reason)
    if wanted.copy is not None:
        save_image(image, wanted.copy)
    digest = blake2b(f"{image.mode} {image.size}".encode() + image.tobytes(), digest_size=16).hexdigest()
    return Seen(wanted.path, image.size, digest, _coverage(image) if wanted.mask else 0.0, frames)


def _coverage(mask: Image.Image) -> float:
    return sum(mask.histogram()[128:]) / (mask.width * mask.height)


LookAll = Callable[[Iterable[Look]], Iterator[Seen]]


@contextmanager
def lookers(workers: int) -> Iterator[LookAll]:
    """A function that inspects many files and yields the results in the same order; 1 worker: this process."""
    if workers == 1:
        yield lambda wanted: map(look, wanted)
        return
    # spawn, since a forked process with threads of torch may hang
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield lambda wanted: _batched(pool, wanted, workers)


def _batched(pool: Executor, wanted: Iterable[Look], workers: int) -> Iterator[Seen]:
    """``pool.map`` in slices, because it would consume an endless iterable at once."""
    stream = iter(wanted)
    while part := list(islice(stream, 64 * workers)):
        yield from pool.map(look, part, chunksize=8)


def default_workers() -> int:
    """Number of processors that this process may use, at most 16."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(usable, 16))
