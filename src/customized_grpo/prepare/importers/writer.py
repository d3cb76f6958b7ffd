"""Writer of manifests from drafts: complete or absent, with unique ids, relative paths, and nothing lost.

The output folder gets ``manifest.jsonl``, ``rejected.jsonl`` (entries without a row or mask, and why) and
``import.json`` (counts, options, prompts that look noisy). Every distinct image is inspected once.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal, final

from customized_grpo.atomic import replacing
from customized_grpo.data.images import ImageError
from customized_grpo.data.prompts import prompt_problems, survey
from customized_grpo.data.rows import row_of, same_shape
from customized_grpo.prepare.importers.base import Draft, Importer, Item, Rejected, Remark, Skipped, SourceError
from customized_grpo.prepare.importers.ids import Ids
from customized_grpo.prepare.importers.places import Places
from customized_grpo.prepare.importers.report import Lost, Report, Subjects
from customized_grpo.prepare.inspection import Look, LookAll, Seen, lookers
from customized_grpo.text import TextError

MANIFEST, REJECTED, REPORT = "manifest.jsonl", "rejected.jsonl", "import.json"
_BATCH = 512
_LISTED = 20
"""Subjects that a report lists: all of a person's own photos, the first of a large set."""


@final
@dataclass(frozen=True, slots=True)
class Options:
    """Import options common to all sources."""

    images: Literal["link", "copy"] = "link"
    """``link``: use images where they are; ``copy``: write plain PNG files, without metadata, to the output folder."""
    decode: bool = True
    """Read every pixel; otherwise only headers, and ``data check`` finds truncated files."""
    noisy: Literal["keep", "drop"] = "keep"
    """Treatment of prompts with a problem (``prompts.prompt_problems``)."""
    limit: int | None = None
    """Number of rows after which the import stops."""
    workers: int = 1
    overwrite: bool = False


def import_data(
    importer: Importer,
    source: str,
    out: Path,
    options: Options,
    progress: Callable[[Report], None] = lambda report: None,
) -> Report:
    """Write the manifest of ``source`` to the folder ``out``.

    Raises:
        ValueError: the source can't be read, ``out`` holds a manifest already, or nothing became a row.
    """
    if (out / MANIFEST).exists() and not options.overwrite:
        raise ValueError(f"{out / MANIFEST}: is there already; give another folder with --out, or --overwrite")
    out.mkdir(parents=True, exist_ok=True)
    report = Report()
    with ExitStack() as stack:
        manifest, rejected = (
            stack.enter_context(stack.enter_context(replacing(out / name)).open("w", encoding="utf-8", newline="\n"))
            for name in (MANIFEST, REJECTED)
        )
        look_all = stack.enter_context(lookers(options.workers))
        writer = _Writer(
            Places(importer.root(source), out, options.images), options, look_all, manifest, rejected, report
        )
        for batch in _batches(importer(source, out), report, options.limit):
            writer.take(batch)
            progress(report)
        report.prompts = survey(writer.prompts)
        report.num_subjects, report.subjects = len(writer.subjects), writer.subjects.first(_LISTED)
        if writer.converted:
            report.remarks.append(
                f"HEIC photos: {writer.converted}, written to {out / 'images'} as PNG, which every program reads"
            )
        if writer.copies:
            named = ", ".join(writer.copies[:3]) + (", ..." if len(writer.copies) > 3 else "")
            report.remarks.append(
                f"{len(writer.copies)} rows have a reference's pixels as their target ({named}): they teach to copy"
            )
        if not report.rows:
            first = "" if not report.first_reason else f"; the first reason: {report.first_reason}"
            left_out = "".join(f"; left out: {count} {reason}" for reason, count in report.skipped.items())
            raise SourceError(f"{source}: none of {report.rejected} entries became a row{left_out}{first}")
    with replacing(out / REPORT) as aside:
        facts = {"importer": importer.model_dump(), "source": source, "options": asdict(options)}
        aside.write_text(json.dumps(facts | asdict(report), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return report


def _batches(items: Iterator[Item], report: Report, limit: int | None) -> Iterator[list[Item]]:
    """Items by the hundred, but no more than can still become rows: a streamed item is a download.

    Raises:
        SourceError: the source broke off; the message says how many rows came before.
    """
    while limit is None or report.rows < limit:
        batch: list[Item] = []
        broken: SourceError | TextError | None = None
        try:
            batch.extend(islice(items, _BATCH if limit is None else min(_BATCH, limit - report.rows)))
        except (SourceError, TextError) as error:
            broken = error
        if batch:
            yield batch
        if broken is not None:
            before = f"; {report.rows} rows came before, '--limit {report.rows}' imports them" if report.rows else ""
            raise SourceError(f"{broken}{before}") from broken
        if not batch:
            return


@final
@dataclass(slots=True)
class _Writer:
    places: Places
    options: Options
    look_all: LookAll
    manifest: IO[str]
    rejected: IO[str]
    report: Report
    ids: Ids = field(default_factory=Ids)
    seen: dict[tuple[Path, bool], Seen] = field(default_factory=dict)
    prompts: list[str] = field(default_factory=list)
    copies: list[str] = field(default_factory=list)
    """Ids of rows whose target is one of their references."""
    subjects: Subjects = field(default_factory=Subjects)
    converted: int = 0
    """Number of HEIC photos that were written as PNG."""

    def take(self, items: list[Item]) -> None:
        """Write a batch of rows, in order."""
        self._look([item for item in items if isinstance(item, Draft)])
        for item in items:
            if self.report.rows == self.options.limit:
                return
            if isinstance(item, Skipped):
                self.report.skip(item.reason, item.name)
            elif isinstance(item, Remark):
                self.report.remarks.append(item.text)
            elif isinstance(item, Rejected):
                self._reject(item.id, item.kind, item.reason)
            else:
                self._row(item)

    def _look(self, drafts: Iterable[Draft]) -> None:
        wanted: dict[tuple[Path, bool], Look] = {}
        for draft in drafts:
            for path, mask in _files(draft):
                try:
                    file, _, copy = self.places(path)
                except SourceError:
                    raise
                except ValueError:
                    continue  # reported with the row itself
                if (file, mask) not in self.seen:
                    wanted[file, mask] = Look(file, mask, self.options.decode or copy is not None, copy)
        for key, seen in zip(wanted, self.look_all(wanted.values()), strict=True):
            self.seen[key] = seen
            converted = wanted[key].copy is not None and self.options.images == "link"
            self.converted += converted and not seen.problem
            if seen.frames:
                self.report.skip("all frames or pages but the first", seen.path.name)
        self.report.images = sum(not mask for _, mask in self.seen)

    def _row(self, draft: Draft) -> None:
        if self.options.noisy == "drop" and (problems := prompt_problems(draft.prompt)):
            self._reject(draft.id, "noisy-prompt", f"prompt: {', '.join(problems)}: {draft.prompt}")
            return
        try:
            needed = [*draft.references, *(() if draft.target is None else (draft.target,))]
            names = [self._image(path) for path in needed]
        except ImageError as error:
            self._reject(draft.id, error.problem, str(error))
            self._lost(error).rows += 1
            return
        except ValueError as error:
            self._reject(draft.id, "outside", str(error))
            return
        kept = len(draft.references)
        references, target = names[:kept], names[kept] if draft.target is not None else None
        masks = [
            self._mask(draft, mask, image)
            for mask, image in zip(draft.masks, draft.references, strict=bool(draft.masks))
        ]
        target_mask = None if draft.target is None else self._mask(draft, draft.target_mask, draft.target)
        fields: Mapping[str, Any] = {
            "id": self.ids.free(draft.id),
            "prompt": draft.prompt,
            "references": references,
            "subject": draft.subject,
            "masks": masks if any(mask is not None for mask in masks) else [],
            "target": target,
            "target_mask": target_mask,
            "views": [view for view in (self._view(draft, path) for path in draft.views) if view is not None],
            "extra": dict(draft.extra),
        }
        try:
            row_of(fields)
            line = json.dumps({key: value for key, value in fields.items() if value}, ensure_ascii=False)
            line.encode()
        except (ValueError, TypeError) as error:  # an importer's mistake, or half a surrogate pair
            self._reject(draft.id, "entry", f"is not a valid row: {error}")
            return
        self.manifest.write(line + "\n")
        self.report.rows += 1
        self.prompts.append(draft.prompt)
        self.subjects.add(fields)
        if draft.target is not None and self._pixels(draft.target) in set(map(self._pixels, draft.references)):
            self.copies.append(fields["id"])

    def _image(self, path: Path) -> str:
        file, name, _ = self.places(path)
        seen = self.seen[file, False]
        if seen.problem:
            raise ImageError(file, seen.problem, seen.reason)
        return name

    def _lost(self, error: ImageError) -> Lost:
        return self.report.lost.setdefault(str(error), Lost())

    def _pixels(self, path: Path) -> str:
        """What tells a picture from others: a hash of its pixels, or its name where they aren't read."""
        file, name, _ = self.places(path)
        return self.seen[file, False].digest or name

    def _view(self, draft: Draft, path: Path) -> str | None:
        """A view's path; None if it is broken, which is recorded: a row doesn't need all of its views."""
        try:
            return self._image(path)
        except ValueError as error:
            if isinstance(error, ImageError):
                self._lost(error).views += 1
            self.report.views_dropped += 1
            self._drop(draft, "view", str(error))
            return None

    def _mask(self, draft: Draft, mask: Path | None, image: Path) -> str | None:
        """A mask's path; None if there is none or it is broken, which is recorded."""
        if mask is None:
            return None
        try:
            file, name, _ = self.places(mask)
            seen, of = self.seen[file, True], self.seen[self.places(image)[0], False]
            if seen.problem:
                raise ValueError(f"{file}: {seen.reason}")
            if not same_shape(seen.size, of.size):
                raise ValueError(f"{file}: is {seen.size} but its image is {of.size}")
            return name
        except ValueError as error:
            self.report.masks_dropped += 1
            self._drop(draft, "mask", str(error))
            return None

    def _drop(self, draft: Draft, what: str, reason: str) -> None:
        self.report.name(what, f"{draft.id}: {reason}", reason)
        self._write_rejected({"what": what, "id": draft.id, "problem": what, "reason": reason})

    def _reject(self, name: str, kind: str, reason: str) -> None:
        self.report.reject(name, kind, reason)
        what = "file" if kind == "file" else "row"
        self._write_rejected({"what": what, "id": name, "problem": kind, "reason": reason})

    def _write_rejected(self, line: Mapping[str, str]) -> None:
        self.rejected.write(json.dumps(line) + "\n")


def _images(draft: Draft) -> Iterator[Path]:
    yield from draft.references
    if draft.target is not None:
        yield draft.target
    yield from draft.views


def _files(draft: Draft) -> Iterator[tuple[Path, bool]]:
    """All files of a draft, each with whether it is a mask."""
    yield from ((path, False) for path in _images(draft))
    for mask in (*draft.masks, draft.target_mask):
        if mask is not None:
            yield mask, True
