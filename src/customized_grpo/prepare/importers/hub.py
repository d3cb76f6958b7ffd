"""Importers of Hugging Face data sets by the library ``datasets`` (an extra), streamed by default.

Nothing is downloaded unless a hub id is given. Pictures inside tables become PNG files.
"""

import re
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, final

from pydantic import Field

from customized_grpo.data.images import ImageError, read_image, save_image
from customized_grpo.prepare.importers.base import (
    Draft,
    Importer,
    Item,
    Rejected,
    Skipped,
    SourceError,
    text_of,
)


class _Hub(Importer):
    """Records of a hub id, of a folder of parquet files, or of one such file."""

    prefix: ClassVar[str] = "row"
    """Prefix of the ids of rows."""

    split: str = Field(default="train", description="split of the data set")
    revision: str | None = Field(default=None, description="commit or tag on the hub; null: the newest")
    streaming: bool = Field(default=True, description="read while downloading; false: download the set first")

    def root(self, source: str) -> Path:
        """No folder of the source is used: images are written to the output folder."""
        return Path.cwd()

    @abstractmethod
    def rows(self, record: dict[str, Any], name: str, out: Path) -> Iterator[Item]:
        """Items of one record.

        Raises:
            ValueError: it can't become a row.
        """

    def __call__(self, source: str, out: Path) -> Iterator[Item]:
        """Rows in the set's order."""
        for number, record in enumerate(self.records(source)):
            name = f"{self.prefix}-{number:06d}"
            try:
                yield from self.rows(record, name, out)
            except ValueError as error:
                yield Rejected(name, error.reason if isinstance(error, ImageError) else str(error))

    def records(self, source: str) -> Iterable[dict[str, Any]]:
        """Rows of the table, with images as ``{"bytes", "path"}``, to be decoded by the package's own loader.

        Raises:
            SourceError: the library is missing, or the data set can't be opened.
        """
        try:
            import datasets
        except ModuleNotFoundError as error:
            message = f"{source}: reading it needs the library 'datasets'; pip install 'customized-grpo[hub]'"
            raise SourceError(message) from error
        path = Path(source).expanduser()
        if path.exists():
            files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
            if not files:
                raise SourceError(f"{source}: there is no .parquet file in it; give a folder with some, or a hub id")
            options: dict[str, Any] = {"path": "parquet", "data_files": [str(file) for file in files]}
        elif re.fullmatch(r"[\w.-]+/[\w.-]+", source):
            options = {"path": source, "revision": self.revision}
        else:
            raise SourceError(f"{source}: no such folder and no hub id such as Yuanshi/Subjects200K")
        split = "train" if path.exists() else self.split  # plain files have only this split
        try:
            table: Any = datasets.load_dataset(**options, split=split, streaming=self.streaming)
            for name, feature in (table.features or {}).items():
                if isinstance(feature, datasets.Image):
                    table = table.cast_column(name, datasets.Image(decode=False))
        except Exception as error:  # of a dozen types; in any case the set can't be read
            raise SourceError(f"{source}: can't be opened: {type(error).__name__}: {error}") from error
        return _read(source, table)


@final
class Subjects200K(_Hub):
    """Subjects200K (arXiv 2411.15098): two views of a subject side by side in one picture."""

    prefix = "s200k"

    collections: list[str] = Field(default=[], description="collections to use, such as collection_2; empty: all")
    min_quality: int = Field(default=5, ge=0, le=5, description="lower limit of all three scores; 0: also unscored")
    swap: bool = Field(default=True, description="use each view as the target, so two rows per picture")

    def _unfit(self, record: dict[str, Any]) -> str:
        if self.collections and record.get("collection") not in self.collections:
            return "of another collection"
        if self.min_quality == 0:
            return ""
        scores = record.get("quality_assessment") or {}
        keys = ("compositeStructure", "objectConsistency", "imageQuality")
        return "" if all((scores.get(key) or 0) >= self.min_quality for key in keys) else "below min_quality"

    def rows(self, record: dict[str, Any], name: str, out: Path) -> Iterator[Item]:
        """A row per view that is a target; the two views are written as PNG files."""
        if unfit := self._unfit(record):
            yield Skipped(unfit)
            return
        description = record.get("description")
        if not isinstance(description, dict):
            raise ValueError("has no description")
        if description.get("description_valid") is False:
            raise ValueError("its description is marked as not valid")
        prompts = [text_of(description, f"description_{side}") for side in (0, 1)]
        views = [out / "images" / name[:-3] / f"{name}-{side}.png" for side in (0, 1)]
        picture = read_image(_content(record.get("image")), name)
        for box, view in zip(halves(picture.size), views, strict=True):
            save_image(picture.crop(box), view)
        for target in (1, 0) if self.swap else (1,):
            yield Draft(
                id=f"{name}-{target}",
                prompt=prompts[target],
                references=(views[1 - target],),
                subject=str(description.get("item") or ""),
                target=views[target],
                extra={"subject_id": name, "collection": str(record.get("collection") or "")},
            )


@final
class Hub(_Hub):
    """Any data set of the hub, or parquet files; options name the columns."""

    prompt: str = Field(default="prompt", description="column of the prompt")
    reference: str = Field(default="image", description="column of the reference image")
    target: str | None = Field(default=None, description="column of the target image")
    mask: str | None = Field(default=None, description="column of the reference's mask")
    subject: str | None = Field(default=None, description="column of the class word")
    subject_id: str | None = Field(default=None, description="column that identifies individuals")

    def rows(self, record: dict[str, Any], name: str, out: Path) -> Iterator[Item]:
        """One row; every image is written as a PNG file."""
        prompt = text_of(record, self.prompt)
        files: dict[str, Path] = {}
        for role, column in (("reference", self.reference), ("target", self.target), ("mask", self.mask)):
            if column is None or (role == "mask" and record.get(column) is None):
                continue
            files[role] = out / "images" / name[:-3] / f"{name}-{role}.png"
            save_image(read_image(_content(record.get(column)), f"{name}, column {column}"), files[role])
        yield Draft(
            id=name,
            prompt=prompt,
            references=(files["reference"],),
            subject="" if self.subject is None else text_of(record, self.subject),
            masks=(files["mask"],) if "mask" in files else (),
            target=files.get("target"),
            extra={} if self.subject_id is None else {"subject_id": str(record.get(self.subject_id))},
        )


def _read(source: str, table: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Records of a data set, which may be downloaded while they are read."""
    number = 0
    try:
        for number, record in enumerate(table, start=1):  # noqa: B007 - for the message
            yield record
    except Exception as error:  # a lost connection or a damaged file, of a dozen types
        raise SourceError(
            f"{source}: reading broke off after record {number}: {type(error).__name__}: {error}; try again"
        ) from error


def halves(size: tuple[int, int]) -> tuple[tuple[int, int, int, int], tuple[int, int, int, int]]:
    """Boxes of the two square views in a picture of Subjects200K.

    The views have sides of 512 or 1024 pixels; the padding around and between them differs by collection.

    Raises:
        ValueError: a picture of another shape.
    """
    width, height = size
    for side in (1024, 512):
        around, odd = divmod(height - side, 2)
        between = width - 2 * side - 2 * around
        if not odd and 0 <= around <= side // 8 and 0 <= between <= side // 8:
            bottom, right = around + side, around + side + between
            return (around, around, bottom, bottom), (right, around, right + side, bottom)
    raise ValueError(f"is {width} x {height}; two square views of 512 or 1024 pixels don't fit that")


def _content(value: Any) -> bytes:
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        return bytes(value["bytes"])
    if isinstance(value, dict) and isinstance(value.get("path"), str) and Path(value["path"]).is_file():
        return Path(value["path"]).read_bytes()
    raise ValueError(f"is not an image but {type(value).__name__}")
