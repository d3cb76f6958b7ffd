"""The objective: the clipped surrogate, how often it clips, and the loss weight of each step.

Dimensions: n pairs of (sample, trained step), T sampler steps.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from customized_grpo.sampling.rollout import Transition


def clipped_surrogate(
    log_prob: Float[Tensor, "*n"],
    old_log_prob: Float[Tensor, "*n"],
    advantage: Float[Tensor, "*n"],
    clip: float,
    *,
    max_advantage: float = 5.0,
) -> Float[Tensor, ""]:
    """PPO's loss: mean of max(-A rho, -A clamp(rho, 1 - clip, 1 + clip)), rho = exp(log_prob - old_log_prob).

    Args:
        log_prob: of the recorded transitions under the policy as it is now.
        old_log_prob: under the policy that sampled them; no gradient.
        advantage: A; no gradient.
        clip: half-width of the range in which rho has a gradient.
        max_advantage: A is clamped to +- this.
    """
    a = advantage.clamp(-max_advantage, max_advantage).detach()
    rho = (log_prob - old_log_prob.detach()).exp()
    return torch.maximum(-a * rho, -a * rho.clamp(1 - clip, 1 + clip)).mean()


@dataclass(frozen=True, slots=True, kw_only=True)
class RatioStats:
    """How far a replay is from its rollout."""

    mean: float
    """Of rho."""
    max: float
    """Of rho."""
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


def sensitivity(transition: Transition, sigmas: Float[Tensor, " t_plus_1"]) -> Float[Tensor, " t"]:
    """m_k = |d mean / d v| / std_k: the size of d log_prob / d v at step k, up to a draw of noise.

    The mean is affine in v, so its difference between v = 1 and v = 0 is the derivative, for every dynamics.

    Returns:
        float32; 0 at the last step, which is never trained.
    """
    grid = sigmas.double().cpu()
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    sizes = [0.0] * (len(grid) - 1)
    for k in range(len(sizes) - 1):
        at_zero = transition(zero, zero, grid[k], grid[k + 1], sigma_max=grid[1])
        at_one = transition(one, zero, grid[k], grid[k + 1], sigma_max=grid[1])
        sizes[k] = float(((at_one.mean - at_zero.mean).abs() / at_one.std).max())
    return torch.tensor(sizes, dtype=torch.float32)


def step_weights(
    mode: Literal["none", "equal"], transition: Transition, sigmas: Float[Tensor, " t_plus_1"]
) -> Float[Tensor, " t"]:
    """Factor of each step's loss.

    ``none`` is the paper: 1 everywhere. ``equal`` is 1 / m_k (see ``sensitivity``) scaled to mean 1 over the
    trainable steps: late steps of a shifted grid carry 2 to 5 times the gradient of early ones, and so tilt any time
    weighting towards what is weighted late. The last step, which is never trained, gets 0.
    """
    num_steps = len(sigmas) - 1
    if mode == "none":
        return torch.ones(num_steps)
    inverse = 1 / sensitivity(transition, sigmas)[:-1]
    return torch.cat([inverse / inverse.mean(), torch.zeros(1)])
