"""Clipped surrogate of PPO and GRPO, and statistics of its ratio. Dimensions: n pairs of (sample, trained step)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


def clipped_surrogate(
    log_prob: Float[Tensor, "*n"],
    old_log_prob: Float[Tensor, "*n"],
    advantage: Float[Tensor, "*n"],
    clip: float,
) -> Float[Tensor, ""]:
    """PPO's loss: mean of max(-A rho, -A clamp(rho, 1 - clip, 1 + clip)), rho = exp(log_prob - old_log_prob).

    Args:
        log_prob: log-probability of the recorded transitions under the current policy.
        old_log_prob: log-probability under the policy that sampled them; no gradient.
        advantage: A; no gradient.
        clip: half-width of the range in which rho has a gradient.
    """
    return clipped_terms(log_prob, old_log_prob, advantage, clip).mean()


def clipped_terms(
    log_prob: Float[Tensor, "*n"],
    old_log_prob: Float[Tensor, "*n"],
    advantage: Float[Tensor, "*n"],
    clip: float,
) -> Float[Tensor, "*n"]:
    """The term of each pair in ``clipped_surrogate``."""
    a = advantage.detach()
    rho = (log_prob - old_log_prob.detach()).exp()
    return torch.maximum(-a * rho, -a * rho.clamp(1 - clip, 1 + clip))


@dataclass(frozen=True, slots=True, kw_only=True)
class RatioStats:
    """Statistics of the ratios rho of a replay to its rollout."""

    mean: float
    """Mean of rho."""
    max: float
    """Largest rho."""
    max_abs_log: float
    """Largest |log rho|."""
    clip_share_low: float
    """Pairs that lost their gradient below the range: A < 0 and rho < 1 - clip."""
    clip_share_high: float
    """Pairs that lost their gradient above the range: A > 0 and rho > 1 + clip."""


def ratio_stats(log_ratio: Float[Tensor, "*n"], advantage: Float[Tensor, "*n"], clip: float) -> RatioStats:
    """Statistics of rho = exp(log_ratio), for a log; the tensors are not empty."""
    rho = log_ratio.detach().exp()
    return RatioStats(
        mean=float(rho.mean()),
        max=float(rho.max()),
        max_abs_log=float(log_ratio.detach().abs().max()),
        clip_share_low=float(((advantage < 0) & (rho < 1 - clip)).float().mean()),
        clip_share_high=float(((advantage > 0) & (rho > 1 + clip)).float().mean()),
    )


def ratio_metrics(log_ratio: Float[Tensor, " n"], advantage: Float[Tensor, " n"], clip: float) -> dict[str, float]:
    """The same under the names of the metrics."""
    stats = ratio_stats(log_ratio, advantage, clip)
    return {
        "ratio/max": stats.max,
        "ratio/max_abs_log": stats.max_abs_log,
        "ratio/clip_share": stats.clip_share_low + stats.clip_share_high,
        "ratio/clip_share_low": stats.clip_share_low,
        "ratio/clip_share_high": stats.clip_share_high,
    }
