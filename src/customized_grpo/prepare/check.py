"""Check of a whole manifest for broken, doubtful and duplicate entries; it reports all problems, not just the first."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import final

from customized_grpo.atomic import replacing
from customized_grpo.data.prompts import PromptSurvey, survey
from customized_grpo.data.rows import ManifestError, Row, read_rows, same_shape
from customized_grpo.prepare.inspection import Look, Seen, lookers
from customized_grpo.prepare.split import identities
from customized_grpo.text import read_lines

File = tuple[str, bool]
"""Path in the manifest, and whether it is a mask."""

SMALL = 256
"""Shorter side (pixels) below which an image is reported: UNO uses references at 512, or 320 for several."""


@final
@dataclass(frozen=True, slots=True)
class Broken:
    """A file that can't be used."""

    path: str
    problem: str
    reason: str
    rows: int
    """Number of rows that can't be used without it."""
    views: int = 0
    """Number of rows that have it among their ``views`` alone, and can be used without it."""


@final
@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of the distinct readable images, in pixels."""

    smallest: tuple[int, int]
    median: tuple[int, int]
    largest: tuple[int, int]
    square: int
    small: int
    """Number of images with a shorter side below ``SMALL``."""


@final
@dataclass(slots=True)
class Check:
    """Result of a check; ``ok`` is true if a run can use every row."""

    manifest: str
    rows: int = 0
    subjects: int = 0
    references: Mapping[int, int] = field(default_factory=dict)
    """Number of rows per number of references."""
    targets: int = 0
    images: int = 0
    bad_lines: list[str] = field(default_factory=list)
    broken: list[Broken] = field(default_factory=list)
    sizes: Sizes | None = None
    masks: int = 0
    mask_problems: list[str] = field(default_factory=list)
    masks_doubtful: Mapping[str, int] = field(default_factory=dict)
    """Masks that are empty or cover nearly everything."""
    same_pictures: list[list[str]] = field(default_factory=list)
    """Groups of files with equal pixels."""
    same_rows: list[list[str]] = field(default_factory=list)
    """Groups of ids of rows with equal prompt and images."""
    copies: list[str] = field(default_factory=list)
    """Ids of rows whose target is one of their references: copying would be right there, so nothing is learnt."""
    repeated: list[str] = field(default_factory=list)
    """Ids of rows with a reference twice."""
    frames: list[str] = field(default_factory=list)
    """Files with further frames or pages, which are not read."""
    prompts: PromptSurvey | None = None
    misfits: list[str] = field(default_factory=list)
    """Rows that a recipe can't use, and why."""
    notices: list[str] = field(default_factory=list)
    """What a recipe will not use as it is written."""
    usable: frozenset[int] = frozenset()
    """Line numbers of the rows that a run can use."""
    sound_views: Mapping[int, list[str]] = field(default_factory=dict)
    """By line number the ``views`` that can be read, of the rows that have others."""

    @property
    def ok(self) -> bool:
        """True if every line can be used."""
        costly = any(one.rows for one in self.broken)
        return not (self.bad_lines or costly or self.mask_problems or self.misfits)


def check_manifest(
    path: Path,
    *,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Check, list[Row], dict[File, Seen]]:
    """Check a manifest and every image and mask that it names: the result, the rows, and what was seen of each file.

    Raises:
        ManifestError: no such file.
    """
    report = Check(str(path))
    rows: list[Row] = []
    lines: list[int] = []
    for number, row in read_rows(path):
        if isinstance(row, ManifestError):
            report.bad_lines.append(str(row))
        else:
            rows.append(row)
            lines.append(number)
    seen = _look(path.parent, rows, workers, progress)
    images = {name: one for (name, mask), one in seen.items() if not mask}
    report.rows = len(rows)
    report.subjects = len({name for row in rows for name in identities(row)})
    report.references = dict(sorted(Counter(len(row.references) for row in rows).items()))
    report.targets = sum(row.target is not None for row in rows)
    report.images = len(images)
    report.sizes = _sizes([one.size for one in images.values() if not one.problem])
    used = Counter(file for row in rows for file in row.needed())
    shown = Counter(file for row in rows for file in row.files())
    report.broken = [
        Broken(file[0], one.problem, one.reason, used[file], shown[file] - used[file])
        for file, one in seen.items()
        if one.problem
    ]
    report.mask_problems = sorted(set(_misfits(rows, seen)))
    masks = [one for (_, mask), one in seen.items() if mask and not one.problem]
    report.masks = len(seen) - len(images)
    report.masks_doubtful = {
        "empty": sum(one.coverage == 0 for one in masks),
        "nearly everything": sum(one.coverage > 0.95 for one in masks),
    }
    report.same_pictures = _same((one.digest, name) for name, one in images.items() if one.digest)
    report.same_rows = _same(((row.prompt, *row.references, row.target), row.id) for row in rows)
    digest = {name: one.digest for name, one in images.items() if one.digest}
    report.copies = [
        row.id
        for row in rows
        if row.target in digest and digest[row.target] in {digest.get(name) for name in row.references}
    ]
    report.repeated = [
        row.id for row in rows if len({digest.get(name, name) for name in row.references}) < len(row.references)
    ]
    report.frames = [name for name, one in images.items() if one.frames]
    report.prompts = survey(row.prompt for row in rows)
    report.usable = frozenset(number for number, row in zip(lines, rows, strict=True) if not row_problem(row, seen))
    report.sound_views = {
        number: sound
        for number, row in zip(lines, rows, strict=True)
        if len(sound := [name for name in row.views if not seen[name, False].problem]) < len(row.views)
    }
    return report, rows, seen


def write_usable(path: Path, report: Check, to: Path) -> None:
    """Copy the usable lines to another file of the same folder, unchanged but for ``views`` that can't be read."""
    if to.resolve().parent != path.resolve().parent:
        raise ValueError(f"{to}: must be in the manifest's folder {path.parent}: image paths are relative to it")
    with replacing(to) as aside, aside.open("w", encoding="utf-8", newline="\n") as target:
        for number, line in read_lines(path):
            if number in report.usable:
                views = report.sound_views.get(number)
                target.write(f"{line if views is None else _with_views(str(line), views)}\n")


def _with_views(line: str, views: list[str]) -> str:
    return json.dumps(json.loads(line) | {"views": views}, ensure_ascii=False)


def _look(root: Path, rows: Sequence[Row], workers: int, progress: Callable[[int, int], None]) -> dict[File, Seen]:
    files = list(dict.fromkeys(file for row in rows for file in row.files()))
    seen: dict[File, Seen] = {}
    with lookers(workers) as look_all:
        wanted = (Look(root / name, mask) for name, mask in files)
        for file, one in zip(files, look_all(wanted), strict=True):
            seen[file] = one
            progress(len(seen), len(files))
    return seen


def _sizes(sizes: list[tuple[int, int]]) -> Sizes | None:
    if not sizes:
        return None
    by_area = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    return Sizes(
        by_area[0],
        (int(median(size[0] for size in sizes)), int(median(size[1] for size in sizes))),
        by_area[-1],
        sum(width == height for width, height in sizes),
        sum(min(size) < SMALL for size in sizes),
    )


def _misfits(rows: Iterable[Row], seen: Mapping[File, Seen]) -> Iterator[str]:
    for row in rows:
        for image, mask in row.pairs():
            one, of = seen[mask, True], seen[image, False]
            if not one.problem and not of.problem and not same_shape(one.size, of.size):
                yield f"mask {mask} is {one.size[0]} x {one.size[1]}, its image {of.size[0]} x {of.size[1]}"


def row_problem(row: Row, seen: Mapping[File, Seen]) -> str:
    """Reason why a run can't use a row; empty if it can. Views that can't be read are no reason: they are left out."""
    broken = (f"{file[0]} {seen[file].reason}" for file in row.needed() if seen[file].problem)
    return next(broken, "") or next(_misfits([row], seen), "")


def _same(keyed: Iterable[tuple[object, str]]) -> list[list[str]]:
    groups: defaultdict[object, list[str]] = defaultdict(list)
    for key, name in keyed:
        groups[key].append(name)
    return [names for names in groups.values() if len(names) > 1]
