"""Geometry of FLUX's tokens: packing of latents, position ids and preprocessing of references, for UNO and Kontext.

Dimensions: n batch, C4 = 64 channels of a packed token, h x w a grid of tokens (16 x 16 pixels each), P tokens of the
image and all its references. A position id is (plane, row, column).
"""

from collections.abc import Sequence
from typing import Final

import torch
from jaxtyping import Float
from PIL import Image as PILImage
from PIL.Image import Image
from torch import Tensor

PIXELS_PER_TOKEN: Final = 16
"""The VAE shrinks by 8, and a token packs 2 x 2 latents."""

_KONTEXT_SIDE: Final = 1024
"""Side of the square among Kontext's sizes; all have about its area."""


def diagonal_ids(grid: tuple[int, int], references: Sequence[tuple[int, int]]) -> Float[Tensor, "p 3"]:
    """UNO's ids: the image from the origin, reference k from the corner of what precedes it, all on plane 0.

    Args:
        grid: (h, w) of the image in tokens.
        references: (h, w) of each reference, in order.
    """
    ids, row, column = [], 0, 0
    for h, w in (grid, *references):
        ids.append(_ids(0, row, column, h, w))
        row, column = row + h, column + w
    return torch.cat(ids)


def layered_ids(grid: tuple[int, int], references: Sequence[tuple[int, int]]) -> Float[Tensor, "p 3"]:
    """Kontext's ids: the image on plane 0 and the reference on plane 1, both from the origin."""
    return torch.cat([_ids(plane, 0, 0, h, w) for plane, (h, w) in enumerate((grid, *references))])


def _ids(plane: int, row: int, column: int, h: int, w: int) -> Float[Tensor, "s 3"]:
    rows, columns = torch.meshgrid(torch.arange(row, row + h), torch.arange(column, column + w), indexing="ij")
    return torch.stack([torch.full_like(rows, plane), rows, columns], dim=-1).reshape(-1, 3).float()


def long_side_size(size: tuple[int, int], long_side: int) -> tuple[int, int]:
    """(width, height) scaled to a long side; the short one is truncated as UNO's code does, in its order of operations.

    Raises:
        ValueError: the short side is under one token after scaling.
    """
    width, height = size
    if width >= height:
        scaled = long_side, int((long_side / width) * height)
    else:
        scaled = int((long_side / height) * width), long_side
    if min(scaled) < PIXELS_PER_TOKEN:
        raise ValueError(
            f"a reference of {width} x {height} pixels is too narrow: scaled to a long side of "
            f"{long_side}, its short side is under {PIXELS_PER_TOKEN}; crop it, or raise policy.reference_size"
        )
    return scaled


def whole_tokens(size: tuple[int, int]) -> tuple[int, int]:
    """The largest size in whole tokens inside another."""
    return size[0] // PIXELS_PER_TOKEN * PIXELS_PER_TOKEN, size[1] // PIXELS_PER_TOKEN * PIXELS_PER_TOKEN


def scale_and_crop(image: Image, size: tuple[int, int]) -> Image:
    """Scale (Lanczos) and crop the centre to whole tokens."""
    kept_w, kept_h = whole_tokens(size)
    left, top = (size[0] - kept_w) // 2, (size[1] - kept_h) // 2
    scaled = image.convert("RGB").resize(size, PILImage.Resampling.LANCZOS)
    return scaled.crop((left, top, left + kept_w, top + kept_h))


def kontext_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """(width, height) of the nearest aspect ratio that Kontext was trained on.

    Args:
        size: any.
        side: of the square with the wanted area; 1024 gives the trained sizes, less scales them down to whole tokens.
    """
    from diffusers.pipelines.flux.pipeline_flux_kontext import PREFERRED_KONTEXT_RESOLUTIONS

    aspect = size[0] / size[1]
    _, *trained = min((abs(aspect - w / h), w, h) for w, h in PREFERRED_KONTEXT_RESOLUTIONS)
    width, height = (max(edge * side // _KONTEXT_SIDE // PIXELS_PER_TOKEN, 1) * PIXELS_PER_TOKEN for edge in trained)
    return width, height


def pack(latents: Float[Tensor, "n c height width"]) -> Float[Tensor, "n s c4"]:
    """Every 2 x 2 latents become one token, channel first, as ``FluxPipeline`` packs them."""
    n, c, height, width = latents.shape
    grid = latents.reshape(n, c, height // 2, 2, width // 2, 2)
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(n, height * width // 4, c * 4)


def unpack(tokens: Float[Tensor, "n s c4"], grid: tuple[int, int]) -> Float[Tensor, "n c height width"]:
    """The inverse of ``pack`` for a grid of (h, w) tokens."""
    n, _, channels = tokens.shape
    h, w = grid
    return (
        tokens.reshape(n, h, w, channels // 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(n, channels // 4, h * 2, w * 2)
    )
