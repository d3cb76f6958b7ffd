"""Supervised fine-tuning: flow matching on the target picture of each example (arXiv 2210.02747, 2209.03003).

Dimensions: n pairs of (picture, noise level), S latent tokens, C latent channels.
"""

from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from customized_grpo.objectives.base import Draw, PairLoss
from customized_grpo.objectives.old_policy import velocity_kl
from customized_grpo.objectives.supervised import Supervised, SupervisedConfig, matching_error
from customized_grpo.types import NoisedPairs


@final
class SFT(Supervised):
    """Flow matching on targets: the warm start that ``customized-grpo sft`` gives a base before RL."""

    class Config(SupervisedConfig):
        """Section ``objective`` of ``type: sft``."""

        targets: ClassVar[int] = 1

    def noise(self, number: int, draw: Draw) -> Float[Tensor, "1 k s c"]:
        """Noise of the target."""
        return self._fresh(1, number, draw)

    def taught(
        self, velocity: Float[Tensor, "n s c"], base: Float[Tensor, "n s c"] | None, pairs: NoisedPairs
    ) -> PairLoss:
        """See ``matching_error``; the penalty is the mean squared distance to the base's velocity."""
        loss = matching_error(velocity, pairs.x0, pairs.noise).mean()
        penalty = torch.zeros_like(loss) if base is None else velocity_kl(velocity, base).mean()
        return PairLoss(loss=loss, penalty=penalty)
