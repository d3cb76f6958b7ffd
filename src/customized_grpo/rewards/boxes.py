"""Crops of references with several subjects, one per subject, by the boxes of ``extra["boxes"]``."""

from dataclasses import replace
from typing import Any

from PIL.Image import Image

from customized_grpo.types import Example


def with_crops(example: Example) -> Example:
    """The example with one reference and mask per box; unchanged if it has no boxes.

    ``extra["boxes"]`` has for each reference a list of ``[x0, y0, x1, y1]`` in its pixels, right and bottom exclusive,
    or null for the whole picture.

    Raises:
        ValueError: boxes or masks don't fit the references.
    """
    boxes = example.extra.get("boxes")
    if boxes is None:
        return example
    masks = example.masks or (None,) * len(example.references)
    if not isinstance(boxes, list | tuple) or not len(boxes) == len(masks) == len(example.references):
        raise ValueError(
            f"example {example.key!r}: extra.boxes is {boxes!r} with {len(masks)} masks and "
            f"{len(example.references)} references; give each reference a list of [x0, y0, x1, y1], or null"
        )
    crops: list[Image] = []
    cut_masks: list[Image | None] = []
    for reference, mask, mine in zip(example.references, masks, boxes, strict=True):
        for box in mine or [(0, 0, *reference.size)]:
            if not _fits(box, reference) or (mask is not None and mask.size != reference.size):
                raise ValueError(
                    f"example {example.key!r}: the box {box!r} of a reference of {reference.size} (mask: "
                    f"{mask and mask.size}); give [x0, y0, x1, y1] inside it, and a mask of its size"
                )
            crops.append(reference.crop(tuple(box)))
            cut_masks.append(mask and mask.crop(tuple(box)))
    return replace(example, references=tuple(crops), masks=tuple(cut_masks) if example.masks else ())


def _fits(box: Any, reference: Image) -> bool:
    if not isinstance(box, list | tuple) or len(box) != 4 or not all(type(side) is int for side in box):
        return False
    x0, y0, x1, y1 = box
    return bool(0 <= x0 < x1 <= reference.width and 0 <= y0 < y1 <= reference.height)
