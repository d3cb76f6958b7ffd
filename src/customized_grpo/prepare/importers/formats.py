"""Pictures that lie in a folder twice: ``c.jpg`` beside ``c.png``, or a link, is no second picture of a subject."""

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from customized_grpo.data.folders import Inside, plain
from customized_grpo.data.images import ImageError, load_image

_LOSSLESS: Final = (".png", ".apng", ".tif", ".tiff", ".bmp")
_NEEDING: Final = (".heic", ".heif", ".hif")
"""Suffixes that not every program reads; a phone's export often has the same photo as JPEG beside it."""
_COARSE: Final = (32, 32)
_NEAR: Final = 4.0
"""Mean difference of two pictures' values (0 - 255) at ``_COARSE`` up to which a lossy format explains it."""


def without_twins(inside: Inside) -> tuple[Inside, list[tuple[Path, Path]]]:
    """A folder's content with one file of each picture, a lossless one if there is, and pairs (left out, kept).

    Only pictures of one name are compared, so that hardly ever one is read. A kept picture has the captions of both.
    """
    by_file: dict[str, list[Path]] = {}
    for picture in sorted(inside.pictures, key=lambda path: path.is_symlink()):
        by_file.setdefault(os.path.realpath(picture), []).append(picture)
    by_stem: dict[str, list[Path]] = {}
    files = sorted((first for first, *_ in by_file.values()), key=_rank)
    for picture in files:
        by_stem.setdefault(plain(picture.stem), []).append(picture)
    twins = [(link, first) for first, *links in by_file.values() for link in links]
    twins += (
        (picture, first)
        for first, *others in by_stem.values()
        for picture in others
        if picture.suffix != first.suffix and _is_one(first, picture)
    )
    out = {picture for picture, _ in twins}
    captions = dict(inside.captions)
    for picture, first in twins:
        if both := _distinct((*captions.get(first, ()), *captions.pop(picture, ()))):
            captions[first] = both
    return replace(inside, pictures=tuple(p for p in inside.pictures if p not in out), captions=captions), twins


def _rank(path: Path) -> int:
    """Which of several files of one picture is taken: the least."""
    suffix = path.suffix.lower()
    return 0 if suffix in _LOSSLESS else 2 if suffix in _NEEDING else 1


def _distinct(paths: Iterable[Path]) -> tuple[Path, ...]:
    return tuple(dict.fromkeys(paths))


def _is_one(one: Path, other: Path) -> bool:
    try:
        first, second = load_image(one), load_image(other)
    except ImageError:  # named with its row
        return False
    if first.size != second.size:
        return False
    coarse = [np.asarray(image.resize(_COARSE, Image.Resampling.BOX), np.float32) for image in (first, second)]
    return float(np.abs(coarse[0] - coarse[1]).mean()) <= _NEAR
