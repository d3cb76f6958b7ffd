"""Check that a copy of DreamBench has its repository's original photos: scaled ones change image features."""

import json
from importlib import resources
from pathlib import Path
from typing import Final

from customized_grpo.data.dreambench import find_root

ORIGINAL: Final = "original"
_FOLDER: Final = "dataset/"


def photos(path: str) -> str:
    """``original``, or the number of photos that differ from the repository's.

    They are compared by file size, which changes if a photo is scaled or saved again.

    Args:
        path: the repository's folder, or the ``dataset`` folder in it.
    """
    root = find_root(Path(path).expanduser())
    text = resources.files("customized_grpo.data").joinpath("facts/dreambench.json").read_text("utf-8")
    sizes = {
        name.removeprefix(_FOLDER): size
        for name, (size, _) in json.loads(text)["files"].items()
        if name.startswith(_FOLDER) and name.endswith(".jpg")
    }
    others = sum(not _has_size(root / name, size) for name, size in sizes.items())
    return f"other files ({others} of {len(sizes)})" if others else ORIGINAL


def _has_size(file: Path, size: int) -> bool:
    return file.is_file() and file.stat().st_size == size
