"""Importer of picture folders as for DreamBooth: one folder for each subject, with scenes or with captions.

Where a picture has its caption beside it (``a.txt`` beside ``a.png``), the caption is the prompt, the picture its
target, and another picture of the subject the reference; else prompts come from templates and the class word.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Final, Literal, final

from pydantic import Field

from customized_grpo.data.folders import Inside, look_inside, mask_beside, masks_beside
from customized_grpo.prepare.importers.base import (
    Draft,
    Importer,
    Item,
    Rejected,
    Remark,
    Skipped,
    SourceError,
    folder_of,
    is_output,
)
from customized_grpo.prepare.importers.class_words import ask, class_word, read_class_words, told
from customized_grpo.prepare.importers.formats import without_twins
from customized_grpo.text import lines_of, read_text

_SCENES: Final = (
    "in the jungle", "in the snow", "on the beach", "on a cobblestone street", "on top of a wooden floor",
    "with a city in the background", "with a mountain in the background", "on a kitchen table at night",
    "in a meadow of wild flowers", "in front of a brick wall",
)  # fmt: skip
_TEMPLATES: Final = tuple(f"a {{}} {scene}" for scene in _SCENES)
INSTRUCTIONS: Final = "instructions"
"""The value of ``prompts`` for models that edit pictures, whose prompts say what to do instead of what is there."""
_INSTRUCTIONS: Final = tuple(f"{'Show' if one.startswith('with') else 'Place'} this {{}} {one}" for one in _SCENES)
_SYSTEM: Final = "files and folders of the system"
_WRITTEN: Final = "what an import wrote"
_TWIN: Final = "pictures that are there twice, by a link or in another format"


@dataclass(frozen=True, slots=True)
class _Subject:
    folder: Path
    inside: Inside
    captioned: bool
    """Its prompts are its captions."""


@final
class DreamBoothFolder(Importer):
    """One folder of pictures per subject (or the pictures of one subject), and captions or prompt templates."""

    prompts: str | None = Field(
        default=None,
        description="text file, one template per line with {} for the class word, or 'instructions': ten scenes as "
        "FLUX.1-Kontext and Qwen-Image-Edit are asked ('Place this dog in the snow'), both also where there are "
        "captions; null: the captions beside the pictures, else ten scenes ('a dog in the snow')",
    )
    classes: str | None = Field(
        default=None,
        description="file of lines 'folder,class word'; null: classes.txt, else the folders' names",
    )
    words: dict[str, Annotated[str, Field(pattern=r"\S")]] = Field(
        default={},
        description="class words by folder, as words={rex: dog}; they come before those of classes",
    )
    references: Literal["each", "first"] = Field(
        default="each",
        description="every picture is a reference for every prompt, or only the first picture",
    )

    def __call__(self, source: str, out: Path) -> Iterator[Item]:
        """Rows by subject, then picture, then prompt."""
        root = folder_of(source, "a folder of pictures for each subject")
        left_out: list[Item] = []
        subjects = [self._subject(folder, inside, left_out) for folder, inside in _subjects(root, out, left_out)]
        classes = root / "classes.txt" if self.classes is None else Path(self.classes).expanduser()
        given = {**self._given_words(classes, [one.folder.name for one in subjects]), **self.words}
        words = {one.folder.name: given.get(one.folder.name) or class_word(one.folder.name) for one in subjects}
        if unclear := [one.folder.name for one in subjects if not words[one.folder.name] and not one.captioned]:
            raise ask(unclear, classes)
        templates = self._templates()
        yield from (Remark(text) for text in told(words, given, classes))
        read = {os.path.abspath(path) for path in (classes, self.prompts) if path is not None}
        for item in left_out:
            if not isinstance(item, Rejected) or os.path.abspath(root / item.id) not in read:
                yield item
        for subject in subjects:
            yield from _unused(subject, root, out, read)
            word = words[subject.folder.name]
            yield from self._captioned(subject, word) if subject.captioned else self._scenes(subject, word, templates)

    def _subject(self, folder: Path, inside: Inside, left_out: list[Item]) -> _Subject:
        inside, twins = without_twins(inside)
        left_out += (Skipped(_TWIN, f"{folder.name}/{twin.name} ({first.name})") for twin, first in twins)
        return _Subject(folder, inside, self.prompts is None and bool(inside.captions))

    def _given_words(self, path: Path, folders: list[str]) -> dict[str, str]:
        if path.is_file():
            return read_class_words(path, lines_of(read_text(path)), folders)
        if self.classes is None:
            return {}
        raise SourceError(f"classes: {path}: no such file")

    def _templates(self) -> list[str]:
        if self.prompts is None:
            return list(_TEMPLATES)
        if self.prompts == INSTRUCTIONS:
            return list(_INSTRUCTIONS)
        return _read_templates(Path(self.prompts).expanduser())

    def _scenes(self, subject: _Subject, word: str, templates: list[str]) -> Iterator[Item]:
        pictures = subject.inside.pictures
        if subject.inside.captions:
            yield Remark(f"{subject.folder.name}: its captions are not read, because prompts={self.prompts} is given")
        for picture in pictures if self.references == "each" else pictures[:1]:
            for number, template in enumerate(templates):
                yield Draft(
                    id=f"{subject.folder.name}-{picture.stem}-{number:02d}",
                    prompt=_filled(template, word),
                    references=(picture,),
                    subject=word,
                    masks=masks_beside([picture]),
                    views=pictures,
                    extra={"subject_id": subject.folder.name},
                )

    def _captioned(self, subject: _Subject, word: str) -> Iterator[Item]:
        folder, pictures, captions = subject.folder, subject.inside.pictures, subject.inside.captions
        yield Remark(
            f"{folder.name}: {len(captions)} of {len(pictures)} pictures have a caption beside them, which is the "
            "prompt in place of scenes; its picture is the target, "
            + ("another one the reference" if len(pictures) > 1 else "and the reference too, because there is no other")
        )
        for target in pictures:
            name = f"{folder.name}/{target.name}"
            if target not in captions:
                yield Rejected(name, "has no caption, as others of its folder have", "file")
                continue
            try:
                prompt = _read_caption(captions[target])
            except ValueError as error:
                yield Rejected(name, str(error), "file")
                continue
            others = [picture for picture in pictures if picture != target] or [target]
            for reference in others if self.references == "each" else others[:1]:
                yield Draft(
                    id=f"{folder.name}-{target.stem}-{reference.stem}",
                    prompt=prompt,
                    references=(reference,),
                    subject=word,
                    masks=masks_beside([reference]),
                    target=target,
                    target_mask=mask_beside(target),
                    views=pictures,
                    extra={"subject_id": folder.name},
                )


def _subjects(root: Path, out: Path, left_out: list[Item]) -> list[tuple[Path, Inside]]:
    """The subjects' folders; what else lies in the root is added to ``left_out``.

    Raises:
        SourceError: the root's pictures and its folders could both be the subjects.
    """
    top = _without_output(look_inside(root), out, left_out)
    below: dict[Path, Inside] = {}
    unlisted: list[Item] = []
    for folder in top.folders:
        try:
            below[folder] = look_inside(folder)
        except OSError as error:
            unlisted.append(Rejected(folder.name, f"can't be listed ({error.strerror})", "file"))
    real = {os.path.realpath(folder): folder for folder in sorted(below, key=lambda one: not one.is_symlink())}
    for folder in [folder for folder in below if real[os.path.realpath(folder)] != folder]:
        other = real[os.path.realpath(folder)].name
        unlisted.append(Rejected(folder.name, f"is a link to {other}, which is read under that name", "file"))
        del below[folder]
    subjects = [(folder, inside) for folder, inside in below.items() if inside.pictures]
    if not subjects and top.pictures:
        return [(root, top)]
    left_out += unlisted
    names = ", ".join(folder.name for folder, _ in subjects[:3]) + (", ..." if len(subjects) > 3 else "")
    if len(top.pictures) > len(subjects):
        raise SourceError(
            f"{root}: holds {len(top.pictures)} pictures and {len(subjects)} folders of pictures ({names}), and either "
            "could be meant; move the pictures into a folder of their subject, or the folders elsewhere"
        )
    for picture in top.pictures:
        reason = f"lies beside the subjects' folders ({names}); move it into the folder of its subject"
        left_out.append(Rejected(picture.name, reason, "file"))
    left_out += (Rejected(path.name, reason, "file") for path, reason in top.others.items())
    left_out += (Skipped(_SYSTEM, path.name) for path in top.system)
    left_out += (
        Rejected(folder.name, _empty(inside), "file") for folder, inside in below.items() if not inside.pictures
    )
    return subjects


def _without_output(inside: Inside, out: Path, left_out: list[Item]) -> Inside:
    """The root's content without what an import wrote there, which is added to ``left_out``."""
    written = {path for path in (*inside.pictures, *inside.folders, *inside.others) if is_output(path, out)}
    left_out += (Skipped(_WRITTEN, path.name) for path in sorted(written))
    return replace(
        inside,
        pictures=tuple(path for path in inside.pictures if path not in written),
        folders=tuple(path for path in inside.folders if path not in written),
        others={path: reason for path, reason in inside.others.items() if path not in written},
        # those that are being written now have names by chance
        system=tuple(path for path in inside.system if not path.name.startswith((".manifest-", ".rejected-"))),
    )


def _empty(inside: Inside) -> str:
    deeper = [folder.name for folder in inside.folders if look_inside(folder).pictures]
    if deeper:
        shown = ", ".join(deeper[:3]) + (", ..." if len(deeper) > 3 else "")
        return f"there are pictures only in folders below it ({shown}); import it as a source of its own"
    return next(
        (f"there is no picture in it: {path.name} {why}" for path, why in inside.others.items()),
        "there is no picture in it",
    )


def _unused(subject: _Subject, root: Path, out: Path, read: set[str]) -> Iterator[Item]:
    """What is in a subject's folder besides its pictures, masks and captions."""
    inside = subject.inside

    def name(path: Path) -> str:
        return path.relative_to(root).as_posix()

    for path, reason in inside.others.items():
        if os.path.abspath(path) not in read:
            yield Rejected(name(path), reason, "file")
    for folder in inside.folders:
        if is_output(folder, out):
            yield Skipped(_WRITTEN, name(folder))
        else:
            reason = "is a folder inside a subject's folder, which isn't read; make it a subject's folder"
            yield Rejected(name(folder), reason, "file")
    yield from (Skipped(_SYSTEM, name(path)) for path in inside.system)


def _read_caption(files: tuple[Path, ...]) -> str:
    """The prompt of one picture.

    Raises:
        ValueError: it is empty, has several lines, or there are two that differ.
    """
    found: Mapping[str, Path] = {read_text(file).strip(): file for file in files}
    if len(found) > 1:
        raise ValueError(f"{' and '.join(map(str, files))} differ; keep one")
    ((text, file),) = found.items()
    if not text:
        raise ValueError(f"{file}: the caption is empty")
    if len(lines := [line for line in lines_of(text) if line.strip()]) > 1:
        # one caption, several to choose from, or the first alone: each is some trainer's rule
        raise ValueError(
            f"{file}: the caption has {len(lines)} lines, which tools read in different ways; write one line"
        )
    return text


def _filled(template: str, word: str) -> str:
    """A template with the class word in it; 'a {}' of an umbrella is 'an umbrella'."""
    article = r"\1n {}" if word[:1].lower() in tuple("aeio") or word.lower().startswith("umbrella") else r"\1 {}"
    return re.sub(r"\b([Aa]) \{\}", article, template).replace("{}", word)


def _read_templates(path: Path) -> list[str]:
    if not path.is_file():
        raise SourceError(f"prompts: {path}: no such file")
    templates = [line.strip() for line in lines_of(read_text(path)) if line.strip()]
    if not templates or not all("{}" in template for template in templates):
        wrong = next((template for template in templates if "{}" not in template), "")
        raise SourceError(f"prompts: {path}: given {wrong!r}; every line needs {{}} in place of the class word")
    return templates
