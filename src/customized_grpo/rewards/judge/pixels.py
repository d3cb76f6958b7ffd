"""Pictures as a judge is shown them: references cut out of their scenes, sizes, and data URLs."""

import base64
import io
from dataclasses import replace

from PIL import Image as PILImage
from PIL.Image import Image

from customized_grpo.rewards.cutout import cut_out, usable_masks
from customized_grpo.types import Example

_WHITE = (255, 255, 255)


def with_cut_references(example: Example) -> tuple[Example, str]:
    """The example with its references on white, and what is missing in words; empty if nothing is.

    Raises:
        ValueError: masks that don't belong to the references.
    """
    masks, lacks = usable_masks(example)
    if lacks:
        return example, lacks
    pairs = zip(example.references, masks, strict=True)
    cut = tuple(cut_out(image, mask, background=_WHITE, crop=False, padding=0.0) for image, mask in pairs)
    return replace(example, references=cut), ""


def reduced(image: Image, side: int) -> Image:
    """RGB image without metadata, with sides of at most ``side``."""
    plain = image.convert("RGB")
    plain.info = {}
    if max(plain.size) > side:
        plain.thumbnail((side, side), PILImage.Resampling.LANCZOS)
    return plain


def data_url(image: Image, form: str) -> str:
    """The image as a PNG or, of quality 95, a JPEG."""
    file = io.BytesIO()
    if form == "png":
        image.save(file, format="PNG")
    else:
        image.save(file, format="JPEG", quality=95, subsampling=0)
    return f"data:image/{form};base64,{base64.b64encode(file.getvalue()).decode()}"
