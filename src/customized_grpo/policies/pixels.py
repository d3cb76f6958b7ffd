"""Pixels in and out of a VAE: pictures as float32 in [-1, 1], and latents as uint8 images.

Dimensions: n batch, S latent tokens, C channels of a token, H x W pixels.
"""

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL.Image import Image
from torch import Tensor

_DECODE_CHUNK: Final = 4


def pixels_of(images: Sequence[Image]) -> Float[Tensor, "n channels h w"]:
    """Pictures of one size and mode as float32 in [-1, 1]."""
    values = np.stack([np.asarray(image, dtype=np.float32) for image in images])
    return torch.from_numpy(values / 127.5 - 1.0).permute(0, 3, 1, 2)


@torch.no_grad()
def decode_images(
    x: Float[Tensor, "n s c"],
    decode: Callable[[Float[Tensor, "m s c"]], Float[Tensor, "m 3 h w"]],
) -> UInt8[Tensor, "n h w 3"]:
    """uint8 RGB on the CPU, rounded as diffusers' ``VaeImageProcessor`` does, a few samples at a time.

    Args:
        x: final latents.
        decode: latents to pixels in [-1, 1].
    """
    images = []
    for chunk in torch.split(x.float(), _DECODE_CHUNK):
        pixels = (decode(chunk) / 2 + 0.5).clamp(0, 1) * 255
        images.append(pixels.round().to(torch.uint8).permute(0, 2, 3, 1).cpu())
    return torch.cat(images)
