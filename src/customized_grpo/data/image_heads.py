"""First and last bytes of image files: what a file is whatever its name says, and whether it stops early.

``images`` asks before Pillow does: its own messages don't say what else a file is, nor what to do.
"""

import io
import os
import re
from pathlib import Path
from typing import Final, Literal, final

from customized_grpo.text import is_html, is_lfs_pointer

Stream = io.BufferedReader | io.BytesIO

Problem = Literal[
    "missing", "folder", "unreadable", "empty", "lfs-pointer", "html", "heic", "no-image", "too-large", "damaged",
    "32-bit", "no-mask",
]  # fmt: skip
"""Kind of problem with a file, for programs; ``ImageError.reason`` is for people."""

_HEAD: Final = 512
_TAIL: Final = 12
_HEIC: Final = (
    b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1",
)  # fmt: skip
"""Brands of HEIF files of which iPhones and other cameras write some."""
_OTHERS: Final = {
    rb"\xff\x0a|\x00\x00\x00\x0cJXL ": "a JPEG XL picture",
    rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml.*)?<svg": "an SVG drawing",
    rb"%PDF": "a PDF document",
    rb"PK\x03\x04": "a ZIP archive",
    rb".{4}ftyp(?:isom|mp4|avc1|qt  |M4V)|\x1aE\xdf\xa3": "a film",
}
"""What is called .png or .jpg and is neither, by patterns of the first bytes."""


@final
class ImageError(ValueError):
    """A file that can't be used as an image.

    Attributes:
        problem: kind of problem.
        reason: description of the problem and what to do.
    """

    def __init__(self, path: str | Path, problem: Problem, reason: str) -> None:
        self.path = Path(path)
        self.problem: Problem = problem
        self.reason = reason
        super().__init__(f"{path}: {reason}")

    def __reduce__(self) -> tuple[type["ImageError"], tuple[Path, Problem, str]]:
        return ImageError, (self.path, self.problem, self.reason)  # so that it can be pickled


def check_head(path: Path, stream: Stream) -> None:
    """Raise specific messages for files commonly found in place of an image.

    Raises:
        ImageError: it is one of these.
    """
    head = _head(stream)
    if not head:
        raise ImageError(path, "empty", "is empty (0 bytes)")
    if is_lfs_pointer(head):
        reason = "is a Git LFS pointer, not the image itself; run 'git lfs pull' where it came from"
        raise ImageError(path, "lfs-pointer", reason)
    if is_html(head):
        reason = "is an HTML page (a failed download?), not an image; download it again"
        raise ImageError(path, "html", reason)
    for pattern, name in _OTHERS.items():
        if re.match(pattern, head, re.DOTALL):
            raise ImageError(path, "no-image", f"is {name}, which Pillow can't read; save it as PNG or JPEG")


def is_heic(stream: Stream) -> bool:
    """True for an HEIC photo, whatever its name."""
    head = _head(stream)
    # AVIF, which Pillow reads, may begin with mif1 too, and names itself among the compatible brands.
    return head[4:8] == b"ftyp" and head[8:12] in _HEIC and b"avif" not in head[8:64]


def has_end(stream: Stream) -> bool:
    """True if the file ends as its format does: a download or a copy that broke off does not.

    False also where it can't be told from a few bytes, and where other data follow: then only its pixels say more.
    """
    head = _head(stream)
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - _TAIL))
    tail = stream.read(_TAIL)
    stream.seek(0)
    if head.startswith(b"\xff\xd8"):
        return tail.endswith(b"\xff\xd9")
    if head.startswith(b"\x89PNG"):
        return tail[4:8] == b"IEND"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return int.from_bytes(head[4:8], "little") + 8 <= size
    return head.startswith(b"GIF8") and tail.endswith(b"\x3b")


def _head(stream: Stream) -> bytes:
    head = stream.read(_HEAD)
    stream.seek(0)
    return head
