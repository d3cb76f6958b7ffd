"""Paths of models (a hub id, a folder, or a miniature in the package), a user's files, and what a path means.

Every listing of a folder goes through ``is_system``, ``entries``, ``matching`` or ``files_under``, so that thumbnails,
AppleDouble files and bins, which systems and servers leave in folders, are nowhere taken for data.
"""

import fnmatch
import os
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Final

ASSETS = Path(__file__).parent / "mini" / "assets"
"""Folder of the embedded checkpoints, one per kind; ``judges/`` holds those that training never sees."""

MODEL_INDEX: Final = "model_index.json"
MODULAR_INDEX: Final = "modular_model_index.json"
INDICES: Final = (MODEL_INDEX, MODULAR_INDEX)
"""Files by which a folder of diffusers says which pipeline it holds."""

_SYSTEM: Final = frozenset(
    (
        "__macosx", "icon\r", "network trash folder", "temporary items",  # macOS
        "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "recycler", "system volume information",  # Windows
        "@eadir", "@tmp", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "@__thumb",  # Synology and QNAP
        "lost+found", "__pycache__",
    )
)  # fmt: skip
"""Names, in lower case, of what systems and file servers put into any folder."""


def model_path(name: str, kind: str) -> str:
    """The argument of ``from_pretrained`` for a recipe's ``model``.

    ``mini`` is the package's own miniature model of that kind (``dino``, ``clip``, ...), ``mini-judge`` its
    held-out twin. Anything else is a folder or a hub id (``organisation/name``) and passes through.

    Raises:
        ValueError: the name is empty, or looks like a folder that doesn't exist.
    """
    if not name.strip():
        raise ValueError("model is empty; give a folder, a hub id such as 'facebook/dinov2-base', or 'mini'")
    if name in ("mini", "mini-judge"):
        folder = ASSETS / kind if name == "mini" else ASSETS / "judges" / kind
        if not folder.is_dir():
            raise ValueError(
                f"model {name!r}: the embedded {kind} model is missing ({folder} is not a folder); "
                "reinstall customized-grpo, or rebuild it by 'make assets' in a checkout"
            )
        return str(folder)
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path)
    if path.exists():
        raise ValueError(f"model {name!r} is a file; give the folder that holds config.json and the weights")
    # A hub id has at most one slash and no leading dot, slash or tilde: anything else was meant as a folder.
    if name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1:
        raise ValueError(f"model {name!r}: no such folder; give an existing folder, a hub id, or 'mini'")
    return name


_VARIABLE: Final = re.compile(r"(?:^|/)[^/\\s]*(\$\{\w+\}|\$[A-Za-z_]\w*)[^/\\s]*(?=/|$)")


def home_expanded(path: str) -> str:
    """A path whose leading ``~`` is the home folder, as in a shell; else a folder called ``~`` would be made."""
    return str(Path(path).expanduser()) if path.startswith("~") else path


def unread_variable(text: str) -> str | None:
    """The variable of a shell that a path still holds (``$HOME``, ``${SCRATCH}``), which only the shell replaces."""
    found = _VARIABLE.search(text)
    return found[1] if found and not re.search(r"\s", text) else None


@lru_cache(maxsize=1 << 14)  # rows share their pictures
def is_inside(path: str) -> bool:
    """True if a path from another machine stays inside its folder. Links in the folder may lead out."""
    windows = PureWindowsPath(path)
    outside = PurePosixPath(path).is_absolute() or windows.drive or windows.root or ".." in windows.parts
    return bool(path) and "\0" not in path and not outside


_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://|(?:https?|ftp|file|s3|gs|hf):/|data:\w+/")


def is_url(path: str) -> bool:
    """True for a URL in place of a file's path, also after ``Path`` made ``://`` to ``:/``; ``C:/a.png`` is none."""
    return _URL.match(path) is not None


def is_system(name: str) -> bool:
    """True if a file or folder of this name is not the user's: hidden, AppleDouble (``._a.png``), thumbnails, a bin."""
    return name.startswith((".", "~$")) or name.casefold() in _SYSTEM


def entries(folder: Path) -> list[Path]:
    """The user's files and folders in a folder, sorted by name."""
    return sorted(path for path in folder.iterdir() if not is_system(path.name))


def matching(folder: Path, pattern: str) -> list[Path]:
    """The user's files and folders in a folder whose names are like ``*.json``; none where there is no folder."""
    return [path for path in entries(folder) if fnmatch.fnmatchcase(path.name, pattern)] if folder.is_dir() else []


def files_under(folder: Path, skip: Callable[[Path], bool] = lambda folder: False) -> Iterator[Path]:
    """The user's files in a folder, then those in the folders below it, without folders to ``skip``.

    None where there is no folder. Links to folders are followed, except to one that they lie in.
    """
    return (path for one in folders_under(folder, skip) for path in entries(one) if not path.is_dir())


def folders_under(folder: Path, skip: Callable[[Path], bool] = lambda folder: False) -> Iterator[Path]:
    """A folder and the user's folders below it, as ``files_under`` visits them."""
    return _folders_under(folder, skip, (os.path.realpath(folder),))


def _folders_under(folder: Path, skip: Callable[[Path], bool], above: tuple[str, ...]) -> Iterator[Path]:
    if not folder.is_dir():
        return
    yield folder
    for path in entries(folder):
        if path.is_dir() and not skip(path) and (real := os.path.realpath(path)) not in above:
            yield from _folders_under(path, skip, (*above, real))
