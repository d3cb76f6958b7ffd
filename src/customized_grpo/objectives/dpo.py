"""Diffusion-DPO: direct preference optimization on ranked pictures (arXiv 2311.12908), for flow models.

Dimensions: p pairs of pictures at one level each, n = 2 p rows of a micro-batch (chosen, rejected, chosen, ...),
S latent tokens, C latent channels.
"""

from collections.abc import Mapping
from typing import ClassVar, final

import torch
from jaxtyping import Float
from pydantic import Field, PositiveFloat
from torch import Tensor
from torch.nn.functional import logsigmoid

from customized_grpo.objectives.base import PairLoss
from customized_grpo.objectives.per_pair import squared_error
from customized_grpo.objectives.supervised import Supervised, SupervisedConfig
from customized_grpo.policies.base import Policy
from customized_grpo.recipe.config import Recipe
from customized_grpo.types import NoisedPairs


def dpo_margin(error: Float[Tensor, " n"], base_error: Float[Tensor, " n"], *, beta: float) -> Float[Tensor, " p"]:
    """The implicit reward of the chosen over the rejected picture, beta / 2 ((e_l - e_l,base) - (e_w - e_w,base)).

    e is the flow-matching loss; rows alternate (chosen w, rejected l), both of one level and one noise. Diffusion-DPO,
    equation 14, in the form of its code, where T omega(lambda) / D is a half and the errors are means over dimensions.

    Args:
        error: e of the policy that is trained.
        base_error: e of the base; no gradient.
        beta: strength of the hold on the base.
    """
    gain = base_error.detach() - error
    return beta / 2 * (gain[0::2] - gain[1::2])


@final
class DPO(Supervised):
    """Diffusion-DPO (arXiv 2311.12908), offline: the chosen picture of an example is to be likelier than the other."""

    class Config(SupervisedConfig):
        """Section ``objective`` of ``type: dpo``."""

        targets: ClassVar[int] = 2

        beta: PositiveFloat = Field(
            default=2000.0, description="hold on the base; Diffusion-DPO: 2000 for SD 1.5, 5000 for SDXL"
        )

        @property
        def needs_base(self) -> bool:
            """Always: the loss compares with it."""
            return True

        def unused(self, updates: int) -> str:
            """``kl``, as ``beta`` is its weight here."""
            if self.kl:
                return "kl: it has no effect with dpo, whose hold on the base is beta; leave it out, or raise that"
            return super().unused(updates)

    def __init__(self, recipe: Recipe, policy: Policy, sigmas: Float[Tensor, " t_plus_1"]) -> None:
        super().__init__(recipe, policy, sigmas)
        section = recipe.objective
        assert isinstance(section, self.Config)
        self.beta = section.beta

    def taught(
        self, velocity: Float[Tensor, "n s c"], base: Float[Tensor, "n s c"] | None, pairs: NoisedPairs
    ) -> PairLoss:
        """The mean of -log sigmoid of each pair's ``dpo_margin``."""
        assert base is not None, "Config.needs_base"
        error, held = (squared_error(one, pairs.noise - pairs.x0) for one in (velocity, base))
        margin = dpo_margin(error, held, beta=self.beta)
        loss = -logsigmoid(margin).mean()
        return PairLoss(
            loss=loss, penalty=torch.zeros_like(loss), details={"margin": margin.detach().repeat_interleave(2)}
        )

    def metrics(
        self, details: Mapping[str, Float[Tensor, " n"]], advantage: Float[Tensor, " n"], *, first: bool
    ) -> dict[str, float]:
        """Mean margin, and the share of pairs whose chosen picture became the likelier one."""
        margin = details["margin"]
        return {"dpo/margin": float(margin.mean()), "dpo/accuracy": float((margin > 0).float().mean())}
