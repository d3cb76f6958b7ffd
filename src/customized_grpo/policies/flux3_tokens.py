"""Tokens of FLUX.3: positions of image and references, and the size at which a reference is read.

One reference is kept whole: padded by its reflection to whole tokens. Each of several is cropped to whole tokens.
Dimensions: h x w a grid of tokens (16 x 16 pixels each), s = h w.
"""

import math
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from customized_grpo.policies.flux_tokens import PIXELS_PER_TOKEN, whole_tokens

ONE: Final = 2048
"""Side of the square whose pixels one reference has at most, with its padding."""
MANY: Final = 1024
"""The same of each of several."""
_SCALE: Final = 0.5
"""Rows and columns are counted in halves."""
_SHORTEST: Final = 64
_LONGEST: Final = 4096
"""Sides of the canvas of one reference, in pixels."""
_BACK_OFF: Final = 0.995


def image_ids(grid: tuple[int, int], place: int) -> Float[Tensor, "s 4"]:
    """(time, row, column, place) of each token; the image has the place 0, the first reference -1, the next -2."""
    h, w = grid
    axes = torch.zeros(1), torch.arange(h) * _SCALE, torch.arange(w) * _SCALE, torch.tensor([float(place)])
    ids: Tensor = torch.cartesian_prod(*axes)
    return ids


def scaled_size(size: tuple[int, int], count: int, side: int) -> tuple[int, int]:
    """(width, height) to which a reference is scaled, one of ``count``, before it is padded or cropped.

    Args:
        size: (width, height).
        count: number of references.
        side: of the square that has as many pixels as the result may have.
    """
    width, height = size
    if count > 1:
        if width * height <= side**2:
            return size
        scale = math.sqrt(side**2 / (width * height))
        return int(width * scale), int(height * scale)
    scale = min(1.0, math.sqrt(side**2 / (width * height)), _LONGEST / max(size))
    while True:  # the released code's way down to a canvas that fits, after rounding up
        scaled = max(1, round(width * scale)), max(1, round(height * scale))
        if math.prod(_canvas(scaled)) <= side**2:
            return scaled
        scale *= _BACK_OFF


def fitted_size(size: tuple[int, int], count: int, side: int) -> tuple[int, int]:
    """(width, height) at which the model reads a reference.

    Raises:
        ValueError: one of several, of which less than a token is left.
    """
    scaled = scaled_size(size, count, side)
    if count == 1:
        return _canvas(scaled)
    if min(scaled) < PIXELS_PER_TOKEN:
        raise ValueError(
            f"a reference of {size[0]} x {size[1]} pixels, one of {count}: read in at most {side} x {side} pixels, its "
            f"short side is under {PIXELS_PER_TOKEN}; crop or enlarge it, or raise policy.reference_size"
        )
    return whole_tokens(scaled)


def _canvas(size: tuple[int, int]) -> tuple[int, int]:
    width, height = (min(_LONGEST, max(_SHORTEST, -(-edge // PIXELS_PER_TOKEN) * PIXELS_PER_TOKEN)) for edge in size)
    return width, height
