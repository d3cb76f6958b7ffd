"""Content of a folder of pictures: pictures, masks and captions beside them, folders, and files that are none of these.

The one place that tells a user's pictures from everything else in a folder. Nothing is dropped: what is not used is
listed with its reason, and ``paths.is_system`` says what belongs to the system.
"""

import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

from customized_grpo.paths import is_system

SUFFIXES: Final = frozenset(
    (
        ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".mpo",
        ".heic", ".heif", ".hif",
    )
)  # fmt: skip
"""Suffixes of image files, in lower case; those of HEIC photos, too, which are read or refused by what is installed."""

UNREAD: Final = frozenset(
    (
        ".jxl", ".jp2", ".svg", ".psd", ".xcf", ".exr", ".tga", ".ico", ".raw", ".dng", ".cr2",
        ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".mp4", ".mov", ".webm", ".avi", ".mkv",
    )
)  # fmt: skip
"""Suffixes of pictures and films that are not read, in lower case."""

_CAPTIONS: Final = (".txt", ".caption")
_MASKS: Final = ("_seg.png", "_mask.png", "-masklabel.png")
"""Endings of a mask's name beside its picture: ours, the common one, and OneTrainer's."""
_ONLY_MASKS: Final = ("_seg.png", "-masklabel.png")
"""Endings that no picture has by chance."""
_ABOUT: Final = ("readme", "license", "licence", "citation")


@final
@dataclass(frozen=True, slots=True)
class Inside:
    """Everything in one folder, each part sorted by name."""

    pictures: tuple[Path, ...]
    masks: tuple[Path, ...]
    """Masks beside the pictures."""
    captions: Mapping[Path, tuple[Path, ...]]
    """Captions (``a.txt``, ``a.caption``, ``a.png.txt``) of the pictures that have one."""
    folders: tuple[Path, ...]
    """Folders, and links to such, without the pictures' ``masks``."""
    others: Mapping[Path, str]
    """Files that are none of these, and why."""
    system: tuple[Path, ...]
    """What a system put there."""


def look_inside(folder: Path) -> Inside:
    """What a folder holds.

    Raises:
        OSError: it can't be listed.
    """
    found = sorted(folder.iterdir())
    users = [path for path in found if not is_system(path.name)]
    files = [path for path in users if not path.is_dir()]
    images = [path for path in files if path.suffix.lower() in SUFFIXES and path.is_file()]
    of_masks = {name for path in images for name in _mask_names(path)}
    pictures = [path for path in images if path.name not in of_masks and not path.name.endswith(_ONLY_MASKS)]
    captions = _captions([path for path in files if path.suffix.lower() in _CAPTIONS and path.is_file()], pictures)
    used = {
        *pictures,
        *(path for path in images if path.name in of_masks),
        *(f for one in captions.values() for f in one),
    }
    return Inside(
        pictures=tuple(pictures),
        masks=tuple(path for path in images if path.name in of_masks),
        captions=captions,
        folders=tuple(path for path in users if path.is_dir() and not (pictures and path.name == "masks")),
        others={path: _why(path) for path in files if path not in used and path.stem.lower() not in _ABOUT},
        system=tuple(path for path in found if is_system(path.name)),
    )


def images_in(folder: Path) -> list[Path]:
    """Image files of a folder, sorted by name, without system files and masks of other pictures."""
    return list(look_inside(folder).pictures)


def mask_beside(image: Path) -> Path | None:
    """Mask beside a picture, if any: ``<name>_seg.png`` (or ``_mask``, ``-masklabel``), else ``masks/<stem>.jpg``."""
    beside = (image.parent / name for name in _mask_names(image))
    apart = (image.parent / "masks" / f"{image.stem}{suffix}" for suffix in (".jpg", ".png"))
    # os.path, because a name that becomes too long is no file there, while Path raises
    return next((path for path in (*beside, *apart) if os.path.isfile(path)), None)


def masks_beside(images: Sequence[Path]) -> tuple[Path | None, ...]:
    """``mask_beside`` of each image; empty if none has a mask."""
    masks = tuple(mask_beside(image) for image in images)
    return masks if any(masks) else ()


def plain(name: str) -> str:
    """A name in one Unicode form: macOS writes accents apart from their letters, tables mostly don't."""
    return unicodedata.normalize("NFC", name)


def _mask_names(image: Path) -> list[str]:
    # with the suffix first, for two pictures that differ only in it
    return [f"{name}{ending}" for ending in _MASKS for name in (image.name, image.stem)]


def _captions(texts: Sequence[Path], pictures: Sequence[Path]) -> dict[Path, tuple[Path, ...]]:
    by_stem: dict[str, list[Path]] = {}
    for text in texts:
        by_stem.setdefault(plain(text.stem), []).append(text)
    found = {path: (*by_stem.get(plain(path.stem), ()), *by_stem.get(plain(path.name), ())) for path in pictures}
    return {path: captions for path, captions in found.items() if captions}


def _why(path: Path) -> str:
    suffix = path.suffix.lower()
    if path.is_symlink() and not path.exists():
        return f"is a link to {os.readlink(path)}, which is not there"
    if suffix in UNREAD:
        return f"is a {suffix} file, which isn't read; save it as PNG or JPEG"
    if suffix in SUFFIXES:
        return "is named like a mask, but there is no picture of that name"
    if suffix in _CAPTIONS:
        return "is text, but there is no picture of that name whose caption it could be"
    return "is no picture, mask or caption"
