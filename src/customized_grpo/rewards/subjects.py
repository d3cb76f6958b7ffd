"""Identity of several subjects in one picture: each is found, compared alone, and belongs to one reference at most.

GroundingDINO finds all boxes of each class word, DINO compares each with each reference, and the Hungarian method pairs
them; a subject that is missing, or one too many, costs points. Dimensions: G group size, R subjects of the references,
V references, B subjects found in an image, D features, H x W pixels. Sources: PSR (arXiv 2512.01236), whose reward
compares detected crops; MultiCrafter (arXiv 2509.21953) and UMO (arXiv 2509.06818), whose rewards assign them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor
from typing import Literal, Self, final

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor

from customized_grpo.recipe.limits import Need
from customized_grpo.recipe.scorers import HeldModel, Revision
from customized_grpo.rewards.base import Reward
from customized_grpo.rewards.boxes import with_crops
from customized_grpo.rewards.cutout import WHITE, Background, MissingMask, cut_out, required_masks
from customized_grpo.rewards.features import FeatureCache, in_batches, mean_cosine, require_references, to_pil
from customized_grpo.rewards.matching import FORBIDDEN, matched_similarity
from customized_grpo.rewards.segmenter import DETECTOR, SAM, THRESHOLD, Detector, MaskInBox, views_of_subjects
from customized_grpo.rewards.vision import EncoderSpec
from customized_grpo.types import Example


@final
class Subjects(Reward):
    """Mean similarity of the references' subjects to those found in an image, at most 100."""

    @final
    class Config(EncoderSpec):
        """A reward's section with ``type: subjects``."""

        detector: str = Field(default=DETECTOR, description="GroundingDINO: hub id or folder")
        detector_revision: Revision = None
        threshold: float = Field(
            default=THRESHOLD, gt=0.0, lt=1.0, description="lower limit on the confidence of a box"
        )
        overlap: float = Field(
            default=0.5,
            gt=0.0,
            lt=1.0,
            description="intersection over union above which two boxes are the same subject, and the surer one counts",
        )
        missing: float = Field(default=10.0, ge=0.0, description="points off for a subject that isn't found")
        surplus: float = Field(default=10.0, ge=0.0, description="points off for a found subject of no reference")
        segment: Literal["none", "reference", "both"] = Field(
            default="none",
            description="what is cut out: nothing (boxes of the image, whole references); the reference, by the data "
            "set's mask; or also the found subjects, by SAM",
        )
        sam: str | None = Field(default=None, description=f"SAM, for segment: both; hub id ({SAM}) or folder")
        sam_revision: Revision = None
        background: Background = WHITE
        padding: float = Field(
            default=0.1, ge=0.0, le=1.0, description="margin around a box or cut-out, as a share of its longer side"
        )
        missing_mask: MissingMask = "error"
        boxes: bool = Field(
            default=False,
            description="take one reference per box of the example's extra.boxes, if any, instead of whole pictures",
        )

        def held_models(self) -> Sequence[HeldModel]:
            """DINO, GroundingDINO and, where it cuts out, SAM."""
            found = HeldModel(self.detector, "detector", images=1, revision=self.detector_revision)
            cut = () if self.sam is None else (HeldModel(self.sam, "sam", images=1, revision=self.sam_revision),)
            return (*super().held_models(), found, *cut)

        def needs(self) -> frozenset[Need]:
            """References, class words, and masks to cut by, unless missing ones are skipped."""
            masked = self.segment != "none" and self.missing_mask == "error"
            return frozenset(("reference", "subject", *(("mask",) if masked else ())))

        @model_validator(mode="after")
        def _everything_is_used(self) -> Self:
            if (self.segment == "both") != (self.sam is not None):
                raise ValueError(
                    f"sam: given {self.sam} with segment: {self.segment}; segment: both cuts found subjects out by a "
                    f"SAM, as in sam: {SAM}, and the other values need none"
                )
            if self.sam is None and self.sam_revision is not None:
                raise ValueError("sam_revision: has no effect without sam; remove it")
            if self.segment == "none" and self.missing_mask != "error":
                raise ValueError("missing_mask: has no effect here; it takes segment: reference or both")
            return self

    def __init__(self, config: Config, *, device: torch.device) -> None:
        self._config = config
        self._encoder = config.encoder(device)
        self._references = FeatureCache(self._encoder.cls)
        self._detector = Detector(config.detector, config.detector_revision, config.threshold, device=device)
        self._sam = None if config.sam is None else MaskInBox(config.sam, config.sam_revision, device=device)

    def __call__(self, example: Example, images: UInt8[Tensor, "g h w 3"]) -> Float[Tensor, " g"]:
        """See ``matched_similarity``; NaN for the whole group if a mask is missing and ``missing_mask`` is ``skip``.

        Raises:
            ValueError: the example has no reference or class word, or lacks a mask that the reward needs.
        """
        require_references(example)
        config = self._config
        if config.boxes:
            example = with_crops(example)
        wanted = views_of_subjects(example.subject, example.extra, len(example.references))
        if not all(word for word, _ in wanted):
            raise ValueError(
                f"example {example.key!r}: this reward looks for each subject by its class word; give the example a "
                "'subject'"
            )
        references: Sequence[Image.Image] = example.references
        if config.segment != "none":
            masks, self.reason = required_masks(example, config.missing_mask)
            if masks is None:
                return torch.full((len(images),), torch.nan)
            references = [self._cut(image, mask) for image, mask in zip(references, masks, strict=True)]
        views = self._references(references)
        words = list(dict.fromkeys(word for word, _ in wanted))
        found = [self._found(picture, words) for picture in to_pil(images)]
        crops = [one.crop for image in found for one in image]
        features = in_batches(self._encoder.cls, crops, config.batch_size) if crops else views[:0]
        scores = []
        for image, own in zip(found, features.split([len(image) for image in found]), strict=True):
            similarity = torch.empty(len(wanted), len(image))
            for row, (word, seen) in zip(similarity, wanted, strict=True):
                can_be = torch.tensor([word in one.words for one in image], dtype=torch.bool)
                row.copy_(mean_cosine(own, views[seen]).cpu().where(can_be, FORBIDDEN))
            scores.append(matched_similarity(similarity, missing=config.missing, surplus=config.surplus))
        return torch.tensor(scores)

    def _found(self, picture: Image.Image, words: Sequence[str]) -> list["_Found"]:
        """Subjects in a picture."""
        proposals = [
            (float(sure), box, word) for word in words for box, sure in zip(*self._detector(picture, word), strict=True)
        ]
        subjects = []
        for box, names in _distinct(proposals, self._config.overlap):
            mask = _filled(box, picture.size) if self._sam is None else self._sam(picture, box)
            if mask is not None:
                subjects.append(_Found(self._cut(picture, mask), names))
        return subjects

    def _cut(self, image: Image.Image, mask: Image.Image) -> Image.Image:
        red, green, blue = self._config.background
        return cut_out(image, mask, background=(red, green, blue), crop=True, padding=self._config.padding)


@dataclass(frozen=True, slots=True)
class _Found:
    """A subject of an image, alone, and the class words by which it was found."""

    crop: Image.Image
    words: frozenset[str]


def _distinct(
    proposals: Sequence[tuple[float, Float[Tensor, "4"], str]], overlap: float
) -> list[tuple[Float[Tensor, "4"], frozenset[str]]]:
    """Boxes of different subjects, of (confidence, box, word), the surest first; with the words of all they stand for.

    Greedy non-maximum suppression over the boxes of all words: one animal is a box of "dog" and one of "pet", and must
    not be two subjects.
    """
    kept: list[tuple[Tensor, set[str]]] = []
    for _, box, word in sorted(proposals, key=lambda one: -one[0]):
        same = next((names for other, names in kept if _overlap(box, other) > overlap), None)
        if same is None:
            kept.append((box, {word}))
        else:
            same.add(word)
    return [(box, frozenset(names)) for box, names in kept]


def _overlap(a: Float[Tensor, "4"], b: Float[Tensor, "4"]) -> float:
    """Intersection over union of two boxes; 0 for boxes without area."""
    width, height = (torch.minimum(a[2:], b[2:]) - torch.maximum(a[:2], b[:2])).clamp(min=0.0)
    shared = width * height
    union = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared
    return float(shared / union) if float(union) > 0 else 0.0


def _filled(box: Float[Tensor, "4"], size: tuple[int, int]) -> Image.Image | None:
    """A mask that is white in every pixel that a box touches; None for a box without area."""
    left, top, right, bottom = box.tolist()
    if left >= right or top >= bottom:
        return None
    mask = Image.new("L", size)
    mask.paste(255, (floor(left), floor(top), ceil(right), ceil(bottom)))
    return mask
