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
from typing import Final

import numpy as np
from PIL import Image, ImageChops, ImageFile, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile

from customized_grpo.atomic import replacing
from customized_grpo.data import png
from customized_grpo.data.image_heads import ImageError, Problem, Stream, check_head, has_end, is_heic

__all__ = [
    "MAX_PIXELS", "ImageError", "Problem", "checked_size", "has_frames", "image_size", "is_heic_file", "load_image",
    "load_mask", "read_image", "save_image", "text_in",
]  # fmt: skip

MAX_PIXELS = 64_000_000
"""Limit on pixels: a larger reference is surely a mistake, and decoding it would take a gigabyte."""

_GREY = 16
"""Largest difference of a grey pixel's channels: JPEG colours grey pictures a little."""
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


def load_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An RGB image: EXIF orientation applied, transparency on white, first frame, no metadata.

    Raises:
        ImageError: missing, empty, truncated, not an image, HEIC without ``pillow-heif``, over ``max_pixels``, or with
            32 bits per channel.
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
        check_head(path, stream)
        with _opened(path, stream, pixels=False) as lazy:
            _check_size(path, lazy.size, MAX_PIXELS)
            return (lazy.height, lazy.width) if _turn(lazy) in _ON_ITS_SIDE else lazy.size


def checked_size(path: str | Path) -> tuple[int, int]:
    """``image_size`` of a file that doesn't stop early; one whose end is not where it should be is read to tell.

    Most damaged files are downloads and copies that broke off, and reading all pixels of all others takes minutes.

    Raises:
        ImageError: as for ``image_size``, and of a truncated file.
    """
    path = Path(path)
    size = image_size(path)
    with _typed_errors(path, MAX_PIXELS), _open(path) as stream:
        whole = has_end(stream)
    if not whole:
        _decode(path, lambda: _open(path), MAX_PIXELS)
    return size


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
        _opened(path, stream, pixels=False) as lazy,
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


def is_heic_file(path: Path) -> bool:
    """True for an HEIC photo, told by its first bytes; False for what can't be opened."""
    try:
        with _open(path) as stream:
            return is_heic(stream)
    except (ImageError, OSError):
        return False


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


def _decode(path: Path, opened: Callable[[], Stream], max_pixels: int) -> Image.Image:
    with _typed_errors(path, max_pixels), opened() as stream:
        check_head(path, stream)
        with _opened(path, stream, pixels=True) as lazy:
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


def _opened(path: Path, stream: Stream, *, pixels: bool) -> Image.Image:
    """Pillow's image of a stream, whose pixels are read later."""
    if not is_heic(stream):
        is_png = stream.read(len(png.SIGNATURE)) == png.SIGNATURE
        stream.seek(0)
        # No more than the picture, which is whole whatever stands beside it.
        return Image.open(png.plain(stream, pixels=pixels) if is_png else stream)
    try:
        from pillow_heif import HeifImageFile
    except ImportError as error:
        reason = "is an HEIC photo, which needs pip install 'customized-grpo[heic]'; or save it as PNG or JPEG"
        raise ImageError(path, "heic", reason) from error
    # The class itself: registering it would let every other library in the process open such files, too.
    photo: Image.Image = HeifImageFile(stream)
    return photo


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
            said = " ".join(str(error).split())  # libheif's have several lines
            reason = f"is damaged or truncated ({said}); download or save it again"
            raise ImageError(path, "damaged", reason) from error
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = lenient


def _open(path: Path) -> Stream:
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
