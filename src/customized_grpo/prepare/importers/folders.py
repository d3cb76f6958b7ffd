"""Importer of Hugging Face's imagefolder: a folder of pictures, and a table with a caption for each.

Masks beside pictures (``03_seg.png`` beside ``03.jpg``) are imported too.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal, final

from pydantic import Field

from customized_grpo.data.folders import UNREAD, look_inside, mask_beside, masks_beside
from customized_grpo.data.names import Names
from customized_grpo.data.rows import is_nothing
from customized_grpo.paths import folders_under
from customized_grpo.prepare.importers.base import (
    Draft,
    Importer,
    Item,
    Rejected,
    Remark,
    Skipped,
    SourceError,
    folder_of,
    individuals_of,
    is_output,
    paths_of,
    text_of,
    word_of,
)
from customized_grpo.text import TextError, read_table
from customized_grpo.text.json_lines import read_json_lines

_REFERENCE_KEYS: Final = (
    "image", "images", "img", "file", "files", "filename", "file_names", "path", "image_path", "image_file", "picture",
)  # fmt: skip
"""Columns of tables made for other tools that hold a picture's path."""
_PROMPT_KEYS: Final = ("prompt", "caption", "text")


@final
class ImageFolder(Importer):
    """Hugging Face's imagefolder: pictures and metadata.jsonl or metadata.csv with a caption for each."""

    prompt: str | None = Field(default=None, description="column of the prompt; null: prompt, caption or text")
    reference: str | list[str] = Field(
        default="file_name",
        description="column of the reference's path or list of paths; for several references also a list of columns",
    )
    target: str | None = Field(default=None, description="column of the target's path")
    mask: str | None = Field(default=None, description="column of the reference's mask")
    subject: str | None = Field(default=None, description="column of the class word")
    subject_id: str | None = Field(default=None, description="column that identifies individuals")
    pairs: Literal["same", "subject"] = Field(
        default="same",
        description="reference and prompt of one line, or another picture of the same subject_id as the reference",
    )

    def __call__(self, source: str, out: Path) -> Iterator[Item]:
        """Rows in the order of the metadata."""
        folder = folder_of(source, "pictures and metadata.jsonl or metadata.csv")
        if self.pairs == "subject" and self.subject_id is None:
            raise SourceError("pairs=subject needs subject_id=COLUMN, which says whose pictures belong together")
        names = Names(folder)
        entries = list(_read_metadata(folder, self._columns[0]))
        self._take_columns(folder, [entry for _, entry in entries if isinstance(entry, dict)])
        yield from self._remarks([entry for _, entry in entries if isinstance(entry, dict)])
        others = self._pictures_of([entry for _, entry in entries if isinstance(entry, dict)], names)
        for number, entry in entries:
            if isinstance(entry, str):
                yield Rejected(f"line-{number}", entry)
                continue
            try:
                yield self._row(entry, names, others)
            except ValueError as error:
                yield Rejected(f"line-{number}", f"metadata, line {number}: {error}")
        named = {os.path.abspath(path) for _, entry in entries for path in self._files(entry, names)}
        yield from _unnamed(folder, out, named)

    @property
    def _columns(self) -> list[str]:
        """Columns of the references."""
        return [self.reference] if isinstance(self.reference, str) else self.reference

    def _take_columns(self, folder: Path, entries: list[dict[str, Any]]) -> None:
        """Call the columns as the options do where they differ in case alone.

        Raises:
            SourceError: no line has a column that is asked for.
        """
        there = list(dict.fromkeys(key for entry in entries for key in entry))
        others = ("prompt", "target", "mask", "subject", "subject_id")
        asked = [("reference", name) for name in self._columns] + [(name, self.model_dump()[name]) for name in others]
        for option, name in asked:
            if entries and name is not None and name not in there:
                if not (found := _alike(name, there)):
                    raise SourceError(_no_column(folder, option, name, there))
                _rename(entries, found, name)
        if self.prompt is None and not set(_PROMPT_KEYS) & set(there):
            for name in _PROMPT_KEYS:
                if found := _alike(name, there):
                    _rename(entries, found, name)

    def _remarks(self, entries: list[dict[str, Any]]) -> Iterator[Remark]:
        columns = [key for key in _PROMPT_KEYS if any(key in entry for entry in entries)]
        if self.prompt is None and len(columns) > 1:
            yield Remark(
                f"prompts are the column {columns[0]}, or where it is missing {columns[1]}; prompt=COLUMN for another"
            )
        if self.subject_id is not None:
            without = sum(is_nothing(entry.get(self.subject_id)) for entry in entries)
            if without:
                yield Remark(f"{without} lines name no individual: their {self.subject_id} is empty")

    def _pictures_of(self, entries: list[dict[str, Any]], names: Names) -> dict[str, list[str]]:
        """First references by individual."""
        found: dict[str, list[str]] = {}
        for entry in entries if self.subject_id is not None else ():
            with suppress(ValueError):  # reported with its row
                individual = individuals_of(entry, str(self.subject_id))
                if individual and isinstance(individual, str):
                    found.setdefault(individual, []).append(self._references(entry, names)[0])
        return found

    def _references(self, entry: dict[str, Any], names: Names) -> list[str]:
        return [path for column in self._columns for path in paths_of(entry, column, names)]

    def _files(self, entry: dict[str, Any] | str, names: Names) -> Iterator[Path]:
        """All files that a line names, also where it is no row."""
        for column in (*self._columns, self.target, self.mask):
            if isinstance(entry, dict) and column is not None:
                with suppress(ValueError):
                    yield from map(names, paths_of(entry, column, names))

    def _row(self, entry: dict[str, Any], names: Names, others: dict[str, list[str]]) -> Draft:
        prompt = self.prompt or next((key for key in _PROMPT_KEYS if not is_nothing(entry.get(key))), "caption")
        identity = "" if self.subject_id is None else individuals_of(entry, self.subject_id)
        target = None if self.target is None else names(text_of(entry, self.target))
        references = self._references(entry, names)
        name = Path(references[0]).with_suffix("").as_posix().replace("/", "-")
        mask = None if self.mask is None or is_nothing(entry.get(self.mask)) else names(text_of(entry, self.mask))
        target_mask = None if target is None else mask_beside(target)
        if self.pairs == "subject":
            group = others.get(identity, []) if isinstance(identity, str) else []
            if len(group) < 2:
                raise ValueError(f"there is no other picture of {self.subject_id}={identity!r}")
            target = names(references[0])
            # the line's mask belongs to the line's picture
            target_mask, mask = mask or mask_beside(target), None
            references = [group[(group.index(references[0]) + 1) % len(group)]]
        pictures = [names(path) for path in references]
        beside = masks_beside(pictures)
        return Draft(
            id=name,
            prompt=text_of(entry, prompt),
            references=tuple(pictures),
            subject="" if self.subject is None else word_of(entry, self.subject),
            masks=beside if mask is None else (mask, *(beside[1:] or [None] * (len(references) - 1))),
            target=target,
            target_mask=target_mask,
            extra={"subject_id": identity} if identity else {},
        )


def _unnamed(folder: Path, out: Path, named: set[str]) -> Iterator[Item]:
    """Pictures that the metadata doesn't name, and files that look like some but aren't read."""
    for inside in map(look_inside, folders_under(folder, lambda path: is_output(path, out))):
        for path in inside.pictures:
            if os.path.abspath(path) not in named and not is_output(path, out):
                yield Skipped("pictures that the metadata doesn't name", path.relative_to(folder).as_posix())
        for path, reason in inside.others.items():
            if path.suffix.lower() in UNREAD and os.path.abspath(path) not in named:
                yield Rejected(path.relative_to(folder).as_posix(), reason, "file")


def _read_metadata(folder: Path, column: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Lines by number: an object, or the error as text."""
    lines, table = folder / "metadata.jsonl", folder / "metadata.csv"
    if lines.is_file() and table.is_file():
        raise SourceError(f"{folder}: there are metadata.jsonl and metadata.csv in it; remove the one that isn't meant")
    if lines.is_file():
        for number, entry in read_json_lines(lines):
            reason = entry if isinstance(entry, ValueError) else f"is not an object: {entry!r}"
            yield number, entry if isinstance(entry, dict) else f"metadata.jsonl:{number}: {reason}"
    elif table.is_file():
        for number, record in read_table(table, column):
            yield number, f"metadata.csv:{number}: {record}" if isinstance(record, TextError) else record
    else:
        raise SourceError(f"{folder}: there is no metadata.jsonl or metadata.csv in it{_instead(folder)}")


def _alike(name: str, there: list[str]) -> str:
    """The only column that differs from a name in case and spaces alone; empty if there is none."""
    found = [key for key in there if key.strip().casefold() == name.casefold()]
    return found[0] if len(found) == 1 else ""


def _rename(entries: list[dict[str, Any]], found: str, name: str) -> None:
    for entry in entries:
        if found in entry:
            entry[name] = entry.pop(found)


def _no_column(folder: Path, option: str, name: str, there: list[str]) -> str:
    near = [key for key in there if key.casefold() in _REFERENCE_KEYS] if option == "reference" else []
    meant = f"{near[0]}, if that is it" if near else "COLUMN"
    return f"{folder}: no line has the column {name!r}; there are {', '.join(there)}; name it: {option}={meant}"


def _instead(folder: Path) -> str:
    """A hint at what is in a folder without metadata."""
    inside = look_inside(folder)
    if inside.captions:
        return ", but captions beside pictures, which dreambooth-folder reads"
    parts = [
        path.name for path in inside.folders if any((path / f"metadata.{form}").is_file() for form in ("jsonl", "csv"))
    ]
    if parts:
        return f", but in {', '.join(parts)}: give one of them, because splits are not mixed"
    if any(look_inside(path).pictures for path in inside.folders):
        return ", but folders of pictures, which dreambooth-folder reads"
    tables = [path.name for path in inside.others if path.suffix in (".csv", ".tsv", ".jsonl", ".json", ".parquet")]
    return f"; rename {tables[0]} if it is that" if tables else ""
