"""Subject masks of a manifest's references, made once as files ``<name>_seg.png`` and named by a new manifest.

A mask made during a run would be a hidden part of its reward; made here, it can be inspected, corrected and shared.
The work can be interrupted and resumed; a mask of another picture or word is made anew. A picture that can't be read or
has no subject gets null and is reported.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from PIL import Image

from customized_grpo.atomic import replacing
from customized_grpo.data.images import ImageError, load_image, load_mask, save_image
from customized_grpo.data.rows import Row, sound_rows
from customized_grpo.paths import is_inside
from customized_grpo.prepare.mask_record import MaskRecord
from customized_grpo.rewards.segmenter import class_words
from customized_grpo.text import parse_json, read_text

Segment = Callable[[Image.Image, str], Image.Image | None]
"""Maps a picture and a class word to a mask of the picture's size, or to None if the subject isn't found."""


class Wanted(NamedTuple):
    """A reference without a mask, and the class word to segment."""

    reference: str
    word: str


@dataclass(slots=True)
class MaskReport:
    """Result of ``make_masks``.

    Attributes:
        made: number of masks made, those that were made anew among them.
        anew: number of masks made anew, because the picture or the word is another than before.
        kept: number of masks kept from an earlier call.
        problems: reference to the reason why it has no mask.
    """

    manifest: Path
    made: int = 0
    anew: int = 0
    kept: int = 0
    problems: dict[Wanted, str] = field(default_factory=dict)


def make_masks(
    manifest: Path,
    segment: Segment,
    *,
    settings: Mapping[str, Any],
    folder: str | None = "masks",
    target: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> MaskReport:
    """Make every mask that a manifest lacks, and write a manifest with them. Masks that it names stay.

    Args:
        settings: settings of ``segment``, saved beside the masks; a later call with other settings is refused. An entry
            ``content`` maps settings that name models to their content, or to None where that isn't known.
        folder: output folder inside the manifest's folder; None: beside the pictures.
        target: the new manifest, in the folder of the old one; by default ``<name>-masks.jsonl``.

    Raises:
        ManifestError: a line is not a manifest row.
        ValueError: ``target`` or ``folder`` lies elsewhere, or there are masks of other settings.
    """
    root = manifest.parent
    target = target or _target(manifest)
    if target.resolve().parent != root.resolve() or target.resolve() == manifest.resolve():
        raise ValueError(
            f"{target}: the new manifest must lie beside the old one ({root}), because its paths are relative to it, "
            "and under another name"
        )
    if folder is not None and not is_inside(folder):
        raise ValueError(f"{folder!r}: masks must lie inside the manifest's folder; give a relative path without '..'")
    rows, wanted = _missing(manifest)
    _claim(target.with_suffix(".settings.json"), settings)
    report, record = MaskReport(target), _record(target)
    names = _names(wanted, folder)
    found: dict[Wanted, str | None] = {}
    for done, one in enumerate(wanted, start=1):
        found[one] = _one(root, one, names[one], segment, report, record)
        progress(done, len(wanted))
    lines = (json.dumps(_filled(row, found), ensure_ascii=False) + "\n" for row in rows)
    with replacing(target) as aside:
        aside.write_text("".join(lines), encoding="utf-8")
    return report


def is_any_missing(manifest: Path, folder: str | None, target: Path | None = None) -> bool:
    """True if ``make_masks`` has to segment something, so that the model must be loaded.

    Raises:
        ManifestError: a line is not a manifest row.
    """
    _, wanted = _missing(manifest)
    record = _record(target or _target(manifest))
    return any(_is_unmade(manifest.parent, one, name, record) for one, name in _names(wanted, folder).items())


def _target(manifest: Path) -> Path:
    return manifest.with_name(f"{manifest.stem}-masks.jsonl")


def _record(target: Path) -> MaskRecord:
    return MaskRecord(target.with_suffix(".made.jsonl"))


def _is_unmade(root: Path, one: Wanted, name: str, record: MaskRecord) -> bool:
    try:
        if not one.word:
            return False
        image = load_image(root / one.reference)
        verdict = record.verdict(name, root / name, root / one.reference, image, one.word)
        return verdict == "stale" or (verdict == "fits" and not _is_whole(root / name, image.size))
    except (ImageError, OSError):
        return False  # a problem that no model solves


def _one(root: Path, one: Wanted, name: str, segment: Segment, report: MaskReport, record: MaskRecord) -> str | None:
    """The mask's path, made or kept; None with the reason in the report."""
    file = root / name
    try:
        if not one.word:
            raise ValueError("its row has no subject, so there is no word to look for")
        image = load_image(root / one.reference)
        verdict = record.verdict(name, file, root / one.reference, image, one.word)
        if verdict == "corrected":
            raise ValueError(
                f"{name} was laid or corrected by hand, and since then the picture or the word {one.word!r} has "
                "changed; correct it again, or remove it to have it made anew"
            )
        if verdict == "fits" and _is_whole(file, image.size):
            record.add(name, file, image, one.word, made=False)
            report.kept += 1
            return name
        mask = segment(image, one.word)
    # Anything may be wrong with one picture of thousands; report it, and continue hours of work.
    except (ImageError, ValueError, OSError) as error:
        report.problems[one] = str(error)
        return None
    if mask is None:
        report.problems[one] = f"no {one.word!r} was found"
        return None
    save_image(mask.convert("L"), file)
    record.add(name, file, image, one.word, made=True)
    report.made += 1
    report.anew += verdict == "stale"
    return name


def _is_whole(file: Path, size: tuple[int, int]) -> bool:
    try:
        return file.is_file() and load_mask(file).size == size
    except ImageError:
        return False


def _pairs(row: Row) -> list[tuple[Wanted, str | None]]:
    words = class_words(row.subject, row.extra, len(row.references))
    masks = row.masks or [None] * len(row.references)
    return [(Wanted(*one), mask) for *one, mask in zip(row.references, words, masks, strict=True)]


def _missing(manifest: Path) -> tuple[list[Row], list[Wanted]]:
    """All rows, and the references without a mask, each once."""
    rows = [row for _, row in sound_rows(manifest)]
    pairs = (pair for row in rows for pair in _pairs(row))
    return rows, list(dict.fromkeys(wanted for wanted, mask in pairs if mask is None))


def _filled(row: Row, found: Mapping[Wanted, str | None]) -> dict[str, Any]:
    masks = [found.get(wanted) if mask is None else mask for wanted, mask in _pairs(row)]
    return {**row.model_dump(exclude_unset=True), "masks": masks}


def _names(wanted: list[Wanted], folder: str | None) -> dict[Wanted, str]:
    """File names ``<name>_seg.png``, with the suffix or the word added if two masks would share a name."""

    def name(one: Wanted, keep_suffix: bool, keep_word: bool) -> str:
        path = PurePosixPath(one.reference)
        base = path.name if keep_suffix else path.stem
        word = f"_{''.join(c if c.isalnum() else '-' for c in one.word)}" if keep_word else ""
        return str((PurePosixPath(folder or "") / path).with_name(f"{base}_seg{word}.png"))

    plain = Counter(str(PurePosixPath(path).with_suffix("")) for path in {one.reference for one in wanted})
    words = Counter(one.reference for one in wanted)
    return {
        one: name(one, plain[str(PurePosixPath(one.reference).with_suffix(""))] > 1, words[one.reference] > 1)
        for one in wanted
    }


def _claim(file: Path, settings: Mapping[str, Any]) -> None:
    """Record the settings of the masks, or raise if they were made with others.

    A model counts by its content where that is known of both, else by its name.
    """
    saved = parse_json(read_text(file)) if file.is_file() else dict(settings)
    before, now = (one.get("content") or {} for one in (saved, settings))
    for key in (saved.keys() | settings.keys()) - {"content"}:
        known = before.get(key) is not None and now.get(key) is not None
        if before[key] != now[key] if known else saved.get(key) != settings.get(key):
            raise ValueError(
                f"{file}: masks were made there with other settings; give another folder and another manifest, or "
                f"remove that file and the masks. It says {saved}; asked for now: {dict(settings)}"
            )
    content = {key: value if value is not None else before.get(key) for key, value in now.items()}
    with replacing(file) as aside:
        text = json.dumps({**settings, **({"content": content} if content else {})}, indent=1, sort_keys=True)
        aside.write_text(f"{text}\n", encoding="utf-8")
