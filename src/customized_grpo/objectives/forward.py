"""Base of objectives on the forward process: final latents by any solver, noised anew to some levels.

Dimensions: G group size, T sampler steps, K trained levels, S latent tokens, C latent channels, n pairs.
"""

from abc import abstractmethod
from contextlib import nullcontext
from typing import Literal, Self

import torch
from jaxtyping import Float
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from customized_grpo import registry
from customized_grpo.objectives.base import Draw, Objective, ObjectiveConfig, PairLoss, rows_at
from customized_grpo.objectives.old_policy import power_decay, ramp_decay, velocity_kl
from customized_grpo.policies.base import Policy
from customized_grpo.policies.float8 import Float8Products
from customized_grpo.recipe.config import Recipe
from customized_grpo.recipe.sections import Section
from customized_grpo.sampling.caching import RolloutCache
from customized_grpo.sampling.clock import Clock
from customized_grpo.sampling.dynamics import Transition
from customized_grpo.sampling.rollout import Noisy, initial_noise, noise_of_samples, sample_final, transition_noise
from customized_grpo.sampling.schedule import plan_of
from customized_grpo.sampling.solver import SolverName
from customized_grpo.seeding import generator
from customized_grpo.types import Conditioning, Example, Noised, NoisedPairs, Rollout


class Levels(Section):
    """At which noise levels each sample is trained: drawn anew for every group, the same for all of its samples."""

    draw: Literal["grid", "uniform", "stratified", "logit_normal"] = Field(
        default="grid",
        description="grid: levels of the sampler's steps but the last; else places between these, so that the shift "
        "counts: uniform, one in each of as many equal strata, or by a logistic normal",
    )
    number: PositiveInt | None = Field(default=None, description="levels a sample; null: as many as the grid has")
    mean: float = Field(default=0.0, description="logit_normal: of the logit of the place, from data (-) to noise (+)")
    std: PositiveFloat = Field(default=1.0, description="logit_normal: of the logit of the place")

    @model_validator(mode="after")
    def _keys_are_used(self) -> Self:
        if self.draw != "logit_normal" and (self.mean, self.std) != (0.0, 1.0):
            raise ValueError(f"mean and std have no effect with draw {self.draw!r}; they belong to logit_normal")
        return self

    def count(self, num_steps: int) -> int:
        """K.

        Raises:
            ValueError: more levels than the grid has.
        """
        if self.draw == "grid" and self.number is not None and self.number >= num_steps:
            raise ValueError(
                f"objective.levels.number: given {self.number}, but the grid of sampling.steps={num_steps} has "
                f"{num_steps - 1} trained levels; use at most as many, or draw: stratified"
            )
        return self.number or num_steps - 1

    def density(self, num_steps: int) -> Float[Tensor, " t"]:
        """How often a level lies nearest to each step of the grid, at mean 1 over all but the last, which has 0."""
        end = num_steps - 1
        if self.draw == "grid":
            return torch.cat([torch.ones(end), torch.zeros(1)])
        shares = (torch.arange(4096) + 0.5) / 4096
        if self.draw == "logit_normal":
            shares = torch.sigmoid(-(self.mean + self.std * torch.special.ndtri(shares.double()))).float()
        counts = torch.bincount((shares * end).round().long().clamp(max=end - 1), minlength=num_steps).float()
        return counts * end / counts.sum()

    def places(self, num_steps: int, source: torch.Generator) -> Float[Tensor, " k"]:
        """K places on the sampler's grid, in steps from 0 (noise) to T - 1, ascending."""
        number, end = self.count(num_steps), num_steps - 1
        if self.draw == "grid":
            return torch.randperm(end, generator=source)[:number].sort().values.float()
        if self.draw == "logit_normal":
            shares = torch.sigmoid(-(self.mean + self.std * torch.randn(number, generator=source)))
        else:
            shares = torch.rand(number, generator=source)
            if self.draw == "stratified":
                shares = (torch.arange(number) + shares) / number
        return (shares * end).sort().values


class Old(Section):
    """A running average of the trained weights: old <- decay old + (1 - decay) new."""

    schedule: Literal["ramp", "power"] = Field(
        default="ramp",
        description="decay after n updates: min(rate (n - flat), limit), or min((1 + n) / (warmup + n), limit)",
    )
    flat: NonNegativeInt = Field(default=0, description="ramp: updates during which the old policy is a copy")
    rate: PositiveFloat = Field(default=0.001, description="ramp: rise of the decay per update")
    warmup: PositiveInt = Field(default=10, description="power: the larger, the slower the rise")
    limit: float = Field(default=0.5, gt=0.0, lt=1.0, description="largest decay")

    @model_validator(mode="after")
    def _keys_are_used(self) -> Self:
        own = {"flat": "ramp", "rate": "ramp", "warmup": "power"}
        for key, schedule in own.items():
            if schedule != self.schedule and dict(self)[key] != Old.model_fields[key].default:
                raise ValueError(f"{key} has no effect with schedule {self.schedule!r}; it belongs to {schedule}")
        return self

    def decay(self, updates: int) -> float:
        """Decay after some updates."""
        if self.schedule == "power":
            return power_decay(updates, limit=self.limit, warmup=self.warmup)
        return ramp_decay(updates, flat=self.flat, rate=self.rate, limit=self.limit)


class ForwardConfig(ObjectiveConfig):
    """Options of every objective on the forward process."""

    transitions = False
    compares = False
    lossy = True

    levels: Levels = Field(default=Levels(), description="noise levels at which each sample is trained")

    def num_levels(self, num_steps: int) -> int:
        """K."""
        return self.levels.count(num_steps)

    def last_place(self, num_steps: int) -> int:
        """Levels between those of the grid come near the last step's own."""
        return super().last_place(num_steps) + (self.levels.draw != "grid")

    def compared_shares(self, updates: int) -> float:
        """Share of the later updates: the first one's own forward is what its loss compares with."""
        return (updates - 1) / updates


class ForwardObjective(Objective):
    """Base of objectives that compare velocities at noised samples; none of them needs a likelihood or an SDE."""

    def __init__(self, recipe: Recipe, policy: Policy, sigmas: Float[Tensor, " t_plus_1"]) -> None:
        super().__init__(recipe, policy, sigmas)
        section = recipe.objective
        assert isinstance(section, ForwardConfig)
        self.levels = section.levels
        self.average_kl = 0.0
        sampling = recipe.sampling
        self.plan = None if sampling.plan is None else plan_of(sampling.plan)
        self.transition: Transition | None = None
        if sampling.dynamics is not None:
            self.transition = registry.build_function("dynamics", sampling.dynamics)
        self.equal = section.step_weighting == "equal"
        self.cache = None if sampling.cache is None else RolloutCache(sampling.cache, policy)
        self.float8 = Float8Products(policy) if sampling.float8 else None

    @abstractmethod
    def pull(self, sigma: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
        """Size of a pair's gradient with respect to v at some levels, up to a factor, for an error of size 1."""

    @abstractmethod
    def pair_loss(
        self, velocity: Float[Tensor, "n s c"], old_velocity: Float[Tensor, "n s c"], pairs: NoisedPairs
    ) -> tuple[Float[Tensor, " n"], dict[str, Float[Tensor, " n"]]]:
        """Loss of each pair, before its level's weight, and numbers for the metrics."""

    def sample(self, example: Example, cond: Conditioning, draw: Draw, *, clock: Clock, batch: int | None) -> Noised:
        """See ``Objective.sample``."""
        sampling, size, shape = self.recipe.sampling, self.recipe.train.group_size, self.policy.latent_shape
        where = {"seed": draw.seed, "step": draw.step, "group": draw.group}
        with clock.phase("rollout"):
            noise = initial_noise(shape, size, shared=sampling.shared_noise, **where)
            by: SolverName | Noisy | None = sampling.solver
            if self.plan is not None and self.transition is not None:
                plan = self.plan.steps(draw.step, sampling.steps, draw.seed, draw.group)
                draws = transition_noise(shape, size, len(plan.stochastic), **where)
                by = Noisy(plan=plan, transition=self.transition, draws=draws, shared_noise=sampling.shared_noise)
        assert by is not None
        with nullcontext() if self.float8 is None else self.float8.over():
            latents, images = sample_final(
                self.policy, cond, sigmas=self.sigmas, noise=noise, by=by, clock=clock, batch=batch, cache=self.cache
            )
        with clock.phase("rollout"):
            places = self.levels.places(sampling.steps, generator(draw.seed, "levels", draw.step, draw.group))
            places = places.to(latents.device, non_blocking=True)
            fresh = noise_of_samples("forward", shape, size, len(places), **where)
            return Noised(
                example=example,
                cond=cond,
                sigmas=self.sigmas,
                images=images,
                places=places,
                levels=rows_at(self.sigmas, places),
                x0=latents.float(),
                noise=fresh.to(latents.device, non_blocking=True),
            )

    def rollout_metrics(self) -> dict[str, float]:
        """Share of the blocks that ran, with ``sampling.cache``."""
        return {} if self.cache is None else self.cache.drain()

    @property
    def sensitivity(self) -> Float[Tensor, " t"]:
        """See ``Objective.sensitivity``; the last step's level is not trained."""
        trained = self.pull(self.sigmas[:-2].cpu()) * self._weights(self.sigmas[:-2].cpu())
        return torch.cat([trained, torch.zeros(1)]) * self.levels.density(len(self.sigmas) - 1)

    def level_weights(self, rollout: Rollout) -> Float[Tensor, " k"]:
        """1, or with ``step_weighting: equal`` 1 / pull, scaled to mean 1 over the grid's trained levels."""
        assert isinstance(rollout, Noised)
        return self._weights(rollout.levels)

    def _weights(self, sigma: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
        if not self.equal:
            return torch.ones_like(sigma)
        return 1 / self.pull(sigma) / (1 / self.pull(self.sigmas[:-2])).mean().to(sigma.device)

    def old(self, pairs: NoisedPairs) -> Float[Tensor, "n s c"]:
        """Velocities."""
        return self._velocity(pairs).detach()

    def loss(self, pairs: NoisedPairs, *, on_policy: bool) -> PairLoss:
        """The weighted mean of ``pair_loss``, and the mean squared distance of the velocity to the base's.

        A pair of weight 0 - a sample that could not be scored, a group in which all are alike - is left out: off policy
        it would pull the velocity back to the old policy's, as an advantage of 0 does by the formula.
        """
        velocity = self._velocity(pairs)
        old = velocity.detach() if on_policy else pairs.old_velocity
        assert old is not None, "off policy, the old policy's velocities are computed before the first update"
        each, details = self.pair_loss(velocity, old, pairs)
        loss = (each * pairs.weight).masked_fill(pairs.weight == 0, 0.0).mean()
        penalty = torch.zeros_like(loss)
        if self.kl:
            with torch.no_grad(), self.reference():
                base = self._velocity(pairs)
            penalty = velocity_kl(velocity, base).mean()
        if pairs.average_velocity is not None:
            loss = loss + self.average_kl * velocity_kl(velocity, pairs.average_velocity).mean()
        return PairLoss(loss=loss, penalty=penalty, details=details)

    def _velocity(self, pairs: NoisedPairs) -> Float[Tensor, "n s c"]:
        return self.policy.velocity(pairs.x_t.to(self.policy.dtype), pairs.sigma, pairs.cond)
