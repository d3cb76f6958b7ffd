"""The one image loader, for training, rewards and evaluation: plain 8-bit RGB, or an error.

A wrong picture is worse than none: it would quietly become a reference that rewards are measured against.
So a damaged file is refused, and what naive conversion gets wrong (orientation, transparency, 16 bits) is
done right here.
"""

from pathlib import Path
from typing import final

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 64_000_000
"""Above this a reference is surely a mistake, and decoding it would take a gigabyte."""

_HEAD = 512


@final
class ImageError(ValueError):
    """A file that can't be used as an image.

    Attributes:
        path: the file.
        reason: what is wrong with it and what to do.
    """

    def __init__(self, path: str | Path, reason: str) -> None:
        self.path = Path(path)
        self.reason = reason
        super().__init__(f"{path}: {reason}")


def load_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An RGB image: EXIF orientation applied, transparency on white, first frame, no metadata.

    Raises:
        ImageError: missing, empty, truncated, no image at all, over ``max_pixels``, or of 32 bits a channel.
    """
    image = _decode(Path(path), max_pixels)
    if image.has_transparency_data:
        # Plain conversion would reveal the hidden colours under transparent pixels.
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return _plain(image.convert("RGB"))


def load_mask(path: str | Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A mask of mode L; white is the subject. EXIF orientation is applied, as to its image.

    Raises:
        ImageError: as for ``load_image``.
    """
    return _plain(_decode(Path(path), max_pixels).convert("L"))


def _decode(path: Path, max_pixels: int) -> Image.Image:
    _check_head(path)
    try:
        with Image.open(path) as opened:
            width, height = opened.size
            if width * height > max_pixels:
                raise ImageError(
                    path, f"has {width} x {height} pixels, over the limit of {max_pixels:,}; scale it down"
                )
            opened.load()
            image = ImageOps.exif_transpose(opened)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(path, f"has too many pixels (the limit is {max_pixels:,}); scale it down") from error
    except UnidentifiedImageError as error:
        raise ImageError(path, "is no image that Pillow can read; save it as PNG or JPEG") from error
    except ImageError:
        raise
    except Exception as error:
        # Pillow's decoders meet damaged files with many exceptions: OSError, SyntaxError, struct.error, ...
        raise ImageError(path, f"is damaged or truncated ({error}); download or save it again") from error
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255 instead of scaling: nearly everything would turn white.
        values = np.asarray(image).astype(np.float32)
        return Image.fromarray(np.rint(values / 257.0).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ImageError(
            path, f"has 32 bits a pixel (mode {image.mode}), of unknown range; save it with 8 or 16 bits"
        )
    return image


def _check_head(path: Path) -> None:
    """What is commonly found in the place of an image gets its own message."""
    if not path.exists():
        raise ImageError(path, "no such file")
    if not path.is_file():
        raise ImageError(path, "is a folder, not an image")
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise ImageError(path, f"can't be read ({error.strerror})") from error
    if not head:
        raise ImageError(path, "is empty (0 bytes)")
    if head.startswith(b"version https://git-lfs.github.com/spec"):
        raise ImageError(
            path, "is a Git LFS pointer, not the image itself; run 'git lfs pull' where it came from"
        )
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        raise ImageError(path, "is an HTML page (a failed download?), not an image; download it again")
    if head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"mif1", b"msf1", b"hevc"):
        raise ImageError(path, "is an HEIC photo, which Pillow can't read; save it as PNG or JPEG")


def _plain(image: Image.Image) -> Image.Image:
    """Without metadata: phone photos carry places and times, and writers would pass them on."""
    image.info.clear()
    return image
