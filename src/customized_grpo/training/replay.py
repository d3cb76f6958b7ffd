"""Micro-batches of (sample, level) pairs of a rollout, and the replay of recorded transitions with gradients.

Dimensions: G group size, K trained levels, S latent tokens, C latent channels, n pairs of a micro-batch.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from customized_grpo.objectives.grpo import replay as replay
from customized_grpo.types import Pairs as Pairs
from customized_grpo.types import Rollout


def micro_batches(
    groups: Sequence[Rollout],
    advantages: Sequence[Float[Tensor, "g k"]],
    samples: range,
    size: int,
    weights: Sequence[Float[Tensor, "g k"]] | None = None,
) -> Iterator[Any]:
    """Micro-batches of at most ``size`` pairs over the given samples of every group, with their weights in the loss.

    Pairs run over the samples first, then over the levels, so that a micro-batch of G pairs is one step of one group:
    the batch that the rollout scored, bit for bit. Indices are made on the device: a copy to it would wait for it.
    """
    for number, (group, advantage) in enumerate(zip(groups, advantages, strict=True)):
        weight = torch.ones_like(advantage) if weights is None else weights[number]
        pairs = torch.arange(len(group.progress) * len(samples), device=advantage.device)
        for part in pairs.split(size):
            g, k = samples.start + part % len(samples), part // len(samples)
            yield group.pairs(g, k, advantage[g, k], weight[g, k])


def num_micro_batches(groups: Sequence[Rollout], num_samples: int, size: int) -> int:
    """Number of micro-batches that ``micro_batches`` yields."""
    return sum(-(-num_samples * len(group.progress) // size) for group in groups)
