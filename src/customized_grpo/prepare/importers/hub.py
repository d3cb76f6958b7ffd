"""Importers of Hugging Face data sets by the library ``datasets`` (an extra), streamed by default.

Nothing is downloaded unless a hub id is given. Pictures inside tables become PNG files.
"""

from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, final

from pydantic import Field

from customized_grpo.data.images import ImageError, read_image, save_image
from customized_grpo.prepare.importers.base import (
    Draft,
    Importer,
    Item,
    Rejected,
    Remark,
    Skipped,
    individuals_of,
    text_of,
)
from customized_grpo.prepare.importers.hub_tables import Wanted, open_table


class _Hub(Importer):
    """Records of a hub id, of a folder of parquet files, or of one such file."""

    prefix: ClassVar[str] = "row"
    """Prefix of the ids of rows."""

    split: str | None = Field(default=None, description="split of the data set; null: the only one")
    config: str | None = Field(default=None, description="configuration (subset) of the data set; null: the only one")
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
        number = 0
        for record in self.records(source):
            if isinstance(record, Remark):
                yield record
                continue
            name = f"{self.prefix}-{number:06d}"
            number += 1
            try:
                yield from self.rows(record, name, out)
            except ValueError as error:
                yield Rejected(name, error.reason if isinstance(error, ImageError) else str(error))

    def records(self, source: str) -> Iterator[Remark | dict[str, Any]]:
        """What is said about the table, and its records, with images as ``{"bytes", "path"}``.

        Raises:
            SourceError: see ``open_table``.
        """
        wanted = Wanted(split=self.split, config=self.config, revision=self.revision, streaming=self.streaming)
        table = open_table(source, wanted)
        yield from map(Remark, table.remarks)
        yield from table.records


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
    reference: str | list[str] = Field(
        default="image",
        description="column of the reference image or images; for several references also a list of columns",
    )
    target: str | None = Field(default=None, description="column of the target image")
    mask: str | None = Field(default=None, description="column of the reference's mask, or of all references' masks")
    subject: str | None = Field(default=None, description="column of the class word")
    subject_id: str | None = Field(default=None, description="column that identifies individuals")

    def rows(self, record: dict[str, Any], name: str, out: Path) -> Iterator[Item]:
        """One row; every image is written as a PNG file."""
        prompt = text_of(record, self.prompt)
        subject = "" if self.subject is None else text_of(record, self.subject)
        individual = "" if self.subject_id is None else individuals_of(record, self.subject_id)
        columns = [self.reference] if isinstance(self.reference, str) else self.reference
        references = [image for column in columns for image in _images(record, column)]
        masks = [] if self.mask is None or record.get(self.mask) is None else _images(record, self.mask)
        targets = [] if self.target is None else _images(record, self.target)
        if masks and len(masks) != len(references):
            raise ValueError(f"{self.mask}: {len(masks)} masks for {len(references)} references")
        if len(targets) > 1:
            raise ValueError(f"{self.target}: holds {len(targets)} images; a row has one target")

        def files(role: str, images: list[bytes]) -> tuple[Path, ...]:
            ends = [""] if len(images) == 1 else [f"-{number}" for number in range(len(images))]
            paths = tuple(out / "images" / name[:-3] / f"{name}-{role}{end}.png" for end in ends)
            for path, image in zip(paths, images, strict=True):
                save_image(read_image(image, f"{name}, {role}"), path)
            return paths

        yield Draft(
            id=name,
            prompt=prompt,
            references=files("reference", references),
            subject=subject,
            masks=files("mask", masks) if masks else (),
            target=files("target", targets)[0] if targets else None,
            extra={"subject_id": individual} if individual else {},
        )


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


def _images(record: dict[str, Any], column: str) -> list[bytes]:
    """Content of a column's image, or of the images of a list."""
    if column not in record:
        raise ValueError(f"has no column {column!r}; columns: {', '.join(record)}")
    value = record[column]
    found = [_content(one) for one in value] if isinstance(value, list) else [_content(value)]
    if not found:
        raise ValueError(f"{column}: holds no image")
    return found


def _content(value: Any) -> bytes:
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        return bytes(value["bytes"])
    if isinstance(value, dict) and isinstance(value.get("path"), str) and Path(value["path"]).is_file():
        return Path(value["path"]).read_bytes()
    if isinstance(value, str):
        raise ValueError(f"is text, not an image: {value!r:.80}; 'imagefolder' reads tables of paths")
    raise ValueError(f"is not an image but {type(value).__name__}")
