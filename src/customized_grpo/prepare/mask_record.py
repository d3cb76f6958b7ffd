"""The record of a manifest's masks: for which picture and word each was made, so that content decides whether it stays.

One JSON line per mask, beside the manifest that names them; the last line of a mask counts.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, final

from PIL import Image

from customized_grpo.identity.hashes import file_hash, pixel_hash


@final
class MaskRecord:
    """What is known of masks.

    Args:
        file: the record, existing or not.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known: dict[str, Mapping[str, Any]] = {}
        for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
            try:
                entry = json.loads(line)
                self._known[entry["mask"]] = entry
            except (ValueError, KeyError, TypeError):  # half written by a killed process
                continue

    def verdict(
        self, name: str, mask: Path, picture: Path, image: Image.Image, word: str
    ) -> Literal["fits", "stale", "corrected"]:
        """Whether a mask on disk is the picture's and the word's.

        ``stale``: made for another picture or word, and to be made anew. ``corrected``: laid or corrected by hand for
        another one, so it must not be overwritten. What isn't known fits, and so does what was corrected since.
        """
        entry = self._known.get(name)
        if entry is None or not mask.is_file() or (entry["picture"], entry["word"]) == (pixel_hash(image), word):
            return "fits"
        if entry["file"] == file_hash(mask):
            return "stale" if entry["made"] else "corrected"
        return "fits" if mask.stat().st_mtime_ns > picture.stat().st_mtime_ns else "corrected"

    def add(self, name: str, mask: Path, image: Image.Image, word: str, *, made: bool) -> None:
        """Write down a mask that is there; ``made`` is false for one that was found."""
        file, known = file_hash(mask), self._known.get(name)
        # A mask that was made here stays one until its file is another.
        ours = made or (known is not None and known["made"] and known["file"] == file)
        entry = {"mask": name, "picture": pixel_hash(image), "word": word, "file": file, "made": ours}
        if entry == known:
            return
        self._known[name] = entry
        with self._file.open("a", encoding="utf-8") as opened:
            opened.write(f"{json.dumps(entry)}\n")
