"""GRPO on the sampler's stochastic transitions: the clipped surrogate of their likelihood ratio.

Dimensions: G group size, T sampler steps, K trained steps, S latent tokens, C latent channels, n pairs.
"""

from collections.abc import Mapping
from typing import Any, Literal, Self, final

import torch
from jaxtyping import Float
from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor

from customized_grpo import registry
from customized_grpo.objectives.base import Draw, Objective, ObjectiveConfig, PairLoss
from customized_grpo.objectives.clipped_surrogate import clipped_surrogate, ratio_metrics
from customized_grpo.objectives.step_weights import equalised, step_sensitivity, step_weights
from customized_grpo.objectives.trust_region import dppo_keeps, dppo_loss, guard_log_ratio, guard_step_weight
from customized_grpo.policies.base import Policy
from customized_grpo.recipe.config import Recipe
from customized_grpo.sampling.clock import Clock
from customized_grpo.sampling.dynamics import Gaussian, Transition, kl, log_prob
from customized_grpo.sampling.rollout import initial_noise, sample_group, transition_noise
from customized_grpo.sampling.schedule import plan_of
from customized_grpo.types import Conditioning, Example, Pairs, Rollout, Trajectory


def replay(policy: Policy, transition: Transition, pairs: Pairs) -> tuple[Float[Tensor, " n"], Gaussian]:
    """Log-probability of the recorded transitions under the policy as it is now, and the transition's distribution."""
    velocity = policy.velocity(pairs.x, pairs.sigma, pairs.cond)
    sigma, sigma_next = pairs.sigma[:, None, None], pairs.sigma_next[:, None, None]
    gaussian = transition(velocity, pairs.x.float(), sigma, sigma_next, sigma_max=pairs.sigma_max)
    return log_prob(pairs.x_next.float(), gaussian), gaussian


@final
class GRPO(Objective):
    """Clipped surrogate on recorded transitions (Flow-GRPO, arXiv 2505.05470; DanceGRPO, arXiv 2505.07818)."""

    class Config(ObjectiveConfig):
        """Section ``objective`` of ``type: grpo``."""

        clip: PositiveFloat = Field(default=1.0e-4, description="half-width of the range of the ratio with a gradient")
        ratio: Literal["plain", "guard", "dppo"] = Field(
            default="plain",
            description="guard: centred and free of the step's scale (GRPO-Guard; published clip: 2e-6); dppo: not "
            "clipped, but masked by the KL from the old policy (Flow-DPPO)",
        )
        threshold: PositiveFloat = Field(default=1.0e-5, description="dppo: KL beyond which no gradient leads away")

        @property
        def compares_means(self) -> bool:
            """True of the ratios that compare means."""
            return self.ratio != "plain"

        @model_validator(mode="before")
        @classmethod
        def _published_clip(cls, given: Any) -> Any:
            """Guard's ratio has another size than the plain one: 1e-8 to 1e-6 at FLUX's."""
            if isinstance(given, dict) and given.get("ratio") == "guard":
                return {"clip": 2.0e-6, **given}
            return given

        @model_validator(mode="after")
        def _keys_are_used(self) -> Self:
            own = {"clip": ("plain", "guard"), "threshold": ("dppo",)}
            for key, ratios in own.items():
                if self.ratio not in ratios and dict(self)[key] != type(self).model_fields[key].default:
                    raise ValueError(
                        f"{key} has no effect with ratio {self.ratio!r}; it belongs to {', '.join(ratios)}"
                    )
            return self

    records_old = True

    def __init__(self, recipe: Recipe, policy: Policy, sigmas: Float[Tensor, " t_plus_1"]) -> None:
        super().__init__(recipe, policy, sigmas)
        section, sampling = recipe.objective, recipe.sampling
        assert isinstance(section, self.Config)
        assert sampling.plan is not None and sampling.dynamics is not None
        self.clip, self.ratio, self.threshold = section.clip, section.ratio, section.threshold
        self.ratio_clip = None if section.ratio == "dppo" else section.clip
        self.plan = plan_of(sampling.plan)
        self.transition: Transition = registry.build_function("dynamics", sampling.dynamics)
        of_log_prob = self.ratio != "guard"
        weights = step_weights(section.step_weighting, self.transition, sigmas, of_log_prob=of_log_prob)
        if self.ratio == "guard" and section.step_weighting == "none":
            weights = equalised(1 / guard_step_weight(sigmas[:-1], sigmas[1:]).cpu())  # published beside the ratio
        self._sensitivity = step_sensitivity(self.transition, sigmas, of_log_prob=of_log_prob) * weights
        self.weights = weights.to(sigmas.device)

    def sample(
        self, example: Example, cond: Conditioning, draw: Draw, *, clock: Clock, batch: int | None
    ) -> Trajectory:
        """See ``Objective.sample``."""
        sampling, size, shape = self.recipe.sampling, self.recipe.train.group_size, self.policy.latent_shape
        plan = self.plan.steps(draw.step, sampling.steps, draw.seed, draw.group)
        where = {"seed": draw.seed, "step": draw.step, "group": draw.group}
        with clock.phase("rollout"):
            noise = initial_noise(shape, size, shared=sampling.shared_noise, **where)
            draws = transition_noise(shape, size, len(plan.stochastic), **where)
        return sample_group(
            self.policy,
            example,
            cond,
            sigmas=self.sigmas,
            plan=plan,
            transition=self.transition,
            noise=noise,
            draws=draws,
            shared_noise=sampling.shared_noise,
            clock=clock,
            batch=batch,
            keep_mean=self.recipe.objective.compares_means,
        )

    @property
    def sensitivity(self) -> Float[Tensor, " t"]:
        """See ``step_weights.step_sensitivity``."""
        return self._sensitivity

    def level_weights(self, rollout: Rollout) -> Float[Tensor, " k"]:
        """See ``step_weights.step_weights``."""
        return self.weights[rollout.progress]

    def old(self, pairs: Pairs) -> Float[Tensor, "n *values"]:
        """Log-probabilities, or where the ratio compares means these."""
        log_probs, gaussian = replay(self.policy, self.transition, pairs)
        return (log_probs if self.ratio == "plain" else gaussian.mean).detach()

    def loss(self, pairs: Pairs, *, on_policy: bool) -> PairLoss:
        """The surrogate of the ratio, and the KL of the transitions to the base's."""
        new, gaussian = replay(self.policy, self.transition, pairs)
        now = new.detach()
        if self.ratio == "plain":
            old = now if on_policy else pairs.log_prob
            loss, details = clipped_surrogate(new, old, pairs.advantage, self.clip), {"log_ratio": now - old}
        else:
            loss, details = self._trusted(new, gaussian, pairs, on_policy=on_policy)
        penalty = torch.zeros_like(loss)
        if self.kl:
            with torch.no_grad(), self.reference():
                _, base = replay(self.policy, self.transition, pairs)
            penalty = kl(gaussian, base).mean()
        return PairLoss(loss=loss, penalty=penalty, details=details | {"to_rollout": now - pairs.log_prob})

    def _trusted(
        self, new: Float[Tensor, " n"], gaussian: Gaussian, pairs: Pairs, *, on_policy: bool
    ) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, " n"]]]:
        """Loss and details of the two trust regions, which compare the transitions' means; std is never trained."""
        old_mean = gaussian.mean.detach() if on_policy else pairs.old_mean
        assert old_mean is not None, "a rollout for these ratios records the means"
        if self.ratio == "guard":
            std = gaussian.std.reshape(-1)
            log_ratio = guard_log_ratio(pairs.x_next.float(), gaussian.mean, old_mean, std)
            loss = clipped_surrogate(log_ratio, torch.zeros_like(log_ratio), pairs.advantage, self.clip)
            return loss, {"log_ratio": log_ratio.detach()}
        before = Gaussian(old_mean, gaussian.std)
        old = log_prob(pairs.x_next.float(), before)
        moved, log_ratio = kl(gaussian, before).detach(), (new - old).detach()
        loss = dppo_loss(new, old, moved, pairs.advantage, threshold=self.threshold).mean()
        kept = dppo_keeps(log_ratio, moved, pairs.advantage, threshold=self.threshold)
        return loss, {"log_ratio": log_ratio, "dropped": (~kept).float()}

    def metrics(
        self, details: Mapping[str, Float[Tensor, " n"]], advantage: Float[Tensor, " n"], *, first: bool
    ) -> dict[str, float]:
        """Statistics of the ratio, and the share of pairs that the clip or the mask leaves without gradient."""
        found = ratio_metrics(details["log_ratio"], advantage, self.clip)
        if (dropped := details.get("dropped")) is not None:
            low, high = (float((dropped * side).mean()) for side in (advantage < 0, advantage > 0))
            found |= {"ratio/clip_share": low + high, "ratio/clip_share_low": low, "ratio/clip_share_high": high}
        return found | ({"ratio/max_abs_log_rollout": float(details["to_rollout"].abs().max())} if first else {})
