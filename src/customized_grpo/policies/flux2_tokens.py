"""Tokens of FLUX.2: positions of image, references and text, and the size at which a reference is read.

Dimensions: P tokens of the image and all references, L text tokens, h x w a grid of tokens (16 x 16 pixels each).
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

_PLANE = 10
"""Distance along time between one reference and the next."""
SHORTEST, _WIDEST = 64, 8
"""diffusers takes no reference with a side under 64 pixels or more than 8 times as wide as high."""


def position_ids(grid: tuple[int, int], references: Sequence[tuple[int, int]]) -> Int[Tensor, "p 4"]:
    """(time, row, column, 0) of each token: the image at time 0, reference k at 10 (k + 1), all from the same corner.

    Args:
        grid: (h, w) of the image in tokens.
        references: (h, w) of each reference, in order.
    """
    each = []
    for k, (h, w) in enumerate((grid, *references)):
        axes = torch.tensor([_PLANE * k]), torch.arange(h), torch.arange(w), torch.arange(1)
        each.append(torch.cartesian_prod(*axes))
    return torch.cat(each)


def text_ids(length: int, device: torch.device) -> Int[Tensor, "l 4"]:
    """(0, 0, 0, place) of each text token."""
    places = torch.arange(length, device=device)
    return torch.stack([*[torch.zeros_like(places)] * 3, places], dim=1)


def shrunk_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """The pipelines' scaling: (width, height) of at most ``side`` squared pixels.

    Raises:
        ValueError: it is too small or too long for the model.
    """
    width, height = size
    if min(size) < SHORTEST or max(size) > _WIDEST * min(size):
        raise ValueError(
            f"a reference of {width} x {height} pixels: FLUX.2 takes sides of at least {SHORTEST} pixels, none over "
            f"{_WIDEST} times the other; crop or enlarge it"
        )
    if width * height <= side**2:
        return size
    scale = math.sqrt(side**2 / (width * height))
    return int(width * scale), int(height * scale)
