"""DINO identity reward: 100 x the cosine of the features of image and reference, mean over references.

By the CLS features, or by patches: each patch of the reference's subject with its most similar patch of the image.
Dimensions: G group size, R references, P patches, D features, H x W pixels. Source: Customized-GRPO
(arXiv 2510.18263), whose identity reward is DINOv2-base by transformers; features are ``last_hidden_state[:, 0]``.

Whole pictures also match by their background. Two remedies, both with the masks of the data set: ``segment``
compares subjects cut out of their pictures, and ``copy_penalty`` takes points off for a copied background.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self, final

import torch
from jaxtyping import Bool, Float, UInt8
from PIL.Image import Image
from pydantic import Field, model_validator
from torch import Tensor

from customized_grpo.recipe.limits import Need
from customized_grpo.recipe.scorers import HeldModel
from customized_grpo.rewards.base import Reward
from customized_grpo.rewards.boxes import with_crops
from customized_grpo.rewards.cutout import WHITE, Background, MissingMask, cut_out, required_masks
from customized_grpo.rewards.features import (
    FeatureCache,
    in_batches,
    mean_cosine,
    require_references,
    to_pil,
)
from customized_grpo.rewards.patches import KEPT_TOKENS, OUTSIDE, best_match
from customized_grpo.rewards.segmenter import Segmenter, SegmenterConfig, class_words, shared_word
from customized_grpo.rewards.vision import EncoderSpec
from customized_grpo.types import Example


@final
class Dino(Reward):
    """Similarity of DINO features to the references, in [-100, 100] before ``copy_penalty``."""

    @final
    class Config(EncoderSpec):
        """A reward's section with ``type: dino``."""

        features: Literal["cls", "patches"] = Field(
            default="cls",
            description="what is compared: the CLS features, or each patch inside the reference's mask with the most "
            "similar one of the image",
        )
        segment: Literal["none", "reference", "both"] = Field(
            default="none",
            description="what is cut out: nothing; the reference, by the data set's mask; or also the generated image, "
            "by the segmenter",
        )
        background: Background = WHITE
        crop: bool = Field(default=False, description="crop to a square around the cut-out subject")
        padding: float = Field(default=0.1, ge=0.0, le=1.0, description="margin in that square, as a share of its side")
        missing_mask: MissingMask = "error"
        segmenter: SegmenterConfig | None = Field(default=None, description="for segment: both")
        not_found: Literal["skip", "lowest"] = Field(
            default="skip",
            description="for a generated image without a found subject: leave it unscored, or give -100",
        )
        boxes: bool = Field(
            default=False,
            description="compare with one crop per box of the example's extra.boxes, if any, instead of whole "
            "references",
        )
        copy_penalty: float = Field(
            default=0.0,
            ge=0.0,
            description="penalty per point of similarity to the reference's background; 0: none",
        )

        def held_models(self) -> Sequence[HeldModel]:
            """DINO, and the segmenter's two."""
            return (*super().held_models(), *(() if self.segmenter is None else self.segmenter.held_models()))

        def reads_masks(self) -> bool:
            """True if it can't do without the references' masks."""
            return self.segment != "none" or self.copy_penalty > 0 or self.features == "patches"

        def needs(self) -> frozenset[Need]:
            """References; masks, unless missing ones are skipped; class words for the segmenter."""
            masked = self.reads_masks() and self.missing_mask == "error"
            words: tuple[Need, ...] = ("subject", "distinct") if self.segment == "both" else ()
            return frozenset(("reference", *(("mask",) if masked else ()), *words))

        @model_validator(mode="after")
        def _everything_is_used(self) -> Self:
            if (self.segment == "both") != (self.segmenter is not None):
                raise ValueError(
                    "segment: both cuts the subject out of generated images while the run goes on, so it needs a "
                    "segmenter, as in segmenter: {detector: IDEA-Research/grounding-dino-base}; the other values "
                    f"need none. Given: segment: {self.segment}, segmenter: {self.segmenter}"
                )
            cutting = self.segment != "none"
            idle = {
                "background": not cutting and self.background != WHITE,
                "crop": not cutting and self.crop,
                "not_found": self.segment != "both" and self.not_found != "skip",
                "padding": not self.crop and self.padding != 0.1,
                "missing_mask": not self.reads_masks() and self.missing_mask != "error",
            }
            if unused := [name for name, is_unused in idle.items() if is_unused]:
                takes = {
                    "not_found": "both",
                    "padding": "reference or both and crop: true",
                    "missing_mask": "reference or both, or a copy_penalty, or features: patches",
                }
                raise ValueError(
                    f"{unused[0]}: has no effect here; it takes segment: " + takes.get(unused[0], "reference or both")
                )
            return self

    def __init__(self, config: Config, *, device: torch.device) -> None:
        self._config = config
        self._encoder = config.encoder(device)
        self._references = FeatureCache(self._encoder.cls)
        self._tokens = FeatureCache(self._encoder.tokens, KEPT_TOKENS)
        self._segmenter = Segmenter(config.segmenter, device=device) if config.segmenter else None

    def __call__(self, example: Example, images: UInt8[Tensor, "g h w 3"]) -> Float[Tensor, " g"]:
        """Mean similarity of each image to the example's references.

        NaN if the segmenter finds no subject in an image (with ``not_found: lowest`` -100 for that reference, before
        the mean), and for the whole group if a mask is missing and ``missing_mask`` is ``skip``.

        Raises:
            ValueError: the example has no reference, or lacks a mask that the reward needs.
        """
        require_references(example)
        if self._config.boxes:
            example = with_crops(example)
        masks = self._masks(example)
        if masks is None:
            return torch.full((len(images),), torch.nan)
        references = self._encoded_references(example, masks)
        if references is None:
            return torch.full((len(images),), torch.nan)
        pictures, penalty = to_pil(images), self._config.copy_penalty
        if not penalty:
            return self._identity(example, references, pictures, None).cpu()
        tokens = in_batches(self._encoder.tokens, pictures, self._config.batch_size)
        identity = self._identity(example, references, pictures, tokens)
        return (identity - penalty * self._background(example, masks, tokens[:, 1:])).cpu()

    def _masks(self, example: Example) -> tuple[Image, ...] | None:
        """One mask per reference; empty if none is needed, None if one is missing and ``missing_mask`` is ``skip``."""
        if not self._config.reads_masks():
            return ()
        masks, self.reason = required_masks(example, self._config.missing_mask)
        return masks

    def _encoded_references(self, example: Example, masks: Sequence[Image]) -> "_Encoded | None":
        """References as they are compared; None if a subject isn't seen and ``missing_mask`` is ``skip``."""
        shown: Sequence[Image] = example.references
        if self._config.segment != "none":
            shown = [self._cut(*pair) for pair in zip(shown, masks, strict=True)]
        if self._config.features == "cls":
            return _Encoded(self._references(shown))
        share = self._shares(masks)
        if bool((share >= OUTSIDE).any(dim=-1).all()):
            return _Encoded(self._tokens(shown)[:, 1:], share)
        lacks = "has a mask outside the square that the encoder sees"
        if self._config.missing_mask == "skip":
            self.reason = f"it {lacks} (missing_mask: skip)"
            return None
        raise ValueError(
            f"example {example.key!r} {lacks}; take segment: reference and crop: true in a new run, or missing_mask: "
            "skip, which leaves its images unscored"
        )

    def _shares(self, masks: Sequence[Image]) -> Float[Tensor, "n p"]:
        """Share of the subject in each patch of pictures as they are encoded."""
        config = self._config
        if config.segment != "none":
            black = (0, 0, 0)
            masks = [
                cut_out(mask.convert("RGB"), mask, background=black, crop=config.crop, padding=config.padding)
                for mask in masks
            ]
        return torch.stack([self._encoder.coverage(mask) for mask in masks])

    def _identity(
        self,
        example: Example,
        references: "_Encoded",
        pictures: Sequence[Image],
        whole: Float[Tensor, "g t d"] | None,
    ) -> Float[Tensor, " g"]:
        """Similarity of the subjects; ``whole`` are the tokens of the uncut pictures, if known."""
        if self._segmenter is None:
            return _alike(self._encoded(pictures, whole), references)
        words = class_words(example.subject, example.extra, len(example.references))
        if not all(words):
            raise ValueError(
                f"example {example.key!r}: segment: both looks for the subject by its class word; give the example "
                "a 'subject'"
            )
        if shared := shared_word(example.subject, example.extra, len(example.references)):
            raise ValueError(
                f"example {example.key!r} has two subjects of the word {shared!r}, and segment: both finds one of each "
                "word; take type: subjects in a new run, or leave such examples out"
            )
        found = {word: self._found(self._segmenter, pictures, word) for word in set(words)}
        absent = -100.0 if self._config.not_found == "lowest" else torch.nan
        each = torch.full((len(words), len(pictures)), absent)
        for at, (row, word) in enumerate(zip(each, words, strict=True)):
            seen, subjects = found[word]
            if subjects is not None:
                row[seen] = _alike(subjects, references.only(slice(at, at + 1))).cpu()
            if not bool(seen.all()):
                self.reason = f"the segmenter finds no {word!r} in it (not_found: skip)"
        return each.mean(dim=0)

    def _found(
        self, segmenter: Segmenter, pictures: Sequence[Image], word: str
    ) -> tuple[Bool[Tensor, " g"], "_Encoded | None"]:
        """Pictures in which a subject is found, and the F cut-outs; of patches, those in which the encoder sees it."""
        masks = [segmenter(picture, word) for picture in pictures]
        seen = torch.tensor([mask is not None for mask in masks])
        pairs = [(image, mask) for image, mask in zip(pictures, masks, strict=True) if mask is not None]
        if not pairs:
            return seen, None
        subjects = self._encoded([self._cut(*pair) for pair in pairs])
        if self._config.features == "cls":
            return seen, subjects
        share = self._shares([mask for _, mask in pairs])
        visible = (share >= OUTSIDE).any(dim=-1)
        seen[seen.clone()] = visible
        return seen, _Encoded(subjects.features, share).only(visible)

    def _encoded(self, pictures: Sequence[Image], tokens: Float[Tensor, "n t d"] | None = None) -> "_Encoded":
        """Pictures as they are compared, whatever they show; by their ``tokens``, if known."""
        by_cls = self._config.features == "cls"
        if tokens is None:
            encode = self._encoder.cls if by_cls else self._encoder.tokens
            tokens = in_batches(encode, pictures, self._config.batch_size)
            return _Encoded(tokens if by_cls else tokens[:, 1:])
        return _Encoded(tokens[:, 0] if by_cls else tokens[:, 1:])

    def _cut(self, image: Image, mask: Image) -> Image:
        config = self._config
        red, green, blue = config.background
        return cut_out(image, mask, background=(red, green, blue), crop=config.crop, padding=config.padding)

    def _background(
        self, example: Example, masks: Sequence[Image], patches: Float[Tensor, "g p d"]
    ) -> Float[Tensor, " g"]:
        """Similarity of the images to the references' backgrounds, mean over the references; see ``best_match``."""
        each = []
        for reference, mask in zip(example.references, masks, strict=True):
            outside = (self._encoder.coverage(mask) < OUTSIDE).float().to(patches.device)
            each.append(best_match(self._tokens([reference])[0, 1:], outside, patches))
        return torch.stack(each).mean(dim=0)


@final
@dataclass(frozen=True, slots=True)
class _Encoded:
    """N pictures: their CLS features, or their patches."""

    features: Float[Tensor, "n d"] | Float[Tensor, "n p d"]
    share: Float[Tensor, "n p"] | None = None
    """Share of the subject in each patch; None where all count, and for CLS features."""

    def only(self, which: slice | Bool[Tensor, " n"]) -> "_Encoded":
        """Some of the pictures."""
        return _Encoded(self.features[which], None if self.share is None else self.share[which])


def _alike(images: _Encoded, references: _Encoded) -> Float[Tensor, " g"]:
    """Similarity of each image to the references, mean over them."""
    if references.share is None:
        return mean_cosine(images.features, references.features)
    device = images.features.device
    allowed = None if images.share is None else (images.share >= OUTSIDE).to(device)
    weights = references.share.where(references.share >= OUTSIDE, 0.0).to(device)
    pairs = zip(references.features, weights, strict=True)
    return torch.stack([best_match(kept, weight, images.features, allowed) for kept, weight in pairs]).mean(dim=0)
