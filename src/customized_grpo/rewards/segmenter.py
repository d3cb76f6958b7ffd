"""Segmentation of a named subject: GroundingDINO finds a box for its class word, SAM a mask in the box.

Both are frozen models of transformers, run one image at a time, so that a mask does not depend on the batch.
Dimensions: H x W pixels, K boxes that GroundingDINO proposes, L text tokens.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, final

import torch
from jaxtyping import Float
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from customized_grpo.paths import model_path
from customized_grpo.recipe.scorers import HeldModel, Revision
from customized_grpo.rewards.cutout import is_empty
from customized_grpo.rewards.features import load_frozen

_DETECTORS: Final = {"grounding-dino": "GroundingDinoForObjectDetection"}
_SAMS: Final = {"sam": "SamModel"}


@final
class SegmenterConfig(BaseModel):
    """Models of the segmenter, and the confidence required."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    detector: str = Field(default="IDEA-Research/grounding-dino-base", description="GroundingDINO: hub id or folder")
    sam: str = Field(default="facebook/sam-vit-base", description="SAM: hub id or folder")
    detector_revision: Revision = None
    sam_revision: Revision = None
    threshold: float = Field(default=0.35, gt=0.0, lt=1.0, description="lower limit on the confidence of a box")

    def held_models(self) -> Sequence[HeldModel]:
        """Both, one image at a time."""
        return (
            HeldModel(self.detector, "detector", images=1, revision=self.detector_revision),
            HeldModel(self.sam, "sam", images=1, revision=self.sam_revision),
        )


def class_words(subject: str, extra: Mapping[str, Any], num_references: int) -> list[str]:
    """Class word of each reference; empty if there is none.

    ``extra["subjects"]`` lists them. Otherwise ``subject`` is split at " and " if that gives one word per reference
    ("backpack and dog" for two), and else used for all.
    """
    given = extra.get("subjects")
    if isinstance(given, list | tuple) and len(given) == num_references:
        return [str(word).strip() for word in given]
    words = [word.strip() for word in subject.split(" and ")]
    return words if len(words) == num_references else [subject.strip()] * num_references


@final
class Segmenter:
    """Segmenter by the most confident box of a class word, and the mask in it."""

    def __init__(self, config: SegmenterConfig, *, device: torch.device) -> None:
        from transformers import AutoTokenizer, GroundingDinoImageProcessorPil, SamImageProcessorPil

        self._device, self._threshold = device, config.threshold

        def loaded(families: Mapping[str, str], name: str, kind: str, revision: str | None) -> Any:
            return load_frozen(families, name, kind, dtype="float32", device=device, revision=revision)

        found, cut = config.detector_revision, config.sam_revision
        self._detector = loaded(_DETECTORS, config.detector, "detector", found)
        self._sam = loaded(_SAMS, config.sam, "sam", cut)
        detector, sam = model_path(config.detector, "detector"), model_path(config.sam, "sam")
        self._tokenizer = AutoTokenizer.from_pretrained(detector, revision=found, trust_remote_code=False)
        self._boxes = GroundingDinoImageProcessorPil.from_pretrained(detector, revision=found)
        self._masks = SamImageProcessorPil.from_pretrained(sam, revision=cut)

    def __call__(self, image: Image.Image, subject: str) -> Image.Image | None:
        """A mask (mode L, 255 is the subject) of the image's size; None where the subject isn't found.

        Raises:
            ValueError: the class word is empty.
        """
        if not subject.strip():
            raise ValueError("there is no class word to look for; give the example a 'subject'")
        box = self._box(image, subject)
        if box is None:
            return None
        mask = self._mask(image, box)
        return None if is_empty(mask) else mask

    @torch.no_grad()
    def _box(self, image: Image.Image, subject: str) -> Float[Tensor, "4"] | None:
        """(left, top, right, bottom) in pixels."""
        # GroundingDINO was trained on lower case, with a full stop after each phrase.
        text = self._tokenizer([f"{subject.strip().lower().rstrip('.')}."], return_tensors="pt")
        picture = self._boxes(images=[image], return_tensors="pt")
        output = self._detector(
            input_ids=text["input_ids"].to(self._device),
            attention_mask=text["attention_mask"].to(self._device),
            token_type_ids=torch.zeros_like(text["input_ids"]).to(self._device),
            pixel_values=picture["pixel_values"].to(self._device),
            pixel_mask=picture["pixel_mask"].to(self._device),
        )
        confidence = output.logits[0].sigmoid().amax(dim=-1)
        best = int(confidence.argmax())
        if float(confidence[best]) < self._threshold:
            return None
        x, y, width, height = output.pred_boxes[0, best].float().cpu()
        corners = torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2]).clamp(0.0, 1.0)
        return corners * torch.tensor([image.width, image.height, image.width, image.height])

    @torch.no_grad()
    def _mask(self, image: Image.Image, box: Float[Tensor, "4"]) -> Image.Image:
        picture = self._masks(images=[image], return_tensors="pt")
        height, width = (int(side) for side in picture["reshaped_input_sizes"][0])
        scale = torch.tensor([width / image.width, height / image.height] * 2)
        output = self._sam(
            pixel_values=picture["pixel_values"].to(self._device),
            input_boxes=(box * scale)[None, None].to(self._device),
            multimask_output=False,
        )
        (masks,) = self._masks.post_process_masks(
            [output.pred_masks[0].float().cpu()],
            [(image.height, image.width)],
            [(height, width)],
        )
        return Image.fromarray(masks.reshape(image.height, image.width).numpy()).convert("L")
