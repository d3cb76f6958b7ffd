"""Atomic files, complete or absent: written beside their final path and renamed; and folders that one process holds."""

import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_UMASK = os.umask(0o077)
os.umask(_UMASK)  # there is no way to ask for it without setting it: here, before there are threads that write


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``, which replaces ``path`` when the block ends without an error.

    The name is hidden, ends in the same suffix and is not shared with any other process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.stem[:64]}-{secrets.token_hex(6)}{path.suffix}")
    try:
        yield aside
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def readable(path: Path) -> None:
    """Give a file, or all in a folder, the mode of other new files: safetensors writes for a file's owner alone."""
    for file in [path] if path.is_file() else (one for one in path.rglob("*") if one.is_file()):
        file.chmod(0o666 & ~_UMASK)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder inside this block: a second process that writes into it would mix its files with this one's.

    The lock ends with the process, however it ends, and leaves no file. Where a file system has none, nothing is held.

    Raises:
        ValueError: another process holds the folder.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"run.dir: another process is writing into {folder}; wait for it, stop it, or give another folder"
            ) from error
        except OSError:  # a network's disk without locks
            pass
        yield
    finally:
        os.close(descriptor)
