"""The last few images that were loaded: neighbouring examples share their subject, and photos decode slowly."""

from functools import lru_cache
from pathlib import Path

from PIL import Image

from customized_grpo.data.images import load_image


def load_recent(path: Path) -> Image.Image:
    """``load_image``, with the last few kept; a file that has changed is read again.

    Raises:
        ImageError: as for ``load_image``.
    """
    try:
        found = path.stat()
    except OSError:
        return load_image(path)  # which says why
    return _load(path, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


@lru_cache(maxsize=32)
def _load(path: Path, *state: int) -> Image.Image:
    return load_image(path)
