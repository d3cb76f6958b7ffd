"""Time weights: weight of each axis at each step of the sampler. Each is ``num_steps -> [T, Q]``.

Dimensions: T sampler steps, k = 0 .. T-1 from noise to data; Q axes (prompt, identity), in this order; a recipe
with further axes adds their columns (``axes.with_further``), unless a schedule has one for each. The keyword-only
parameters are the keys of ``advantage.time_weights`` in a recipe.
"""

from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor

Share = Annotated[float, Field(ge=0.0, le=1.0)]


def tdw(
    num_steps: int,
    *,
    high: Annotated[Share, Field(description="prompt's weight at the start")] = 0.7,
    low: Annotated[Share, Field(description="what it falls towards")] = 0.3,
    final: Annotated[Share, Field(description="prompt's weight at the end")] = 0.5,
    start: Share = 0.24,
    stop: Share = 0.56,
    integrate: Share = 0.88,
    slope: PositiveFloat = 20.0,
) -> Float[Tensor, "t q"]:
    """Time-aware dynamic weighting (Customized-GRPO, arXiv 2510.18263): prompt first, then identity, then both.

    With progress u = k / T, w_prompt is ``high`` for u < start, ``final`` for u >= integrate, and between them
    low + (high - low) (1 - sigmoid(slope (u - (start + stop) / 2))); w_identity = 1 - w_prompt. At T = 25 the
    defaults are the paper's table: 0.7 below step 6, 0.5 from step 22 on, and in between a sigmoid of 0.8 per step
    around step 10.

    Raises:
        ValueError: start, stop and integrate are not in this order.
    """
    if not start <= stop <= integrate:
        raise ValueError(f"start <= stop <= integrate is needed; given {start}, {stop}, {integrate}")
    k = torch.arange(num_steps, dtype=torch.float64)
    u = k / num_steps
    prompt = low + (high - low) * (1 - torch.sigmoid(slope * (u - (start + stop) / 2)))
    # a break point on a whole step belongs to the later stage, however start * T was rounded
    prompt = torch.where(k < start * num_steps - 1e-9, high, prompt)
    prompt = torch.where(k < integrate * num_steps - 1e-9, prompt, final)
    return torch.stack([prompt, 1 - prompt], dim=1).float()


def constant(
    num_steps: int, *, prompt: NonNegativeFloat = 0.5, identity: NonNegativeFloat = 0.5
) -> Float[Tensor, "t q"]:
    """The same weights at every step, as they are: 0.4 and 0.6 is the ratio 1:1.5 at the size of 0.5 and 0.5."""
    return torch.tensor([[prompt, identity]], dtype=torch.float32).repeat(num_steps, 1)


def table(
    num_steps: int, *, rows: tuple[Annotated[tuple[NonNegativeFloat, ...], Field(min_length=2)], ...]
) -> Float[Tensor, "t q"]:
    """Any weights, one row (prompt, identity, perhaps further axes) per step.

    Raises:
        ValueError: not one row for each of the ``num_steps`` steps, or rows of different lengths.
    """
    if len(rows) != num_steps:
        raise ValueError(
            f"rows: given {len(rows)} rows for {num_steps} sampler steps; "
            "give one [prompt, identity] row per step, or change sampling.steps"
        )
    if odd := [k for k, row in enumerate(rows) if len(row) != len(rows[0])]:
        raise ValueError(
            f"rows: row {odd[0]} has {len(rows[odd[0]])} numbers and row 0 has {len(rows[0])}; give each a number for "
            "every axis, or for prompt and identity alone"
        )
    return torch.tensor(rows, dtype=torch.float32)


def leaning(weights: Float[Tensor, "k q"], b: float, *, reach: float) -> Float[Tensor, "k q"]:
    """Weights moved from the prompt (b = -1) to the identity (b = 1); each row's sum stays, and b = 0 changes nothing.

    Args:
        weights: of prompt, identity, and perhaps further axes, which are not moved but scaled with the row.
        b: in [-1, 1].
        reach: in (0, 1]; at 1 the ends are one axis alone.
    """
    factor = torch.ones(weights.shape[1], dtype=weights.dtype)
    factor[0], factor[1] = 1 - reach * b, 1 + reach * b
    moved = weights * factor
    total = moved.sum(1, keepdim=True)
    return moved * torch.where(total > 0, weights.sum(1, keepdim=True) / total.clamp(min=1e-12), 1.0)
