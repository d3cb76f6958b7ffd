"""Hashes of content, by which a result knows what it stands on: of files, of folders, of values.

A file is read again only where its size, times or inode differ from what is remembered, as git's index does it.
"""

import hashlib
import json
import os
import stat
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, final

from PIL.Image import Image

from customized_grpo.atomic import replacing
from customized_grpo.paths import is_system

HASHES: Final = ".hashes.json"
"""Name of a ``FileHashes``' memory beside the result that it serves."""
_GRAIN_NS: Final = 2_000_000_000
"""Coarsest clock of a file system in use (FAT's): what was written within it may be written again unseen."""
_THREADS: Final = min(8, os.cpu_count() or 1)
"""hashlib lets go of Python's lock, and on a network's disk the threads wait side by side."""


def file_hash(path: Path) -> str:
    """sha256 of a file in hexadecimal; it isn't read at once, as whole models are hashed, too."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def equal_files(paths: Iterable[Path]) -> dict[Path, Path]:
    """Each file to the first one of equal content; files that aren't there are left out.

    A file is read only if others have its size, and as a whole only if others begin as it does.
    """
    groups = [[path for path in dict.fromkeys(paths) if path.is_file()]]
    marks: tuple[Callable[[Path], object], ...] = (lambda path: path.stat().st_size, _beginning, file_hash)
    for mark in marks:
        finer: list[list[Path]] = []
        for group in groups:
            parts: defaultdict[object, list[Path]] = defaultdict(list)
            for path in group:
                parts[mark(path) if len(group) > 1 else None].append(path)
            finer += parts.values()
        groups = finer
    return {path: group[0] for group in groups for path in group}


def _beginning(path: Path) -> bytes:
    with path.open("rb") as opened:
        return hashlib.sha256(opened.read(1 << 16)).digest()


def short_hash(value: Any) -> str:
    """16 hexadecimal digits of a value as JSON; a picture in it counts by its pixels, any other object as text."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=_text).encode()).hexdigest()[:16]


def pixel_hash(image: Image) -> str:
    """sha256 of an image's mode, size and pixels in hexadecimal."""
    return hashlib.sha256(f"{image.mode} {image.size} ".encode() + image.tobytes()).hexdigest()


def _text(value: Any) -> str:
    return pixel_hash(value) if isinstance(value, Image) else str(value)


@final
class FileHashes:
    """Hashes of files, remembered in a JSON file; several threads may ask.

    A name relative to the files' folder is part of the memory, so it holds for a folder that was moved.

    Args:
        store: the file; None: for this process alone. One that can't be read is made anew.
    """

    def __init__(self, store: Path | None = None) -> None:
        self._store = store
        self._kept: dict[str, str] = {}
        if store is not None and store.is_file():
            try:
                found = json.loads(store.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                found = {}
            self._kept = {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}
        self._known = dict(self._kept)
        self._stopped = False

    def stop(self) -> None:
        """Give up what threads are about to read: the results are wanted no more. ``of`` raises from now on."""
        self._stopped = True

    def of(self, root: Path, names: Iterable[str]) -> dict[str, str]:
        """sha256 of files by their names relative to ``root``; empty for one that isn't there or can't be read."""
        found: dict[str, str] = {}
        unknown: dict[str, str] = {}
        for name in dict.fromkeys(names):
            state = _state(root / name)
            key = f"{name}|{state}"
            if state and key in self._known:
                found[name] = self._known[key]
            else:
                unknown[name] = key
        if unknown:
            with ThreadPoolExecutor(min(_THREADS, len(unknown))) as pool:
                made = pool.map(lambda one: self._read(root / one[0], *one), unknown.items())
                found |= dict(zip(unknown, made, strict=True))
        return found

    def of_folder(self, folder: Path, wanted: Callable[[Path], bool] = lambda part: True) -> dict[str, str]:
        """sha256 of a folder's files by their names in it, without the system's and those that aren't ``wanted``."""
        parts = (path.relative_to(folder) for path in sorted(folder.rglob("*")))
        visible = (part for part in parts if not any(map(is_system, part.parts)))
        names = [part.as_posix() for part in visible if wanted(part) and (folder / part).is_file()]
        return self.of(folder, names)

    def save(self) -> None:
        """Write what was learnt, if anything."""
        if self._store is None or self._known == self._kept:
            return
        with replacing(self._store) as aside:
            aside.write_text(json.dumps(self._known, indent=0, sort_keys=True), encoding="utf-8")
        self._kept = dict(self._known)

    def _read(self, path: Path, name: str, key: str) -> str:
        if self._stopped:
            raise CancelledError
        began = time.time_ns()
        try:
            made, found = file_hash(path), path.stat()
        except (OSError, ValueError):
            return ""
        # Remembered if a later change will have a later time, and if there was none meanwhile.
        settled = max(found.st_mtime_ns, found.st_ctime_ns) < began - _GRAIN_NS
        if settled and f"{name}|{_shown(found)}" == key:
            self._known[key] = made
        return made


@contextmanager
def meanwhile(*works: Callable[[], object]) -> Iterator[None]:
    """Read ahead in a thread while the block loads models; whatever fails there will fail again where it is needed."""
    pool = ThreadPoolExecutor(1)
    try:
        for work in works:
            pool.submit(work)
        yield
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def _state(path: Path) -> str:
    """Size, times and inode: a change of the content changes one of them, even where its time of writing is set back.

    Empty where there is no file.
    """
    try:
        found = path.stat()
    except (OSError, ValueError):  # ValueError: a name with a zero byte
        return ""
    return _shown(found) if stat.S_ISREG(found.st_mode) else ""


def _shown(found: os.stat_result) -> str:
    return f"{found.st_size}|{found.st_mtime_ns}|{found.st_ctime_ns}|{found.st_ino}"
