"""The one image loader, for training, rewards and evaluation: plain 8-bit RGB, or an error.

A wrong picture is worse than none: it would quietly become a reference that rewards are measured against.
So damaged files are refused, and orientation, transparency and 16 bits, which naive conversion gets wrong,
are handled here. The table of all kinds of files is in docs/image-files.md.
"""

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal, final

import numpy as np
from PIL import Image, ImageChops, ImageFile, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile

from customized_grpo.atomic import replacing
from customized_grpo.data import png
from customized_grpo.text import is_html, is_lfs_pointer

MAX_PIXELS = 64_000_000
"""Limit on pixels: a larger reference is surely a mistake, and decoding it would take a gigabyte."""

_HEAD = 512
_GREY = 16
"""Largest difference of a grey pixel's channels: JPEG colours grey pictures a little."""
_HEIC = (b"heic", b"heix", b"mif1", b"msf1", b"hevc")

_OTHERS: Final = {
    rb"\xff\x0a|\x00\x00\x00\x0cJXL ": "a JPEG XL picture",
    rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml.*)?<svg": "an SVG drawing",
    rb"%PDF": "a PDF document",
    rb"PK\x03\x04": "a ZIP archive",
    rb".{4}ftyp(?:isom|mp4|avc1|qt  |M4V)|\x1aE\xdf\xa3": "a film",
}
"""What is called .png or .jpg and is neither, by patterns of the first bytes."""
_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF's orientation, and what turns it upright."""
_ON_ITS_SIDE: Final = (
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
)

_Stream = io.BufferedReader | io.BytesIO

Problem = Literal[
    "missing", "folder", "unreadable", "empty", "lfs-pointer", "html", "heic", "no-image", "too-large", "damaged",
    "32-bit", "no-mask",
]  # fmt: skip
"""Kind of problem with a file, for programs; ``ImageError.reason`` is for people."""


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


def load_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An RGB image: EXIF orientation applied, transparency on white, first frame, no metadata.

    Raises:
        ImageError: missing, empty, truncated, not an image, over ``max_pixels``, or with 32 bits per channel.
    """
    path = Path(path)
    return _rgb(_decode(path, lambda: _open(path), max_pixels))


def read_image(content: bytes, name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """``load_image`` for bytes (a column of a table); ``name`` takes the path's place in errors.

    Raises:
        ImageError: as for ``load_image``.
    """
    return _rgb(_decode(Path(name), lambda: io.BytesIO(content), max_pixels))


def load_mask(path: str | Path) -> Image.Image:
    """A mask of mode L, white for the subject. EXIF orientation is applied, as to its image.

    For a cut-out subject (the usual ``_seg.png``) the alpha channel is the mask.

    Raises:
        ImageError: as for ``load_image``, or a coloured, opaque picture, which is not a mask.
    """
    path = Path(path)
    image = _decode(path, lambda: _open(path), MAX_PIXELS)
    if image.has_transparency_data:
        opacity = image.convert("RGBA").getchannel("A")
        if opacity.getextrema() != (255, 255):
            return _plain(opacity)
    grey = image.convert("L")
    difference = ImageChops.difference(image.convert("RGB"), grey.convert("RGB"))
    if np.asarray(difference).max() > _GREY:
        reason = "is a coloured picture, not a mask; a mask is grey with a white subject, or has transparency"
        raise ImageError(path, "no-mask", reason)
    return _plain(grey)


def image_size(path: str | Path) -> tuple[int, int]:
    """Width and height as ``load_image`` would give them, read from the header without decoding pixels.

    Raises:
        ImageError: problems visible in the header; truncation is found only by ``load_image``.
    """
    path = Path(path)
    with _typed_errors(path, MAX_PIXELS), _open(path) as stream:
        _check_head(path, stream)
        with Image.open(_whole(stream, pixels=False)) as lazy:
            _check_size(path, lazy.size, MAX_PIXELS)
            return (lazy.height, lazy.width) if _turn(lazy) in _ON_ITS_SIDE else lazy.size


def has_frames(path: str | Path) -> bool:
    """True for an animation or a file of several pages, of which ``load_image`` reads the first.

    The second picture of a phone's MPO is a preview or a depth map, so such a file counts as one picture.

    Raises:
        ImageError: as for ``image_size``.
    """
    path = Path(path)
    with (
        _typed_errors(path, MAX_PIXELS),
        _open(path) as stream,
        Image.open(_whole(stream, pixels=False)) as lazy,
    ):
        if lazy.format == "MPO":
            return False
        if isinstance(lazy, PngImageFile):
            return lazy.is_animated
        try:
            lazy.seek(1)
        except EOFError:
            return False
        except (OSError, SyntaxError, ValueError):  # of a damaged second one
            return True
        return True


def text_in(path: Path, name: str) -> str | None:
    """A text that a PNG holds under a name, as the studio's recipes; None: it holds none. No pixel is decoded.

    Raises:
        ImageError: as for ``image_size``.
    """
    with _typed_errors(path, MAX_PIXELS), _open(path) as stream, Image.open(stream) as lazy:
        text = lazy.info.get(name)
    return text if isinstance(text, str) else None


def save_image(image: Image.Image, path: Path) -> None:
    """Write an image in the format of the path's suffix, without any metadata, complete or not at all."""
    with replacing(path) as aside:
        _plain(image.copy()).save(aside, quality=92)  # used only by lossy formats


def _decode(path: Path, opened: Callable[[], _Stream], max_pixels: int) -> Image.Image:
    with _typed_errors(path, max_pixels), opened() as stream:
        _check_head(path, stream)
        with Image.open(_whole(stream, pixels=True)) as lazy:
            _check_size(path, lazy.size, max_pixels)
            lazy.load()
            turn = _turn(lazy)
            image = lazy.copy() if turn is None else lazy.transpose(turn)
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255 instead of scaling: nearly everything would turn white.
        values = np.asarray(image).astype(np.float32)
        return Image.fromarray(np.rint(values / 257.0).astype(np.uint8))
    if image.mode in ("I", "F"):
        reason = f"has 32 bits per pixel (mode {image.mode}), of unknown range; save it with 8 or 16 bits"
        raise ImageError(path, "32-bit", reason)
    return image


def _whole(stream: _Stream, *, pixels: bool) -> _Stream:
    """A stream for Pillow that holds no more than the picture, which is whole whatever stands beside it."""
    is_png = stream.read(len(png.SIGNATURE)) == png.SIGNATURE
    stream.seek(0)
    return png.plain(stream, pixels=pixels) if is_png else stream


def _turn(image: Image.Image) -> Image.Transpose | None:
    """How to turn the picture upright. Damaged metadata says nothing about it, as for every viewer."""
    try:
        # A PNG's own method would decode the pixels, for metadata after them; ``png.plain`` has put that before them.
        exif = Image.Image.getexif(image)
        return _TURNS.get(exif.get(0x0112, 1))
    except Exception:  # of a dozen types, as for damaged pixels
        return None


@contextmanager
def _typed_errors(path: Path, max_pixels: int) -> Iterator[None]:
    """Turn any Pillow error inside the block into an ``ImageError``; silence warnings about broken metadata.

    A half file is an error here even if some module has set Pillow's ``LOAD_TRUNCATED_IMAGES``, by which it turns grey.
    """
    lenient, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except ImageError:
            raise
        except UnidentifiedImageError as error:
            reason = "is not an image that Pillow can read; save it as PNG or JPEG"
            raise ImageError(path, "no-image", reason) from error
        except Image.DecompressionBombError as error:
            found = re.search(r"\d+", str(error))
            pixels = f"{int(found[0]):,}" if found else "too many"
            reason = f"has {pixels} pixels, over the limit of {max_pixels:,}; scale it down"
            raise ImageError(path, "too-large", reason) from error
        except Exception as error:
            # Pillow's decoders raise many exceptions for damaged files: OSError, SyntaxError, struct.error, ...
            reason = f"is damaged or truncated ({error}); download or save it again"
            raise ImageError(path, "damaged", reason) from error
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = lenient


def _open(path: Path) -> _Stream:
    try:
        return path.open("rb")
    except FileNotFoundError as error:
        raise ImageError(path, "missing", "no such file") from error
    except IsADirectoryError as error:
        raise ImageError(path, "folder", "is a folder, not an image") from error
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise ImageError(path, "unreadable", f"can't be read ({error})") from error


def _check_size(path: Path, size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        reason = f"has {width} x {height} pixels, over the limit of {max_pixels:,}; scale it down"
        raise ImageError(path, "too-large", reason)


def _check_head(path: Path, stream: _Stream) -> None:
    """Raise specific messages for files commonly found in place of an image."""
    head = stream.read(_HEAD)
    stream.seek(0)
    if not head:
        raise ImageError(path, "empty", "is empty (0 bytes)")
    if is_lfs_pointer(head):
        reason = "is a Git LFS pointer, not the image itself; run 'git lfs pull' where it came from"
        raise ImageError(path, "lfs-pointer", reason)
    if is_html(head):
        reason = "is an HTML page (a failed download?), not an image; download it again"
        raise ImageError(path, "html", reason)
    # AVIF, which Pillow reads, may begin with mif1 too, and names itself among the compatible brands.
    if head[4:8] == b"ftyp" and head[8:12] in _HEIC and b"avif" not in head[8:64]:
        reason = "is an HEIC photo, which Pillow can't read; save it as PNG or JPEG"
        raise ImageError(path, "heic", reason)
    for pattern, name in _OTHERS.items():
        if re.match(pattern, head, re.DOTALL):
            raise ImageError(path, "no-image", f"is {name}, which Pillow can't read; save it as PNG or JPEG")


def _rgb(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        # Plain conversion would reveal the hidden colours under transparent pixels.
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return _plain(image.convert("RGB"))


def _plain(image: Image.Image) -> Image.Image:
    """Image without metadata: phone photos carry places and times, which writers would pass on."""
    image.info.clear()
    return image
