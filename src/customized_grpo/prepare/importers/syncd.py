"""SynCD (arXiv 2502.01720): objects with two or three views each, one prompt per view, and masks.

``metadata.json`` is a list of ``{"filenames": ["17/0.png", ...], "prompts": [...], "category": "rigid", ...}``; the
views of one object show it in different places, so any of them can be the reference for another's prompt. Masks lie
beside the images as ``masks/<stem>.jpg``, your own as ``<stem>_seg.png``. ``metadata_with_scores.json`` adds
``dino_scores`` and ``aesthetics_scores``. The published code of Customized-GRPO has its own list of pairs, read by
``syncd-json``.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import combinations
from pathlib import Path, PurePosixPath
from typing import Any, Literal, final

from pydantic import Field, PositiveInt

from customized_grpo.data.folders import mask_beside
from customized_grpo.data.rows import is_nothing
from customized_grpo.paths import matching
from customized_grpo.prepare.archive import unpack
from customized_grpo.prepare.importers.base import (
    Draft,
    Importer,
    Item,
    Rejected,
    Skipped,
    SourceError,
    folder_of,
    text_of,
    word_of,
)
from customized_grpo.prepare.importers.json_array import json_objects


@final
class SynCD(Importer):
    """SynCD as published: a folder with metadata.json and the archives, unpacked or not."""

    pairs: Literal["all", "one"] = Field(
        default="all",
        description="every view as the target of every choice of references, or one row per object",
    )
    references: PositiveInt = Field(default=1, description="number of reference views per row")
    category: Literal["rigid", "deformable"] | None = Field(default=None, description="null: both")
    masks: bool = Field(default=True, description="attach existing masks")
    min_dino: float | None = Field(default=None, description="lower limit on the similarity of reference and target")
    max_dino: float | None = Field(default=None, description="upper limit: above 0.98 a view is nearly a copy")
    min_aesthetics: float | None = Field(default=None, description="lower limit on the score of every view of a row")

    def __call__(self, source: str, out: Path) -> Iterator[Item]:
        """Rows in the order of the metadata, then of the views."""
        folder = folder_of(source, "metadata.json and archive_*.zip or the folders in them")
        for metadata in self._metadata(folder):
            images = _unpack(folder, metadata, out)
            for number, entry in enumerate(json_objects(metadata)):
                if isinstance(entry, ValueError):
                    yield Rejected(f"{metadata.stem}-{number}", f"{metadata.name}, item {number + 1}: {entry}")
                elif self.category is not None and entry.get("category") != self.category:
                    yield Skipped(f"category is not {self.category}")
                else:
                    yield from self._object(entry, images, metadata, number)

    def _metadata(self, folder: Path) -> list[Path]:
        scored = matching(folder, "*metadata*with_scores.json")
        if any(bound is not None for bound in (self.min_dino, self.max_dino, self.min_aesthetics)) and not scored:
            raise SourceError(
                f"{folder}: min_dino, max_dino and min_aesthetics need scores, "
                "but there is no *metadata_with_scores.json"
            )
        found = scored or matching(folder, "*metadata*.json")
        if not found:
            raise SourceError(f"{folder}: there is no *metadata*.json in it; is this the folder of SynCD?")
        return found

    def _object(self, entry: dict[str, Any], images: Path, metadata: Path, number: int) -> Iterator[Item]:
        where = f"{metadata.stem}-{number}"
        try:
            yield from self._rows(entry, images)
        except (ValueError, LookupError, TypeError) as error:  # the latter two: scores of another shape
            reason = str(error) if isinstance(error, ValueError) else f"scores can't be read ({error!r})"
            yield Rejected(where, f"{metadata.name}, item {number + 1}: {reason}")

    def _rows(self, entry: dict[str, Any], images: Path) -> Iterator[Item]:
        names, prompts = _views(entry)
        if len(names) <= self.references:
            raise ValueError(f"has {len(names)} views; {self.references} references and a target need more")
        identity = f"syncd-{_object_name(names[0])}"
        views = range(len(names))
        for target in views if self.pairs == "all" else views[-1:]:
            others = [view for view in views if view != target]
            choices = list(combinations(others, self.references))
            for chosen in choices if self.pairs == "all" else choices[:1]:
                if unfit := self._unfit(entry, names, target, chosen):
                    yield Skipped(unfit)
                    continue
                yield Draft(
                    id=f"{identity}-{''.join(map(str, chosen))}-{target}",
                    prompt=prompts[target],
                    references=tuple(images / names[view] for view in chosen),
                    subject=_class_word(entry),
                    masks=tuple(self._mask(images, names[view]) for view in chosen),
                    target=images / names[target],
                    target_mask=self._mask(images, names[target]),
                    extra={"subject_id": identity, "category": entry.get("category", "")},
                )

    def _mask(self, images: Path, name: str) -> Path | None:
        return mask_beside(images / name) if self.masks else None

    def _unfit(self, entry: dict[str, Any], names: list[str], target: int, chosen: tuple[int, ...]) -> str:
        """Reason to exclude these views; empty to keep them."""
        if self.min_dino is not None or self.max_dino is not None:
            scores = entry["dino_scores"]  # upper triangle of the similarity matrix
            similar = [float(scores[min(view, target)][max(view, target)]) for view in chosen]
            if self.min_dino is not None and min(similar) < self.min_dino:
                return "below min_dino"
            if self.max_dino is not None and max(similar) > self.max_dino:
                return "above max_dino"
        if self.min_aesthetics is not None:
            beauty = [entry["aesthetics_scores"][PurePosixPath(names[view]).stem] for view in (target, *chosen)]
            if min(beauty) < self.min_aesthetics:
                return "below min_aesthetics"
        return ""


@final
class SynCDJson(Importer):
    """The list of pairs of Customized-GRPO's code (train_1w_syncd_embedding.json), over the images of SynCD."""

    images: str | None = Field(default=None, description="folder of the images; null: the one of the JSON file")
    masks: bool = Field(default=True, description="attach existing masks")
    swap: bool = Field(default=False, description="add each pair with target and reference swapped")

    def root(self, source: str) -> Path:
        """Folder that paths in the file are relative to."""
        return super().root(source) if self.images is None else Path(self.images).expanduser()

    def __call__(self, source: str, out: Path) -> Iterator[Item]:
        """Rows in the file's order. The target isn't used by reinforcement learning."""
        root = self.root(source)
        for number, entry in enumerate(json_objects(Path(source).expanduser())):
            if isinstance(entry, ValueError):
                yield Rejected(str(number), f"item {number + 1}: {entry}")
                continue
            name = str(number if is_nothing(entry.get("id")) else entry["id"])
            try:
                yield self._row(entry, name, root, ("ref_img", "img", "text"))
                if self.swap:
                    yield self._row(entry, f"{name}-swapped", root, ("img", "ref_img", "ref_prompt"))
            except ValueError as error:
                yield Rejected(name, f"item {number + 1}: {error}")

    def _row(self, entry: dict[str, Any], name: str, root: Path, keys: tuple[str, str, str]) -> Draft:
        reference, target = (root / text_of(entry, key) for key in keys[:2])
        path = PurePosixPath(text_of(entry, keys[0]))
        identity = path.parent.name or _object_name(path.name)
        return Draft(
            id=name,
            prompt=text_of(entry, keys[2]),
            references=(reference,),
            subject=_class_word(entry),
            masks=(mask_beside(reference),) if self.masks else (),
            target=target,
            target_mask=mask_beside(target) if self.masks else None,
            extra={"subject_id": f"syncd-{identity}", "category": entry.get("category", "")},
        )


def _views(entry: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    names, prompts = entry.get("filenames"), entry.get("prompts")
    for key, value in (("filenames", names), ("prompts", prompts)):
        if not isinstance(value, list) or not all(isinstance(one, str) and one for one in value):
            raise ValueError(f"{key}: given {value!r}; it must be a list of texts")
    assert isinstance(names, list)
    assert isinstance(prompts, list)
    if len(names) != len(prompts):
        raise ValueError(f"{len(names)} filenames but {len(prompts)} prompts")
    return names, prompts


def _object_name(name: str) -> str:
    """``17/0.png`` -> ``17``; self-generated data are named ``<object>_<rank>_<view>.jpg``."""
    path = PurePosixPath(name)
    if path.stem.isdigit() and path.parent.name:
        return path.parent.name
    return path.stem.rpartition("_")[0] or path.with_suffix("").as_posix()


def _class_word(entry: Mapping[str, Any]) -> str:
    return word_of(entry, "category_description").rstrip(".")


def _unpack(folder: Path, metadata: Path, out: Path) -> Path:
    """Unpack the archives beside the metadata, if there are any, and return the images' folder.

    Only files named by the metadata, and their masks, are unpacked; an outer folder in an archive is dropped.
    """
    archives = matching(folder, "*.zip")
    if not archives:
        return folder
    wanted: set[str] = set()
    for entry in json_objects(metadata):
        with suppress(ValueError):  # the object itself is rejected with the reason
            wanted.update([] if isinstance(entry, ValueError) else _views(entry)[0])
    named = [PurePosixPath(name) for name in wanted]
    wanted |= {str(name.parent / "masks" / f"{name.stem}.jpg") for name in named}
    wanted |= {str(name.parent / f"{name.stem}_seg.png") for name in named}

    def place(member: str) -> str | None:
        parts = PurePosixPath(member).parts
        tails = ("/".join(parts[start:]) for start in range(len(parts)))
        return next((tail for tail in tails if tail in wanted), None)

    for archive in archives:
        unpack(archive, out / "images", place)
    return out / "images"
