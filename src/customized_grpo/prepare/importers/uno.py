"""UNO (arXiv 2504.02160): importer of its training JSON and of the labels of UNO-1M.

The training form is ``{"prompt", "image_path" | "image_paths", "image_tgt_path"?}``. A label of UNO-1M is
``{"img_path1", "img_path2", "caption": {"img_path1", "img_path2", "subject": []}, "vlm_filter_cot": {"score_final"}}``:
a pair of pictures of one subject with a caption each, and a judge's similarity score (0 - 4; the paper trains on 4,
the data set's card advises at least 3.5).
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, final

from pydantic import Field

from customized_grpo.data.rows import is_nothing
from customized_grpo.paths import matching
from customized_grpo.prepare.importers.base import (
    Draft,
    Importer,
    Item,
    Rejected,
    Skipped,
    SourceError,
    paths_of,
    text_of,
)
from customized_grpo.prepare.importers.json_array import json_objects


@final
class UNO(Importer):
    """UNO's JSON: prompt and image_paths, or the labels of UNO-1M; a file, or a folder with labels/*.json."""

    images: str | None = Field(
        default=None,
        description="folder of the images; null: images/ beside the labels, else the labels' folder",
    )
    min_score: float = Field(default=3.5, ge=0, le=4, description="lower limit on score_final of UNO-1M's labels")
    swap: bool = Field(default=False, description="UNO-1M: add each pair with target and reference swapped")

    def root(self, source: str) -> Path:
        """Folder that paths in the labels are relative to."""
        if self.images is not None:
            return Path(self.images).expanduser()
        folder = super().root(source)
        folder = folder.parent if folder.name == "labels" else folder
        return folder / "images" if (folder / "images").is_dir() and _is_1m(source) else folder

    def __call__(self, source: str, out: Path) -> Iterator[Item]:
        """Rows in the files' order, without those that score below min_score."""
        root = self.root(source)
        for file in _files(source):
            for number, entry in enumerate(json_objects(file)):
                name = f"{file.stem}-{number:06d}"
                try:
                    if isinstance(entry, ValueError):
                        raise entry
                    yield from self._rows(entry, name, root)
                except ValueError as error:
                    yield Rejected(name, f"{file.name}, item {number + 1}: {error}")

    def _rows(self, entry: dict[str, Any], name: str, root: Path) -> Iterator[Item]:
        if "img_path1" not in entry:
            yield _training_row(entry, name, root)
            return
        score = (entry.get("vlm_filter_cot") or {}).get("score_final")
        if not isinstance(score, int | float) or not 0 <= score <= 4:
            raise ValueError(f"vlm_filter_cot.score_final: given {score!r}; it must be a number from 0 to 4")
        if score < self.min_score:
            yield Skipped("below min_score")
            return
        captions = entry.get("caption")
        if not isinstance(captions, dict):
            raise ValueError(f"caption: given {captions!r}; it must be an object with img_path1 and img_path2")
        # the second half of a name differs between the two pictures of a subject, the part before "_1" doesn't
        given = captions.get("subject")
        subjects = [word for word in (given if isinstance(given, list) else [given]) if not is_nothing(word)]
        identity = re.sub(r"_\d+_\d+x\d+$", "", Path(text_of(entry, "img_path1")).stem)
        for reference, target, suffix in (
            ("img_path1", "img_path2", ""),
            ("img_path2", "img_path1", "-swapped"),
        ):
            if suffix and not self.swap:
                return
            yield Draft(
                id=name + suffix,
                prompt=text_of(captions, target),
                references=(root / text_of(entry, reference),),
                subject=str(subjects[0]) if subjects else "",
                target=root / text_of(entry, target),
                extra={"subject_id": identity, "score": score},
            )


def _training_row(entry: dict[str, Any], name: str, root: Path) -> Draft:
    paths = paths_of(entry, "image_paths" if "image_paths" in entry else "image_path")
    target = entry.get("image_tgt_path")
    return Draft(
        id=name,
        prompt=text_of(entry, "prompt"),
        references=tuple(root / path for path in paths),
        target=None if target is None else root / text_of(entry, "image_tgt_path"),
    )


def _files(source: str) -> list[Path]:
    path = Path(source).expanduser()
    if not path.is_dir():
        return [path]
    folder = path / "labels" if (path / "labels").is_dir() else path
    files = sorted(matching(folder, "*.json"), key=lambda file: [int(n) for n in re.findall(r"\d+", file.stem)])
    if not files:
        raise SourceError(f"{source}: there is no .json file in it or in labels/")
    return files


def _is_1m(source: str) -> bool:
    first = next(json_objects(_files(source)[0]), {})
    return not isinstance(first, ValueError) and "img_path1" in first
