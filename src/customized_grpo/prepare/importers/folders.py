"""Importers of picture folders: one folder per subject as for DreamBooth, and Hugging Face's imagefolder.

Masks beside pictures (``03_seg.png`` beside ``03.jpg``) are imported too.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, final

from pydantic import Field

from customized_grpo.data.images import images_in, mask_beside, masks_beside
from customized_grpo.prepare.importers.base import (
    Draft,
    Importer,
    Item,
    Rejected,
    SourceError,
    folder_of,
    paths_of,
    text_of,
)
from customized_grpo.text import TextError, lines_of, parse_json, read_lines, read_table, read_text

T = TypeVar("T")

_TEMPLATES: Final = tuple(
    f"a {{}} {scene}"
    for scene in (
        "in the jungle", "in the snow", "on the beach", "on a cobblestone street", "on top of a wooden floor",
        "with a city in the background", "with a mountain in the background", "on a kitchen table at night",
        "in a meadow of wild flowers", "in front of a brick wall",
    )
)  # fmt: skip
_PROMPT_KEYS: Final = ("prompt", "caption", "text")


@final
class DreamBoothFolder(Importer):
    """One folder of pictures per subject (or the pictures of one subject), and prompt templates."""

    prompts: str | None = Field(
        default=None,
        description="text file, one template per line with {} for the class word; null: ten scenes",
    )
    classes: str | None = Field(
        default=None,
        description="file of lines 'folder,class word'; null: classes.txt, else the folders' names",
    )
    references: Literal["each", "first"] = Field(
        default="each",
        description="every picture is a reference for every prompt, or only the first picture",
    )

    def __call__(self, source: str, out: Path) -> Iterator[Item]:
        """Rows by subject, then picture, then prompt."""
        root = folder_of(source, "a folder of pictures for each subject")
        subjects = [root] if images_in(root) else sorted(path for path in root.iterdir() if path.is_dir())
        words = self._class_words(root)
        templates = list(_TEMPLATES) if self.prompts is None else _read_templates(Path(self.prompts).expanduser())
        for folder in subjects:
            pictures = images_in(folder)
            if not pictures:
                yield Rejected(folder.name, f"{folder}: there is no picture in it")
                continue
            word = words.get(folder.name) or re.sub(r"[_\-\s]*\d*$", "", folder.name).replace("_", " ").strip()
            for picture in pictures if self.references == "each" else pictures[:1]:
                for number, template in enumerate(templates):
                    yield Draft(
                        id=f"{folder.name}-{picture.stem}-{number:02d}",
                        prompt=template.replace("{}", word or folder.name),
                        references=(picture,),
                        subject=word,
                        masks=masks_beside([picture]),
                        views=tuple(pictures),
                        extra={"subject_id": folder.name},
                    )

    def _class_words(self, root: Path) -> dict[str, str]:
        path = root / "classes.txt" if self.classes is None else Path(self.classes).expanduser()
        if not path.is_file():
            if self.classes is None:
                return {}
            raise SourceError(f"classes: {path}: no such file")
        words = {}
        for number, line in enumerate(lines_of(_whole(path)), start=1):
            if line.strip():
                name, comma, word = line.partition(",")
                if not comma or not word.strip():
                    raise SourceError(f"{path}:{number}: given {line!r}; write 'folder,class word'")
                words[name.strip()] = word.strip()
        return words


@final
class ImageFolder(Importer):
    """Hugging Face's imagefolder: pictures and metadata.jsonl or metadata.csv with a caption for each."""

    prompt: str | None = Field(default=None, description="column of the prompt; null: prompt, caption or text")
    reference: str = Field(default="file_name", description="column of the reference's path, or a list of paths")
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
        entries = list(_read_metadata(folder))
        if self.pairs == "subject" and self.subject_id is None:
            raise SourceError("pairs=subject needs subject_id=COLUMN, which says whose pictures belong together")
        others: dict[str, list[str]] = {}
        if self.subject_id is not None:
            for _, entry in entries:
                if isinstance(entry, dict) and entry.get(self.subject_id) and entry.get(self.reference):
                    others.setdefault(str(entry[self.subject_id]), []).append(str(entry[self.reference]))
        for number, entry in entries:
            if isinstance(entry, str):
                yield Rejected(f"line-{number}", entry)
                continue
            try:
                yield self._row(entry, number, folder, others)
            except ValueError as error:
                yield Rejected(f"line-{number}", f"metadata, line {number}: {error}")

    def _row(self, entry: dict[str, Any], number: int, folder: Path, others: dict[str, list[str]]) -> Draft:
        prompt = self.prompt or next((key for key in _PROMPT_KEYS if key in entry), "caption")
        identity = "" if self.subject_id is None else str(entry.get(self.subject_id) or "")
        target = None if self.target is None else folder / text_of(entry, self.target)
        references = paths_of(entry, self.reference)
        name = Path(references[0]).with_suffix("").as_posix().replace("/", "-")
        mask = None if self.mask is None or not entry.get(self.mask) else folder / text_of(entry, self.mask)
        target_mask = None if target is None else mask_beside(target)
        if self.pairs == "subject":
            group = others.get(identity, [])
            if len(group) < 2:
                raise ValueError(f"there is no other picture of {self.subject_id}={identity!r}")
            target = folder / references[0]
            target_mask, mask = (
                mask or mask_beside(target),
                None,
            )  # the line's mask belongs to the line's picture
            references = [group[(group.index(references[0]) + 1) % len(group)]]
        pictures = [folder / path for path in references]
        beside = masks_beside(pictures)
        return Draft(
            id=name,
            prompt=text_of(entry, prompt),
            references=tuple(pictures),
            subject="" if self.subject is None else str(entry.get(self.subject) or ""),
            masks=beside if mask is None else (mask, *(beside[1:] or [None] * (len(references) - 1))),
            target=target,
            target_mask=target_mask,
            extra={"subject_id": identity} if identity else {},
        )


def _read_templates(path: Path) -> list[str]:
    if not path.is_file():
        raise SourceError(f"prompts: {path}: no such file")
    templates = [line.strip() for line in lines_of(_whole(path)) if line.strip()]
    if not templates or not all("{}" in template for template in templates):
        wrong = next((template for template in templates if "{}" not in template), "")
        raise SourceError(f"prompts: {path}: given {wrong!r}; every line needs {{}} in place of the class word")
    return templates


def _whole(path: Path) -> str:
    try:
        return read_text(path)
    except TextError as error:
        raise SourceError(str(error)) from error


def _of_file(entries: Iterator[tuple[int, T]]) -> Iterator[tuple[int, T]]:
    try:
        yield from entries
    except TextError as error:
        raise SourceError(str(error)) from error


def _read_metadata(folder: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Lines by number: an object, or the error as text."""
    lines, table = folder / "metadata.jsonl", folder / "metadata.csv"
    if lines.is_file():
        for number, line in _of_file(read_lines(lines)):
            if isinstance(line, str) and not line.strip():
                continue
            try:
                if isinstance(line, TextError):
                    raise line
                entry = parse_json(line)
            except ValueError as error:
                yield number, f"metadata.jsonl:{number}: {error}"
            else:
                fine = isinstance(entry, dict)
                yield number, entry if fine else f"metadata.jsonl:{number}: is not an object: {entry!r}"
    elif table.is_file():
        for number, record in _of_file(read_table(table)):
            yield number, f"metadata.csv:{number}: {record}" if isinstance(record, TextError) else record
    else:
        raise SourceError(f"{folder}: there is no metadata.jsonl or metadata.csv in it")
