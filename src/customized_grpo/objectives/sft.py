"""Supervised fine-tuning: flow matching on the target picture of each example (arXiv 2210.02747, 2209.03003).

Dimensions: n pairs of (picture, noise level), S latent tokens, C latent channels.
"""

from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from customized_grpo.objectives.base import PairLoss
from customized_grpo.objectives.old_policy import velocity_kl
from customized_grpo.objectives.per_pair import squared_error
from customized_grpo.objectives.supervised import Supervised, SupervisedConfig
from customized_grpo.types import NoisedPairs


@final
class SFT(Supervised):
    """Flow matching on targets: the warm start that ``customized-grpo sft`` gives a base before RL."""

    class Config(SupervisedConfig):
        """Section ``objective`` of ``type: sft``."""

        targets: ClassVar[int] = 1

    def taught(
        self, velocity: Float[Tensor, "n s c"], base: Float[Tensor, "n s c"] | None, pairs: NoisedPairs
    ) -> PairLoss:
        """The flow-matching loss; the penalty is the mean squared distance to the base's velocity."""
        loss = squared_error(velocity, pairs.noise - pairs.x0).mean()
        penalty = torch.zeros_like(loss) if base is None else velocity_kl(velocity, base).mean()
        return PairLoss(loss=loss, penalty=penalty)
