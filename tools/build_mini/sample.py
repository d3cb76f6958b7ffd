"""Sampling the miniature policy while it is built: deterministic for pictures, stochastic as in RL for the gate."""

import math

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from jaxtyping import Float, UInt8
from torch import Tensor

from build_mini.pictures import Pairs, as_uint8, render_many
from build_mini.policy import SHIFT, Velocity
from build_mini.pool import decode, encode
from build_mini.text import scene_row


def sigma_grid(steps: int) -> Float[Tensor, "t"]:
    """steps + 1 values from 1 to 0 on the shifted grid."""
    u = torch.linspace(1, 0, steps + 1)
    return SHIFT * u / (1 + (SHIFT - 1) * u)


@torch.no_grad()
def sample(
    transformer: FluxTransformer2DModel,
    vae: AutoencoderKL,
    pairs: Pairs,
    table: tuple[Tensor, Tensor],
    *,
    noise: Float[Tensor, "n s c"],
    noise_level: float,
    steps: int = 10,
    seed: int = 0,
) -> UInt8[Tensor, "n h w 3"]:
    """Samples one picture per pair from the given noise; noise_level 0 is the deterministic flow, above it flow SDE.

    The last step adds no noise, as in RL.
    """
    scenes = pairs.scenes
    rows = scene_row(pairs.subjects.cls, scenes.place, scenes.position, scenes.size, scenes.hat)
    text, pooled = (t[rows] for t in table)
    reference = encode(vae, render_many(pairs.subjects, pairs.reference_scenes))
    generator = torch.Generator().manual_seed(seed)
    velocity, x, grid = Velocity(transformer.eval()), noise, sigma_grid(steps)
    for k, (sigma, sigma_next) in enumerate(zip(grid[:-1].tolist(), grid[1:].tolist(), strict=True)):
        v = torch.cat(
            [
                velocity(*chunk)
                for chunk in zip(
                    *(t.split(64) for t in (x, torch.full((len(x),), sigma), reference, text, pooled)),
                    strict=True,
                )
            ]
        )
        d = sigma - sigma_next
        if noise_level == 0 or k == steps - 1:
            x = x - v * d
            continue
        g = noise_level * math.sqrt(sigma / (1 - (float(grid[1]) if sigma == 1 else sigma)))
        toward_noise = x + (1 - sigma) * v
        x = x - v * d - g**2 / (2 * sigma) * toward_noise * d
        x = x + g * math.sqrt(d) * torch.randn(x.shape, generator=generator)
    return as_uint8(decode(vae, x))
