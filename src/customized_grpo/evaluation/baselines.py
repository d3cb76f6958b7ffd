"""Baselines of every table: the copied reference, which ignores the prompt, and real photos of the subject."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final, final

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps
from pydantic import BaseModel
from torch import Tensor

from customized_grpo.data.base import Dataset, FromFiles, Sources
from customized_grpo.evaluation.metrics import AnyMetric
from customized_grpo.evaluation.protocols import Protocol, group_of, readable
from customized_grpo.recipe.sections import RewardSpec
from customized_grpo.types import Example


def reference_copy(example: Example, height: int, width: int) -> UInt8[Tensor, "1 h w 3"]:
    """The baseline that keeps the identity and ignores the prompt: the first reference, in the output's size."""
    return _pixels(ImageOps.fit(example.references[0], (width, height), Image.Resampling.BICUBIC))


def identity_metrics(metrics: Mapping[str, AnyMetric], specs: Mapping[str, BaseModel]) -> dict[str, AnyMetric]:
    """The metrics whose section says ``axis: identity``; the others need a prompt, and a photo has none."""
    return {
        name: metric
        for name, metric in metrics.items()
        if isinstance(spec := specs[name], RewardSpec) and spec.axis == "identity"
    }


NO_IDENTITY: Final = "no metric has 'axis: identity', and a photo has no prompt to be measured by"


@final
class RealPhotos:
    """The oracle: each photo of a subject as if it had been drawn, compared with that subject's *other* photos.

    A protocol that measures against the input reference uses that one instead. Each example is one photo.

    Attributes:
        absent: reason why there are no photos; empty if there are.
    """

    def __init__(self, dataset: Dataset, total: int, protocol: Protocol) -> None:
        self._files: FromFiles | None = dataset if isinstance(dataset, FromFiles) else None
        alone = 0
        by_subject: dict[str, int] = {}
        for index in range(total):
            # Only single-subject prompts: no photo shows two subjects together.
            references, views, group = self._look(dataset, index)
            if references == 1:
                alone += 1
                if views > 1:
                    by_subject[group] = index
        self._protocol = protocol
        self._photos = [
            (index, example, number)
            for index in by_subject.values()
            for example in [dataset[index]]
            for photos in [_photos_of(example)]
            if len(photos) > 1
            for number, photo in photos.items()
            if protocol.references == "subject" or photo not in example.references
        ]
        self.absent = ""
        if not self._photos:
            self.absent = (
                "no example has two photos of its subject ('views' in a manifest) to be compared with each other"
                if alone
                else "every prompt has several references, and no photo shows their subjects together"
            )

    def _look(self, dataset: Dataset, index: int) -> tuple[int, int, str]:
        """Number of references and of views of an example, and its subject, without a picture where that can be."""
        made_of = None if self._files is None else self._files.sources(index)
        if made_of is None:
            example = dataset[index]
            return len(example.references), len(example.extra.get("views", ())), group_of(example)
        named = Example(key=made_of.key, prompt="", references=(), subject=made_of.subject, extra=made_of.extra)
        return len(made_of.references), len(made_of.views), group_of(named)

    def __len__(self) -> int:
        return len(self._photos)

    def __getitem__(self, index: int) -> Example:
        _, example, number = self._photos[index]
        others = [photo for at, photo in _photos_of(example).items() if at != number]
        return replace(
            example,
            key=self._key(example, number),
            prompt="",
            references=tuple(others) if self._protocol.references == "subject" else example.references,
            masks=(),
        )

    def sources(self, index: int) -> Sources | None:
        """Files of the photo itself, which stands for the drawn image, and of those that it is compared with."""
        at, example, number = self._photos[index]
        made_of = None if self._files is None else self._files.sources(at)
        if made_of is None:
            return None
        photo = made_of.views[number]
        others = made_of.views if self._protocol.references == "subject" else made_of.references
        return replace(
            made_of, key=self._key(example, number), prompt="", references=(photo, *others), masks=(), views=()
        )

    def _key(self, example: Example, number: int) -> str:
        return f"{group_of(example)}-photo-{Path(str(example.extra['views'][number])).stem}"

    def draw(self, index: int, example: Example) -> UInt8[Tensor, "1 h w 3"]:
        """The photo itself, in its own size."""
        _, subject, number = self._photos[index]
        return _pixels(_photos_of(subject)[number])


def _photos_of(example: Example) -> dict[int, Image.Image]:
    """The photos of an example's subject that can be read, by their place among its views."""
    found = ((at, readable(Path(path))) for at, path in enumerate(example.extra["views"]))
    return {at: photo for at, photo in found if photo is not None}


def _pixels(image: Image.Image) -> UInt8[Tensor, "1 h w 3"]:
    return torch.from_numpy(np.array(image.convert("RGB")))[None]
