"""Cutting a subject out of its picture by a mask: on a plain background, optionally cropped to a square.

A mask is mode L, the size of its image; 128 and above is the subject. JPEG masks and attention maps are grey at the
edges, and a half-transparent subject would be neither subject nor background.
"""

from typing import Annotated, Literal, NamedTuple

from PIL import Image
from pydantic import Field

from customized_grpo.types import Example

Colour = tuple[int, int, int]
Background = Annotated[
    tuple[Annotated[int, Field(ge=0, le=255)], ...],
    Field(min_length=3, max_length=3, description="RGB background of cut-outs"),
]
WHITE: Colour = (255, 255, 255)
MissingMask = Annotated[
    Literal["error", "skip"],
    Field(description="for a reference without mask: stop the run, or leave its group unscored"),
]
_THRESHOLD = 128


class Box(NamedTuple):
    """Box in pixels, right and bottom exclusive."""

    left: int
    top: int
    right: int
    bottom: int


def binary(mask: Image.Image) -> Image.Image:
    """The mask in black and white."""
    return mask.convert("L").point(lambda value: 255 if value >= _THRESHOLD else 0)


def is_empty(mask: Image.Image) -> bool:
    """True if no pixel belongs to the subject."""
    return binary(mask).getbbox() is None


def usable_masks(example: Example) -> tuple[tuple[Image.Image, ...], str]:
    """Masks of an example's references that aren't empty, and what is missing in words; empty if nothing is.

    Raises:
        ValueError: masks that don't belong to the references, by number or size.
    """
    given = example.masks or (None,) * len(example.references)
    if len(given) != len(example.references):
        raise ValueError(
            f"example {example.key!r} has {len(given)} masks for {len(example.references)} references; "
            "give one mask or None per reference"
        )
    masks = tuple(mask for mask in given if mask is not None and not is_empty(mask))
    for mask, reference in zip(given, example.references, strict=True):
        if mask is not None and mask.size != reference.size:
            raise ValueError(f"example {example.key!r}: a mask is {mask.size} but its reference is {reference.size}")
    lacks = "" if len(masks) == len(given) else f"has {len(masks)} usable masks for {len(given)} references"
    return masks, lacks


def required_masks(example: Example, missing_mask: MissingMask) -> tuple[tuple[Image.Image, ...] | None, str]:
    """One mask per reference, and an empty text; None and the reason if one is missing and ``missing_mask`` is skip.

    Raises:
        ValueError: a mask is missing and ``missing_mask`` is error, or masks don't belong to the references.
    """
    masks, lacks = usable_masks(example)
    if not lacks:
        return masks, ""
    if missing_mask == "skip":
        return None, f"it {lacks} (missing_mask: skip); make them with 'customized-grpo data masks'"
    raise ValueError(
        f"example {example.key!r} {lacks}; make them with 'customized-grpo data masks', or set "
        "missing_mask: skip in a new run, which leaves its images unscored"
    )


def cut_out(image: Image.Image, mask: Image.Image, *, background: Colour, crop: bool, padding: float) -> Image.Image:
    """The subject alone: everything outside the mask gets the background's colour.

    Args:
        image: RGB.
        mask: of the same size, not empty.
        background: RGB, 0 to 255.
        crop: keep only ``square_around`` the subject, filled with background beyond the image's edge.
        padding: margin around the subject, as a share of its longer side.
    """
    mask = binary(mask)
    box = mask.getbbox()
    assert box is not None
    assert mask.size == image.size
    alone = Image.composite(image, Image.new("RGB", image.size, background), mask)
    if not crop:
        return alone
    square = square_around(Box(*box), padding)
    side = square.right - square.left
    canvas = Image.new("RGB", (side, side), background)
    canvas.paste(alone, (-square.left, -square.top))
    return canvas


def square_around(box: Box, padding: float) -> Box:
    """A square centred on the box. Encoders crop to a square; this way nothing of the subject is lost."""
    width, height = box.right - box.left, box.bottom - box.top
    side = max(1, round(max(width, height) * (1.0 + 2.0 * padding)))
    left, top = box.left - (side - width) // 2, box.top - (side - height) // 2
    return Box(left, top, left + side, top + side)
