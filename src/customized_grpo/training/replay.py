"""Replay of a rollout's trained transitions with gradients, in micro-batches of (sample, step) pairs.

Dimensions: G group size, K trained steps, S latent tokens, C latent channels, n pairs of a micro-batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from customized_grpo.policies.base import Policy
from customized_grpo.sampling.dynamics import Gaussian, Transition, log_prob
from customized_grpo.types import Conditioning, Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """n transitions of one group, the input of one replay forward."""

    cond: Conditioning
    x: Float[Tensor, "n s c"]
    x_next: Float[Tensor, "n s c"]
    sigma: Float[Tensor, " n"]
    sigma_next: Float[Tensor, " n"]
    sigma_max: Float[Tensor, ""]
    log_prob: Float[Tensor, " n"]
    """Log-probability in the rollout."""
    advantage: Float[Tensor, " n"]
    """Advantage, clamped and multiplied by the step's loss weight."""


def micro_batches(
    groups: Sequence[Trajectory],
    advantages: Sequence[Float[Tensor, "g k"]],
    samples: range,
    size: int,
) -> Iterator[Pairs]:
    """Micro-batches of at most ``size`` pairs over the given samples of every group.

    Pairs run over the samples first, then over the steps, so that a micro-batch of G pairs is one step of one group:
    the batch that the rollout scored, bit for bit. Indices are made on the device: a copy to it would wait for it.
    """
    for trajectory, advantage in zip(groups, advantages, strict=True):
        pairs = torch.arange(len(trajectory.steps) * len(samples), device=trajectory.x.device)
        for part in pairs.split(size):
            g, k = samples.start + part % len(samples), part // len(samples)
            steps: Int[Tensor, " n"] = trajectory.steps[k]
            yield Pairs(
                cond=trajectory.cond,
                x=trajectory.x[g, k],
                x_next=trajectory.x_next[g, k],
                sigma=trajectory.sigmas[steps],
                sigma_next=trajectory.sigmas[steps + 1],
                sigma_max=trajectory.sigmas[1],
                log_prob=trajectory.log_prob[g, k],
                advantage=advantage[g, k],
            )


def num_micro_batches(groups: Sequence[Trajectory], num_samples: int, size: int) -> int:
    """Number of micro-batches that ``micro_batches`` yields."""
    return sum(-(-num_samples * len(trajectory.steps) // size) for trajectory in groups)


def replay(policy: Policy, transition: Transition, pairs: Pairs) -> tuple[Float[Tensor, " n"], Gaussian]:
    """Log-probability of the recorded transitions under the policy as it is now, and the transition's distribution."""
    velocity = policy.velocity(pairs.x, pairs.sigma, pairs.cond)
    sigma, sigma_next = pairs.sigma[:, None, None], pairs.sigma_next[:, None, None]
    gaussian = transition(velocity, pairs.x.float(), sigma, sigma_next, sigma_max=pairs.sigma_max)
    return log_prob(pairs.x_next.float(), gaussian), gaussian
