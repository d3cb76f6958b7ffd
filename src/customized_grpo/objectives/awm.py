"""Advantage weighted matching: the negative matching loss as a log-probability (AWM, arXiv 2509.25050).

Dimensions: n pairs of (sample, noise level), S latent tokens, C latent channels.
The loss is ``clipped_surrogate.clipped_surrogate`` of this log-probability under the policy and under the one that
sampled, at the same noise and level.
"""

from collections.abc import Mapping
from typing import Literal, Self, final

from jaxtyping import Float
from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator
from torch import Tensor

from customized_grpo.objectives.clipped_surrogate import clipped_terms, ratio_metrics
from customized_grpo.objectives.forward import ForwardConfig, ForwardObjective, Old
from customized_grpo.objectives.per_pair import squared_error
from customized_grpo.policies.base import Policy
from customized_grpo.recipe.config import Recipe
from customized_grpo.types import NoisedPairs

FLOOR = 1e-10
"""Squared error that the roots of ``huber`` and ``ghuber`` are smoothed by."""

Weighting = Literal["uniform", "sigma", "sigma2", "huber", "ghuber"]
"""How much a level and a large error weigh in the matching loss."""


def matching_log_prob(
    velocity: Float[Tensor, "n s c"],
    target: Float[Tensor, "n s c"],
    sigma: Float[Tensor, " n"],
    *,
    weighting: Weighting,
    power: float = 0.25,
) -> Float[Tensor, " n"]:
    """Log-probability of each pair, up to a constant, with E = mean((v - u)^2) over the dims of a pair.

    ==========  =======================================================
    weighting   log p
    ==========  =======================================================
    uniform     -E
    sigma       -sigma E
    sigma2      -sigma^2 E, the squared error of x0
    huber       -sigma (sqrt(E + 1e-10) - 1e-5)
    ghuber      -sigma ((E + 1e-10)^power - (1e-10)^power) / power
    ==========  =======================================================

    The first three have a gradient in proportion to the error; that of ``huber`` is free of its size, and ``ghuber``
    with a power below 1/2 (the authors' 1/4) favours pairs that fit well. At power 1/2, ``ghuber`` is twice ``huber``.

    Args:
        velocity: v, of the policy.
        target: u = noise - x0, of the noise and sample that made the state.
        sigma: noise level, in (0, 1].
        weighting: see above; the authors' recipes take ``ghuber``.
        power: exponent of ``ghuber``, above 0.

    Returns:
        float32, or float64 if an input of shape (n, s, c) is.
    """
    error = squared_error(velocity, target)
    s = sigma.to(error)
    match weighting:
        case "uniform":
            cost = error
        case "sigma":
            cost = s * error
        case "sigma2":
            cost = s.square() * error
        case "huber":
            cost = s * ((error + FLOOR).sqrt() - FLOOR**0.5)
        case "ghuber":
            cost = s * ((error + FLOOR) ** power - FLOOR**power) / power
    return -cost


@final
class AWM(ForwardObjective):
    """Advantage weighted matching (arXiv 2509.25050): the clipped ratio of two policies' matching log-probabilities."""

    class Config(ForwardConfig):
        """Section ``objective`` of ``type: awm``."""

        clip: PositiveFloat = Field(
            default=1.0, description="half-width of the range of the ratio with a gradient; the authors' 1 hardly acts"
        )
        average: Old | None = Field(
            default=None, description="a running average that average_kl holds the policy to; the authors': limit: 0.3"
        )
        average_kl: NonNegativeFloat = Field(default=0.0, description="weight of the KL to it; the authors' is 1")
        weighting: Weighting = Field(
            default="ghuber", description="how much a level and a large error weigh in the log-probability"
        )

        @property
        def keeps_average(self) -> bool:
            """True if the loss holds on to a running average."""
            return self.average is not None

        def compared_shares(self, updates: int) -> float:
            """Share of the later updates, and all pairs for the average."""
            return super().compared_shares(updates) + (self.average is not None)

        @model_validator(mode="after")
        def _both_or_neither(self) -> Self:
            if (self.average is None) != (self.average_kl == 0):
                raise ValueError("average, average_kl: one has no effect without the other; give both, or neither")
            return self

    def __init__(self, recipe: Recipe, policy: Policy, sigmas: Float[Tensor, " t_plus_1"]) -> None:
        super().__init__(recipe, policy, sigmas)
        section = recipe.objective
        assert isinstance(section, self.Config)
        self.clip, self.weighting = section.clip, section.weighting
        self.ratio_clip = section.clip
        self.old_decay = None if section.average is None else section.average.decay
        self.old_samples, self.average_kl = False, section.average_kl

    def pull(self, sigma: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
        """The weighting's power of sigma."""
        return sigma ** {"uniform": 0, "sigma2": 2}.get(self.weighting, 1)

    def pair_loss(
        self, velocity: Float[Tensor, "n s c"], old_velocity: Float[Tensor, "n s c"], pairs: NoisedPairs
    ) -> tuple[Float[Tensor, " n"], dict[str, Float[Tensor, " n"]]]:
        """See ``matching_log_prob``."""
        target = pairs.noise - pairs.x0
        new, old = (
            matching_log_prob(one, target, pairs.sigma, weighting=self.weighting) for one in (velocity, old_velocity)
        )
        return clipped_terms(new, old, pairs.advantage, self.clip), {"log_ratio": (new - old).detach()}

    def metrics(
        self, details: Mapping[str, Float[Tensor, " n"]], advantage: Float[Tensor, " n"], *, first: bool
    ) -> dict[str, float]:
        """Statistics of the ratio."""
        return ratio_metrics(details["log_ratio"], advantage, self.clip)
