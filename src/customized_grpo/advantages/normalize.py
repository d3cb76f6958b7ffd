"""Group normalisation of rewards, and reduction of R rewards to Q axes. NaN (unscorable) is ignored, with advantage 0.

Dimensions: G group size, R rewards, Q axes (prompt, identity, then further ones).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

CONSTANT = 1e-6
"""Spread, relative to the magnitude, that counts as rounding: even 61.9 twelve times has one in float32."""


def normalize(rewards: Float[Tensor, "g *r"]) -> Float[Tensor, "g *r"]:
    """(r - mean) / (std + 1e-8) over the group, with the unbiased std; float32.

    A reward that is not finite is ignored and gets 0. A group that is constant up to float rounding (std at most
    1e-6 of the mean's magnitude), or that has fewer than two finite rewards, gets exact zeros.
    """
    finite = rewards.isfinite()
    return _standardize(rewards.double(), finite, scale=None).float()


def to_axes(
    rewards: Float[Tensor, "g r"], axis_of: Sequence[int], weight_of: Sequence[float], *, num_axes: int
) -> Float[Tensor, "g q"]:
    """Normalised advantage of each axis.

    Each reward is normalised, then averaged with its weight over a sample's finite rewards of the axis, and an axis
    with more than one reward is normalised again, so that every axis has the same spread.

    Args:
        rewards: one column per reward.
        axis_of: axis of each reward; every axis has at least one.
        weight_of: positive weight of each reward inside its axis.
        num_axes: Q.

    Returns:
        float32; 0 where all rewards of the axis are NaN (see ``scorable``).
    """
    assert len(axis_of) == len(weight_of) == rewards.shape[1]
    assert min(weight_of) > 0
    finite = rewards.isfinite()
    z = _standardize(rewards.double(), finite, scale=None)
    axes = []
    for axis in range(num_axes):
        columns = _columns(axis_of, axis)
        if len(columns) == 1:
            axes.append(z[:, columns[0]])
            continue
        mean = _mean_of_finite(z[:, columns], finite[:, columns], [weight_of[r] for r in columns])
        # The parts have spread 1: the rest of cancelling rewards is rounding relative to 1, not to their mean of 0.
        axes.append(_standardize(mean, mean.isfinite(), scale=1.0))
    return torch.stack(axes, dim=1).float()


def raw_axes(
    rewards: Float[Tensor, "g r"], axis_of: Sequence[int], weight_of: Sequence[float], *, num_axes: int
) -> Float[Tensor, "g q"]:
    """Reward of each axis in its own unit: the weighted mean of a sample's finite rewards of the axis.

    Rewards that share an axis should share a unit, or the mean has none.

    Returns:
        float32; the reward itself where an axis has one, NaN where all of an axis are.
    """
    finite = rewards.isfinite()
    axes = []
    for axis in range(num_axes):
        columns = _columns(axis_of, axis)
        values = torch.where(finite[:, columns], rewards[:, columns].double(), 0.0)
        axes.append(_mean_of_finite(values, finite[:, columns], [weight_of[r] for r in columns]))
    return torch.stack(axes, dim=1).float()


def scorable(rewards: Float[Tensor, "g r"], axis_of: Sequence[int], *, num_axes: int) -> Bool[Tensor, " g"]:
    """Samples with at least one finite reward on every axis; the others' advantage must be masked to 0."""
    finite = rewards.isfinite()
    return torch.stack([finite[:, _columns(axis_of, axis)].any(1) for axis in range(num_axes)], dim=1).all(1)


def _mean_of_finite(values: Tensor, finite: Tensor, weights: Sequence[float]) -> Tensor:
    """Weighted mean over the columns whose value is finite, which are 0 elsewhere; NaN where none is."""
    weight = finite * torch.tensor(weights, device=values.device).double()
    return (values * weight).sum(1) / weight.sum(1)


def _standardize(values: Tensor, finite: Tensor, *, scale: float | None) -> Tensor:
    """Standardise over dim 0. ``scale`` is the magnitude to which the spread is compared; None: that of the mean."""
    count = finite.sum(0)
    mean = torch.where(finite, values, 0.0).sum(0) / count.clamp(min=1)
    centred = torch.where(finite, values - mean, 0.0)
    std = (centred.square().sum(0) / (count - 1).clamp(min=1)).sqrt()
    constant = std <= CONSTANT * (mean.abs() if scale is None else scale)
    return torch.where(constant, 0.0, centred / (std + 1e-8))


def _columns(axis_of: Sequence[int], axis: int) -> list[int]:
    columns = [r for r, of in enumerate(axis_of) if of == axis]
    assert columns, f"axis {axis} has no reward"
    return columns
