"""GroundingDINO and SAM by their own processors, on random weights; and which word belongs to which reference."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BertTokenizer,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
    GroundingDinoProcessor,
    SamImageProcessorPil,
    SamModel,
    SamProcessor,
)

from customized_grpo.rewards.segmenter import Segmenter, SegmenterConfig, class_words
from tiny_rewards import pictures

IMAGES = [Image.fromarray(image) for image in pictures(2, seed=5, height=80, width=100).numpy()]


def build(folders: tuple[Path, Path], threshold: float) -> Segmenter:
    detector, sam = map(str, folders)
    config = SegmenterConfig(detector=detector, sam=sam, threshold=threshold)
    return Segmenter(config, device=torch.device("cpu"))


def by_the_processors(folders: tuple[Path, Path], image: Image.Image, word: str) -> tuple[float, np.ndarray]:
    """The best box's confidence, and its mask, in transformers' own two-step way."""
    detector, sam = folders
    find = GroundingDinoProcessor(
        GroundingDinoImageProcessorPil.from_pretrained(detector), BertTokenizer.from_pretrained(detector)
    )
    inputs = find(images=image, text=[[word]], return_tensors="pt")
    cut = SamProcessor(SamImageProcessorPil.from_pretrained(sam))
    with torch.no_grad():
        output = GroundingDinoForObjectDetection.from_pretrained(detector).eval()(**inputs)
        (found,) = find.post_process_grounded_object_detection(
            output, inputs["input_ids"], threshold=0.0, target_sizes=[(image.height, image.width)]
        )
        best = int(found["scores"].argmax())
        box = found["boxes"][best].clamp(min=0)
        prepared = cut(image, input_boxes=[[box.tolist()]], return_tensors="pt")
        prepared["input_boxes"] = prepared["input_boxes"].float()
        masks = SamModel.from_pretrained(sam).eval()(**prepared, multimask_output=False).pred_masks
    (mask,) = cut.post_process_masks(masks, prepared["original_sizes"], prepared["reshaped_input_sizes"])
    return float(found["scores"][best]), mask.numpy().reshape(image.height, image.width)


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("word", ["dog", "red bag"])
def test_it_is_what_the_libraries_processors_make(
    segmenter_folders: tuple[Path, Path], image: Image.Image, word: str
) -> None:
    confidence, expected = by_the_processors(segmenter_folders, image, word)
    assert 0.05 < expected.mean() < 0.95, "a trivial mask would show nothing"
    mask = build(segmenter_folders, confidence - 1e-4)(image, f" {word.upper()}. ")
    assert mask is not None
    assert mask.mode == "L"
    assert mask.size == image.size
    assert set(np.unique(np.asarray(mask))) == {0, 255}
    # A box given as text loses digits, which moves a pixel of the edge here and there.
    assert ((np.asarray(mask) > 0) == expected).mean() > 0.999
    assert build(segmenter_folders, confidence + 1e-4)(image, word) is None


def test_nothing_to_look_for_is_an_error(segmenter_folders: tuple[Path, Path]) -> None:
    with pytest.raises(ValueError, match="no class word"):
        build(segmenter_folders, 0.3)(IMAGES[0], " ")


@pytest.mark.parametrize(
    ("subject", "extra", "count", "expected"),
    [
        ("dog", {}, 1, ["dog"]),
        ("dog", {}, 3, ["dog", "dog", "dog"]),
        ("backpack and dog", {}, 2, ["backpack", "dog"]),
        ("salt and pepper", {}, 1, ["salt and pepper"]),
        ("pair", {"subjects": ["cat", "dog"]}, 2, ["cat", "dog"]),
        ("dog", {"subjects": ["cat", "dog"]}, 1, ["dog"]),
        ("", {}, 2, ["", ""]),
    ],
)
def test_class_words(subject: str, extra: dict[str, object], count: int, expected: list[str]) -> None:
    assert class_words(subject, extra, count) == expected
