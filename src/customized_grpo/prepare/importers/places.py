"""Paths of an import's images: reached by a link to the source, or copied to the output folder.

HEIC photos are always copied, as PNG: a manifest should be readable where ``pillow-heif`` isn't installed.
"""

import os
from hashlib import blake2b
from pathlib import Path
from typing import Literal, final

from customized_grpo.data.images import is_heic_file
from customized_grpo.paths import is_url
from customized_grpo.prepare.importers.base import SourceError

LINK = "source"
"""Name of the link in the output folder to the source's images."""

_LONGEST = 251
"""Bytes of a name that, with .png, file systems still take."""
_KEPT = 48
"""Characters of a longer name that are kept; one takes at most four bytes."""


@final
class Places:
    """Maps files of the source to paths in the output folder."""

    def __init__(self, root: Path, out: Path, images: Literal["link", "copy"]) -> None:
        self._root = Path(os.path.abspath(root))
        self._out = Path(os.path.abspath(out))
        self._copy = images == "copy"
        self._heic: dict[Path, bool] = {}

    def __call__(self, path: Path) -> tuple[Path, str, Path | None]:
        """The file, its path in the manifest, and the path to copy it to, if any.

        Raises:
            ValueError: it is outside the source's folder.
        """
        # Not resolved: links inside the source are allowed, '..' in a list is not.
        file = Path(os.path.abspath(path))
        if "\0" in str(file):
            raise ValueError(f"{path!s:.80}: has a zero byte in its name")
        copied = self._copy or self._is_heic(file)
        if file.is_relative_to(self._out / "images" if copied else self._out):  # the importer wrote it
            return file, file.relative_to(self._out).as_posix(), None
        if not file.is_relative_to(self._root):
            raise ValueError(f"{path}: is outside {self._root}")
        inner = file.relative_to(self._root)
        if is_url(inner.as_posix()):
            raise ValueError(f"{inner.as_posix()!r} is a URL; download the file, and give its path in the source")
        if copied:
            copy = self._out / "images" / inner.with_name(_name_of_copy(inner.name))
            return file, copy.relative_to(self._out).as_posix(), copy
        self._link()
        return file, f"{LINK}/{inner.as_posix()}", None

    def _is_heic(self, file: Path) -> bool:
        if file not in self._heic:
            self._heic[file] = is_heic_file(file)
        return self._heic[file]

    def _link(self) -> None:
        link = self._out / LINK
        if link.is_symlink() and Path(os.readlink(link)) == self._root:
            return
        if link.exists() or link.is_symlink():
            raise SourceError(f"{link}: is in the way of a link to {self._root}; give a new folder with --out")
        try:
            link.symlink_to(self._root, target_is_directory=True)
        except OSError as error:
            raise SourceError(
                f"{link}: a link to {self._root} can't be made ({error.strerror}); use --images copy"
            ) from error


def _name_of_copy(name: str) -> str:
    """The name of a picture's copy; it keeps the suffix, because a.jpg and a.webp are two pictures."""
    plain = name.replace(".", "-")
    if len(os.fsencode(plain)) > _LONGEST:
        plain = f"{plain[:_KEPT]}-{blake2b(os.fsencode(name), digest_size=8).hexdigest()}"
    return f"{plain}.png"
