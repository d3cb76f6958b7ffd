"""Whether a copy of DreamBench holds the photos as its repository has them, or others: scaled ones move features."""

import json
from importlib import resources
from pathlib import Path
from typing import Final

from customized_grpo.data.dreambench import find_root

ORIGINAL: Final = "original"
_FOLDER: Final = "dataset/"


def photos(path: str) -> str:
    """``original``, or how many of the photos are not those of the repository.

    They are told apart by their number of bytes: a photo that was scaled or saved again has another.

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
