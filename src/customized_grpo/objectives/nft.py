"""DiffusionNFT: negative-aware fine-tuning on the forward process (arXiv 2509.16117).

Dimensions: n pairs of (sample, noise level), S latent tokens, C latent channels, D = S C.
Forward process: x_t = (1 - sigma) x0 + sigma noise, with the target velocity u = noise - x0.
"""

from collections.abc import Mapping
from typing import final

from jaxtyping import Float
from pydantic import Field, PositiveFloat
from torch import Tensor

from customized_grpo.objectives.forward import ForwardConfig, ForwardObjective, Old
from customized_grpo.objectives.old_policy import velocity_kl
from customized_grpo.objectives.per_pair import mean_over_dims, wide
from customized_grpo.policies.base import Policy
from customized_grpo.recipe.config import Recipe
from customized_grpo.types import NoisedPairs

MIN_WEIGHT = 1e-5
"""Lower bound of the mean absolute error that a squared error is divided by."""


def optimality(advantage: Float[Tensor, " n"], *, max_advantage: float) -> Float[Tensor, " n"]:
    """r = clip(A / max_advantage / 2 + 1/2, 0, 1): the probability that a sample is a good one (section 3.3)."""
    return (advantage / max_advantage / 2 + 0.5).clamp(0, 1)


def nft_loss(
    velocity: Float[Tensor, "n s c"],
    old_velocity: Float[Tensor, "n s c"],
    x0: Float[Tensor, "n s c"],
    x_t: Float[Tensor, "n s c"],
    sigma: Float[Tensor, " n"],
    advantage: Float[Tensor, " n"],
    *,
    beta: float,
    max_advantage: float,
) -> Float[Tensor, " n"]:
    """Loss of each pair: max_advantage (r l+ + (1 - r) l-) / beta (DiffusionNFT, algorithm 1 and NVlabs' code).

    v+ = beta v + (1 - beta) v_old and v- = (1 + beta) v_old - beta v are the implicit positive and negative policies;
    l = mean((x_t - sigma v± - x0)^2) / w± with w± = max(mean|x_t - sigma v± - x0|, 1e-5), which has no gradient.

    On policy, v = v_old, v+ and v- agree and the gradient is that of advantage-weighted matching,

        d loss / d v = clip(A, -max_advantage, max_advantage) sigma / mean|v - u|  d mean((v - u)^2) / d v,

    whatever beta is. Its size, 2 |A| sigma rms(v - u) / mean|v - u| / sqrt(D), does not depend on the error's size but
    is proportional to sigma: divided by sigma, every level pulls alike. It is the gradient of advantage-weighted
    ``awm.matching_log_prob`` with the weighting ``huber`` times 2 rms(v - u) / mean|v - u|, about 2.5.

    An advantage of 0 gives exactly no gradient on policy. Off policy it pulls v back to v_old: to leave a pair out, as
    one of a sample that could not be scored, multiply its loss by 0 or don't make the pair.

    Args:
        velocity: v, of the policy that is trained.
        old_velocity: v_old, of the policy that sampled x0; no gradient.
        x0: the sample, a final latent.
        x_t: the sample noised to ``sigma``.
        sigma: noise level, in (0, 1].
        advantage: A, positive for good samples; no gradient. NaN stays NaN.
        beta: strength of the guidance from v_old towards the good samples, above 0; 0.1 and 1 are published.
        max_advantage: |A| at which r is 0 or 1, above 0; 5 is published.

    Returns:
        float32, or float64 if an input of shape (n, s, c) is. Minimise its mean.
    """
    v, v_old, clean, noisy = wide(velocity, old_velocity.detach(), x0, x_t)
    s = sigma.to(v)[:, None, None]
    r = optimality(advantage.detach().to(v), max_advantage=max_advantage)
    shift = beta * (v - v_old)  # v_old ± shift is v±, and exactly v_old on policy
    positive = _normalized_error(noisy - s * (v_old + shift) - clean)
    negative = _normalized_error(noisy - s * (v_old - shift) - clean)
    return max_advantage * (r * positive + (1 - r) * negative) / beta


def _normalized_error(error: Float[Tensor, "n s c"]) -> Float[Tensor, " n"]:
    return mean_over_dims(error.square()) / mean_over_dims(error.detach().abs()).clamp(min=MIN_WEIGHT)


@final
class NFT(ForwardObjective):
    """DiffusionNFT (arXiv 2509.16117): good samples attract the velocity, bad ones repel it, at any noise level."""

    class Config(ForwardConfig):
        """Section ``objective`` of ``type: nft``."""

        beta: PositiveFloat = Field(default=1.0, description="strength of the guidance by the samples off policy")
        old: Old | None = Field(
            default=None, description="a policy that samples and lags behind the trained one; null: the newest samples"
        )
        max_advantage: PositiveFloat = Field(default=5.0, description="|A| at which a sample is wholly good or bad")

        @property
        def keeps_average(self) -> bool:
            """True if a policy that lags behind samples."""
            return self.old is not None

        def unused(self, updates: int) -> str:
            """``beta``, on which the gradient does not depend on policy."""
            if self.beta == 1.0 or self.old is not None or updates > 1:
                return ""
            return (
                "beta: it has no effect where each rollout is sampled by the newest weights and used for one update; "
                "leave it out, or set objective.old or train.updates_per_rollout"
            )

        def compared_shares(self, updates: int) -> float:
            """Share of the later updates, or all pairs if another policy samples."""
            return 1.0 if self.old is not None else super().compared_shares(updates)

    def __init__(self, recipe: Recipe, policy: Policy, sigmas: Float[Tensor, " t_plus_1"]) -> None:
        super().__init__(recipe, policy, sigmas)
        section = recipe.objective
        assert isinstance(section, self.Config)
        self.beta, self.max_advantage = section.beta, section.max_advantage
        self.old_decay = None if section.old is None else section.old.decay

    def pull(self, sigma: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
        """Its error of x0, divided by its own size, is proportional to sigma, see ``nft_loss``."""
        return sigma

    def pair_loss(
        self, velocity: Float[Tensor, "n s c"], old_velocity: Float[Tensor, "n s c"], pairs: NoisedPairs
    ) -> tuple[Float[Tensor, " n"], dict[str, Float[Tensor, " n"]]]:
        """See ``nft_loss``."""
        each = nft_loss(
            velocity,
            old_velocity,
            pairs.x0,
            pairs.x_t,
            pairs.sigma,
            pairs.advantage,
            beta=self.beta,
            max_advantage=self.max_advantage,
        )
        return each, {"moved": velocity_kl(velocity.detach(), old_velocity)}

    def metrics(
        self, details: Mapping[str, Float[Tensor, " n"]], advantage: Float[Tensor, " n"], *, first: bool
    ) -> dict[str, float]:
        """Mean squared distance of the velocity to the old policy's."""
        return {"velocity/moved": float(details["moved"].mean())}
