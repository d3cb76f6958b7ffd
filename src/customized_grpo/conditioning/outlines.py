"""Examples without pixels, for checks before a run: texts, and the names of files."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from PIL.Image import Image

from customized_grpo.data.base import Dataset, FromFiles, Sources


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """An example without pixels: files are named; pictures that a data set makes itself are there.

    Attributes:
        place: file and line, or the example's key.
    """

    place: str
    key: str
    prompt: str
    references: tuple[Path | Image, ...]
    subject: str
    masks: tuple[Path | Image | None, ...]
    views: tuple[Path, ...]
    targets: tuple[Path, ...]
    extra: Mapping[str, Any]


def outline(one: Sources) -> Outline:
    """An example of files."""
    return Outline(
        place=one.place or one.key,
        key=one.key,
        prompt=one.prompt,
        references=tuple(one.root / name for name in one.references),
        subject=one.subject,
        masks=tuple(None if name is None else one.root / name for name in one.masks),
        views=tuple(one.root / name for name in one.views),
        targets=tuple(one.root / name for name in one.targets),
        extra=one.extra,
    )


def outlines_of(dataset: Dataset, count: int | None = None) -> Iterator[Outline]:
    """Outlines of the first ``count`` examples (None: all), or, of a data set without files, of the first one."""
    if isinstance(dataset, FromFiles):
        known = (dataset.sources(index) for index in range(len(dataset) if count is None else count))
        yield from (outline(one) for one in known if one is not None)
        return
    first = dataset[0]
    yield Outline(
        place=first.key,
        key=first.key,
        prompt=first.prompt,
        references=first.references,
        subject=first.subject,
        masks=first.masks,
        views=tuple(Path(view) for view in first.extra.get("views", ())),
        targets=(),
        extra=first.extra,
    )
