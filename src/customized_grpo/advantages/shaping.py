"""Advantages of a group from its rewards: normalise, reduce to axes, weight by time, aggregate, clamp, mask.

Dimensions: G group size, R rewards, Q axes (prompt, identity, then further ones), K trained steps.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from customized_grpo.advantages.aggregators import weighted_sum
from customized_grpo.advantages.normalize import raw_axes, scorable, to_axes

Aggregator = Callable[..., Float[Tensor, "g k"]]
"""``(a[G,Q], w[K,Q]) -> [G,K]``, or ``(a, w, raw[G,Q]) -> [G,K]``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Advantages:
    """Advantages of one group, with intermediate results."""

    axes: Float[Tensor, "g q"]
    """Normalised advantage of each axis, before any weight."""
    joined: Float[Tensor, "g k"]
    """The aggregator's, before they are clamped; zero where ``advantage`` is for want of scores."""
    advantage: Float[Tensor, "g k"]
    """Clamped advantages; zero for samples that can't be scored on every axis, and for all of a skipped group."""
    bonus: Float[Tensor, "g k"]
    """Difference of the aggregator and the weighted sum (SARS's synergy term)."""
    scored: Bool[Tensor, " g"]
    """Samples with a finite value on every axis."""
    skipped: bool
    """True if too few samples are scored, or the group is left out: every advantage is zero."""
    clipped_share: float
    """Share of the advantages that were clamped."""
    left_out: bool = False
    """True if a rule left the group out."""
    weight: float = 1.0
    """Weight of the group in the loss."""

    @classmethod
    def alike(cls, size: int, levels: int) -> Self:
        """Advantages of 1 of pictures that nothing judges, as a supervised objective learns from."""
        ones = torch.ones(size, levels)
        return cls(
            axes=torch.zeros(size, 0),
            joined=ones,
            advantage=ones,
            bonus=torch.zeros(size, levels),
            scored=torch.ones(size, dtype=torch.bool),
            skipped=False,
            clipped_share=0.0,
        )

    @property
    def compared(self) -> Bool[Tensor, " g"]:
        """Samples that were compared with others: scored, in a group that is not skipped and not all alike."""
        return self.scored & self.advantage.any()

    def whitened(self, joined: Float[Tensor, "g k"], clip: float) -> Self:
        """The same with other advantages, clamped."""
        share = float((joined.abs() > clip).float().mean())
        return replace(self, joined=joined, advantage=joined.clamp(-clip, clip), clipped_share=share)

    def select(self, samples: Int[Tensor, " n"]) -> Self:
        """Those of some samples alone."""
        return replace(
            self,
            axes=self.axes[samples],
            joined=self.joined[samples],
            advantage=self.advantage[samples],
            bonus=self.bonus[samples],
            scored=self.scored[samples],
        )


def asks_raw(aggregator: Aggregator) -> bool:
    """Whether an aggregator takes the axes' rewards before they are normalised, as its argument ``raw``."""
    return "raw" in inspect.signature(aggregator).parameters


def try_aggregator(aggregator: Aggregator, num_axes: int) -> None:
    """Call an aggregator once, before anything is loaded: on four samples, of which two differ, and three steps.

    Raises:
        ValueError: it fails, or gives no tensor (G, K).
    """
    axes = torch.zeros(4, num_axes)
    axes[0], axes[1] = 1.0, -1.0
    weights = torch.full((3, num_axes), 1 / num_axes)
    try:
        joined = aggregator(axes, weights, raw=axes.clone()) if asks_raw(aggregator) else aggregator(axes, weights)
    except Exception as error:  # whatever a plug-in does
        raise ValueError(
            f"advantage.aggregator: it failed on advantages (4, {num_axes}) and weights (3, {num_axes}): "
            f"{type(error).__name__}: {error}; testing.check_aggregator tries more of it"
        ) from error
    _check_shape(joined, (4, 3))


def _check_shape(joined: object, expected: tuple[int, int]) -> None:
    if not isinstance(joined, Tensor) or joined.shape != expected:
        shape = tuple(joined.shape) if isinstance(joined, Tensor) else type(joined).__name__
        raise ValueError(f"advantage.aggregator: it gave {shape}, where a tensor of (G, K) = {expected} is needed")


def advantages_of(
    rewards: Float[Tensor, "g r"],
    weights: Float[Tensor, "k q"],
    *,
    axis_of: Sequence[int],
    weight_of: Sequence[float],
    aggregator: Aggregator,
    clip: float,
    min_valid: float,
    left_out: bool = False,
) -> Advantages:
    """Advantages A[g, k] of one group.

    Args:
        rewards: one column per reward; NaN means unscorable.
        weights: rows of the time weights at the trained steps.
        axis_of: axis of each reward.
        weight_of: weight of each reward inside its axis.
        aggregator: joins the axes.
        clip: largest |A|.
        min_valid: share of samples that must be scored, else the group is skipped, as mean and spread say little.
        left_out: the group is skipped by a rule.
    """
    axes = to_axes(rewards, axis_of, weight_of, num_axes=weights.shape[1])
    scored = scorable(rewards, axis_of, num_axes=weights.shape[1])
    skipped = left_out or float(scored.float().mean()) < min_valid
    used = (scored & (not skipped))[:, None]
    if asks_raw(aggregator):
        joined = aggregator(axes.clone(), weights, raw=raw_axes(rewards, axis_of, weight_of, num_axes=weights.shape[1]))
    else:
        joined = aggregator(axes.clone(), weights)
    _check_shape(joined, (len(axes), len(weights)))
    raw = joined * used
    return Advantages(
        axes=axes,
        joined=raw,
        advantage=raw.clamp(-clip, clip),
        bonus=raw - weighted_sum(axes, weights) * used,
        scored=scored,
        skipped=skipped,
        clipped_share=float((raw.abs() > clip).float().mean()),
        left_out=left_out,
    )
