"""Segmentation of a named subject: GroundingDINO finds boxes for its class word, SAM a mask in a box.

Both are frozen models of transformers, run one image at a time, so that a mask does not depend on the batch.
Dimensions: H x W pixels, B boxes above the threshold.
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
from customized_grpo.web.hub import loading

DETECTOR: Final = "IDEA-Research/grounding-dino-base"
SAM: Final = "facebook/sam-vit-base"
THRESHOLD: Final = 0.35
"""The least confidence in GroundingDINO's own demonstration."""
_DETECTORS: Final = {"grounding-dino": "GroundingDinoForObjectDetection"}
_SAMS: Final = {"sam": "SamModel"}


@final
class SegmenterConfig(BaseModel):
    """Models of the segmenter, and the confidence required."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    detector: str = Field(default=DETECTOR, description="GroundingDINO: hub id or folder")
    sam: str = Field(default=SAM, description="SAM: hub id or folder")
    detector_revision: Revision = None
    sam_revision: Revision = None
    threshold: float = Field(default=THRESHOLD, gt=0.0, lt=1.0, description="lower limit on the confidence of a box")

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
    return _listed(subject, extra, num_references) or [subject.strip()] * num_references


def views_of_subjects(subject: str, extra: Mapping[str, Any], num_references: int) -> list[tuple[str, list[int]]]:
    """Class word and references of each subject.

    Where words are listed, one for each reference (see ``class_words``), each is a subject of its own, also if the word
    is the same ("dog and dog"). A word for several references names one subject, seen in all of them.
    """
    listed = _listed(subject, extra, num_references)
    if listed is None:
        return [(subject.strip(), list(range(num_references)))]
    return [(word, [at]) for at, word in enumerate(listed)]


def shared_word(subject: str, extra: Mapping[str, Any], num_references: int) -> str | None:
    """A class word of two subjects, which one box can't tell apart; None where each has its own."""
    words = [word for word, _ in views_of_subjects(subject, extra, num_references)]
    return next((word for word in words if words.count(word) > 1), None)


def _listed(subject: str, extra: Mapping[str, Any], num_references: int) -> list[str] | None:
    given = extra.get("subjects")
    if isinstance(given, list | tuple) and len(given) == num_references:
        return [str(word).strip() for word in given]
    words = [word.strip() for word in subject.split(" and ")]
    return words if len(words) == num_references else None


@final
class Detector:
    """GroundingDINO: all boxes of a class word.

    Args:
        name: hub id or folder.
        revision: of the hub id.
        threshold: lower limit on a box's confidence.
        device: device of the model.
    """

    def __init__(self, name: str, revision: str | None, threshold: float, *, device: torch.device) -> None:
        from transformers import AutoTokenizer, GroundingDinoImageProcessorPil

        self._device, self._threshold = device, threshold
        self._model = load_frozen(_DETECTORS, name, "detector", dtype="float32", device=device, revision=revision)
        path = model_path(name, "detector")
        with loading("reward model", name):
            self._tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=False)
            self._processor = GroundingDinoImageProcessorPil.from_pretrained(path, revision=revision)

    @torch.no_grad()
    def __call__(self, image: Image.Image, word: str) -> tuple[Float[Tensor, "b 4"], Float[Tensor, " b"]]:
        """Boxes (left, top, right, bottom) in pixels, and their confidence; the most confident comes first.

        Raises:
            ValueError: the class word is empty.
        """
        if not word.strip():
            raise ValueError("there is no class word to look for; give the example a 'subject'")
        # GroundingDINO was trained on lower case, with a full stop after each phrase.
        text = self._tokenizer([f"{word.strip().lower().rstrip('.')}."], return_tensors="pt")
        picture = self._processor(images=[image], return_tensors="pt")
        output = self._model(
            input_ids=text["input_ids"].to(self._device),
            attention_mask=text["attention_mask"].to(self._device),
            token_type_ids=torch.zeros_like(text["input_ids"]).to(self._device),
            pixel_values=picture["pixel_values"].to(self._device),
            pixel_mask=picture["pixel_mask"].to(self._device),
        )
        confidence, order = output.logits[0].sigmoid().amax(dim=-1).float().cpu().sort(descending=True, stable=True)
        found = int((confidence >= self._threshold).sum())
        x, y, width, height = output.pred_boxes[0].float().cpu()[order[:found]].unbind(dim=-1)
        corners = torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], dim=-1).clamp(0.0, 1.0)
        return corners * torch.tensor([image.width, image.height] * 2), confidence[:found]


@final
class MaskInBox:
    """SAM: the mask of what a box holds.

    Args:
        name: hub id or folder.
        revision: of the hub id.
        device: device of the model.
    """

    def __init__(self, name: str, revision: str | None, *, device: torch.device) -> None:
        from transformers import SamImageProcessorPil

        self._device = device
        self._model = load_frozen(_SAMS, name, "sam", dtype="float32", device=device, revision=revision)
        with loading("reward model", name):
            self._processor = SamImageProcessorPil.from_pretrained(model_path(name, "sam"), revision=revision)

    @torch.no_grad()
    def __call__(self, image: Image.Image, box: Float[Tensor, "4"]) -> Image.Image | None:
        """A mask (mode L, 255 is the subject) of the image's size; None where the box holds nothing."""
        picture = self._processor(images=[image], return_tensors="pt")
        height, width = (int(side) for side in picture["reshaped_input_sizes"][0])
        scale = torch.tensor([width / image.width, height / image.height] * 2)
        output = self._model(
            pixel_values=picture["pixel_values"].to(self._device),
            input_boxes=(box * scale)[None, None].to(self._device),
            multimask_output=False,
        )
        (masks,) = self._processor.post_process_masks(
            [output.pred_masks[0].float().cpu()],
            [(image.height, image.width)],
            [(height, width)],
        )
        mask = Image.fromarray(masks.reshape(image.height, image.width).numpy()).convert("L")
        return None if is_empty(mask) else mask


@final
class Segmenter:
    """Segmenter by the most confident box of a class word, and the mask in it."""

    def __init__(self, config: SegmenterConfig, *, device: torch.device) -> None:
        self._detector = Detector(config.detector, config.detector_revision, config.threshold, device=device)
        self._sam = MaskInBox(config.sam, config.sam_revision, device=device)

    def __call__(self, image: Image.Image, subject: str) -> Image.Image | None:
        """A mask (mode L, 255 is the subject) of the image's size; None where the subject isn't found.

        Raises:
            ValueError: the class word is empty.
        """
        boxes, _ = self._detector(image, subject)
        return self._sam(image, boxes[0]) if len(boxes) else None
