"""Noise levels and step plans: which sampler steps draw noise, and which of those are trained.

Dimensions: T sampler steps, numbered k = 0 .. T-1 from noise to data; K trained steps. A plan is a pure function of
the GRPO step, the seed and the group, so it needs no saved state. The last step (k = T-1, sigma' = 0) is
deterministic and never trained. A plan trains equally many steps in every group of a GRPO step.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, Self

import torch
from jaxtyping import Float
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)
from torch import Tensor

from customized_grpo.recipe.sections import PolicySpec
from customized_grpo.sampling.solver import SolverName
from customized_grpo.seeding import generator


def shifted_sigmas(num_steps: int, shift: float, terminal: float | None = None) -> Float[Tensor, " t_plus_1"]:
    """T + 1 noise levels from 1 to 0, float32: linspace(1, 0, T + 1) through shift s / (1 + (shift - 1) s).

    With ``terminal`` their distances from 1 are scaled so that the last level before 0 is that (Qwen-Image; diffusers'
    ``stretch_shift_to_terminal``).

    Raises:
        ValueError: no steps, a shift that is not positive, or a single step with ``terminal``.
    """
    least = 1 if terminal is None else 2
    if num_steps < least or not shift > 0:
        raise ValueError(
            f"a grid needs at least {least} step{'s'[: least - 1]} and a positive shift; given {num_steps} steps, "
            f"shift {shift}"
        )
    s = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)
    bent = shift * s / (1 + (shift - 1) * s)  # float64 before rounding makes the ends exactly 1 and 0
    if terminal is not None:
        bent[:-1] = 1 - (1 - bent[:-1]) * (1 - terminal) / (1 - bent[-2])
    return bent.float()


def sigma_grid(section: PolicySpec, shift: float | str, num_steps: int, num_tokens: int) -> Float[Tensor, " t_plus_1"]:
    """The noise levels of a recipe.

    Args:
        section: ``policy``, with the rules for a named shift.
        shift: ``sampling.shift``.
        num_steps: T.
        num_tokens: latent tokens per image.

    Raises:
        ValueError: see ``shifted_sigmas`` and ``PolicySpec.shift``.
    """
    bent = section.shift(shift, tokens=num_tokens, steps=num_steps)
    return shifted_sigmas(num_steps, bent.value, bent.terminal)


@dataclass(frozen=True, slots=True)
class StepPlan:
    """The roles of the sampler's steps in one group; steps that are not named are deterministic steps of the flow."""

    num_steps: int
    """T."""
    stochastic: tuple[int, ...]
    """Steps that draw noise, ascending."""
    trained: tuple[int, ...]
    """Steps whose transition is replayed, ascending; all of them stochastic."""
    skipped: tuple[int, ...] = ()
    """Points of the grid that deterministic steps pass over."""
    solver: SolverName = "euler"
    """Solver of the deterministic steps."""

    def __post_init__(self) -> None:
        """Check the invariants."""
        assert self.trained, "a plan trains at least one step"
        assert set(self.trained) <= set(self.stochastic), "only stochastic steps have a probability"
        assert list(self.stochastic) == sorted(set(self.stochastic))
        assert list(self.trained) == sorted(set(self.trained))
        ends = {0, *self.stochastic, *(k + 1 for k in self.stochastic), self.num_steps}
        assert not ends & set(self.skipped), "a stochastic step begins and ends on the grid"

    def next_stochastic(self, k: int) -> int:
        """The first stochastic step from ``k`` on, or T."""
        return min((step for step in self.stochastic if step >= k), default=self.num_steps)

    def path(self, start: int, stop: int) -> list[int]:
        """The points of the grid that deterministic steps from ``start`` to ``stop`` visit, both included."""
        return [k for k in range(start, stop + 1) if k not in self.skipped]

    def num_forwards(self, start: int, stop: int) -> int:
        """Forwards of one sample from ``start`` to ``stop``."""
        return len(self.path(start, stop)) - 1


class Plan(BaseModel, ABC):
    """Base of plans: a frozen section of a recipe that gives each group its ``StepPlan``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @abstractmethod
    def steps(self, step: int, num_steps: int, seed: int, group: int = 0) -> StepPlan:
        """The plan of one group.

        Args:
            step: the GRPO step.
            num_steps: T.
            seed: the run's seed.
            group: global index of the group in this GRPO step, over all ranks.

        Raises:
            ValueError: T is too small for this plan.
        """


def plan_of(section: BaseModel) -> Plan:
    """A recipe's ``sampling.plan``.

    Raises:
        ValueError: the plug-in's class doesn't derive from ``Plan``.
    """
    if not isinstance(section, Plan):
        raise ValueError(f"sampling.plan: {type(section).__name__} must derive from {Plan.__module__}.Plan")
    return section


class AllPlan(Plan):
    """Every step but the last is stochastic and trained."""

    type: Literal["all"] = "all"

    def steps(self, step: int, num_steps: int, seed: int, group: int = 0) -> StepPlan:
        """See ``Plan.steps``."""
        every = tuple(range(_num_trainable(num_steps)))
        return StepPlan(num_steps, every, every)


class FractionPlan(Plan):
    """Every step but the last is stochastic; a share of them, drawn for each group, is trained (the paper)."""

    type: Literal["fraction"] = "fraction"
    fraction: float = Field(
        default=0.6,
        gt=0.0,
        le=1.0,
        description="share of the T - 1 trainable steps, rounded down, at least 1",
    )

    def steps(self, step: int, num_steps: int, seed: int, group: int = 0) -> StepPlan:
        """See ``Plan.steps``."""
        count = _num_trainable(num_steps)
        keep = max(1, math.floor(self.fraction * count + 1e-9))  # 0.29 * 100 is 28.999999999999996
        order: list[int] = torch.randperm(count, generator=generator(seed, "plan", step, group)).tolist()
        return StepPlan(num_steps, tuple(range(count)), tuple(sorted(order[:keep])))


class _FlowPlan(Plan, ABC):
    """Base of plans that leave most steps to the deterministic flow."""

    solver: SolverName = Field(default="euler", description="solver of the deterministic steps")
    steps_after: PositiveInt | None = Field(
        default=None,
        description="limit on deterministic steps after the stochastic ones; null: all of the grid's",
    )

    def _around(self, stochastic: tuple[int, ...], num_steps: int) -> StepPlan:
        """Train these consecutive steps, and leave the others to the flow."""
        end = stochastic[-1] + 1
        skipped = () if self.steps_after is None else _thinned(end, num_steps, self.steps_after)
        return StepPlan(num_steps, stochastic, stochastic, skipped, self.solver)


class WindowPlan(_FlowPlan):
    """Stochastic and trained inside a moving window, deterministic outside (MixGRPO, arXiv 2507.21802).

    The window starts at 0, stays for some GRPO steps, moves on by ``stride``, and after its last place starts anew.
    It stays for ``every`` GRPO steps (progressive), for a time that falls linearly towards ``shortest`` (decay), or
    that falls by exp(-rate) per sampler step beyond ``onset`` (exp_decay). ``random`` draws a place every ``every``.
    """

    type: Literal["window"] = "window"
    width: PositiveInt = 4
    mode: Literal["progressive", "random", "decay", "exp_decay"] = "progressive"
    every: PositiveInt = Field(default=25, description="GRPO steps at one place, at first")
    stride: PositiveInt | None = Field(
        default=None, description="sampler steps to the next place; null: width. Not for random"
    )
    shortest: PositiveInt = Field(default=1, description="decay: fewest GRPO steps at one place")
    rate: NonNegativeFloat = Field(default=0.1, description="exp_decay: rate per sampler step")
    onset: float = Field(default=0.52, ge=0.0, le=1.0, description="exp_decay: share of T up to which nothing decays")

    @model_validator(mode="after")
    def _keys_are_used(self) -> Self:
        moving = {"progressive", "decay", "exp_decay"}
        own = {"stride": moving, "shortest": {"decay"}, "rate": {"exp_decay"}, "onset": {"exp_decay"}}
        given = dict(self)
        for key, modes in own.items():
            changed = given[key] != WindowPlan.model_fields[key].default  # a saved recipe writes every default
            if changed and self.mode not in modes:
                raise ValueError(
                    f"{key} has no effect with mode {self.mode!r}; it belongs to {', '.join(sorted(modes))}"
                )
        return self

    def steps(self, step: int, num_steps: int, seed: int, group: int = 0) -> StepPlan:
        """See ``Plan.steps``."""
        last = _num_trainable(num_steps) - self.width
        if last < 0:
            raise ValueError(
                f"plan: a window of width {self.width} does not fit the {num_steps - 1} trainable steps of "
                f"sampling.steps={num_steps}; lower plan.width or raise sampling.steps"
            )
        drawn = self.mode == "random"
        first = self._random(step, last, seed) if drawn else self._moving(step, last, num_steps)
        return self._around(tuple(range(first, first + self.width)), num_steps)

    def _random(self, step: int, last: int, seed: int) -> int:
        return _draw(last + 1, generator(seed, "window", step // self.every, 0))

    def _moving(self, step: int, last: int, num_steps: int) -> int:
        # the last place is always visited, so that a stride that does not divide leaves no trainable step out
        places: list[int] = [*range(0, last, self.stride or self.width), last]
        stays = [self._stay(place, num_steps) for place in places]
        left = step % sum(stays)
        for place, stay in zip(places, stays, strict=True):
            if left < stay:
                return place
            left -= stay
        raise AssertionError("the remainder is below the sum")

    def _stay(self, place: int, num_steps: int) -> int:
        if self.mode == "decay":
            share = place / num_steps
            return max(self.shortest, math.floor(self.every * (1 - share) + self.shortest * share))
        if self.mode == "exp_decay":
            return math.ceil(self.every * math.exp(-self.rate * max(0.0, place - self.onset * num_steps)))
        return self.every


class BranchPlan(_FlowPlan):
    """One stochastic, trained step (Flow-GRPO-Fast, TempFlow-GRPO): all that differs in a group comes from it."""

    type: Literal["branch"] = "branch"
    at: NonNegativeInt | None = Field(default=None, description="that step; null: drawn anew for each group")

    def steps(self, step: int, num_steps: int, seed: int, group: int = 0) -> StepPlan:
        """See ``Plan.steps``."""
        count = _num_trainable(num_steps)
        if self.at is not None and self.at >= count:
            raise ValueError(
                f"plan: at={self.at} is not a trainable step of {num_steps} sampler steps; allowed: 0 to {count - 1}"
            )
        at = _draw(count, generator(seed, "plan", step, group)) if self.at is None else self.at
        return self._around((at,), num_steps)


def _num_trainable(num_steps: int) -> int:
    if num_steps < 2:
        raise ValueError(f"sampling.steps: given {num_steps}; at least 2, because the last step is never trained")
    return num_steps - 1


def _thinned(start: int, stop: int, keep: int) -> tuple[int, ...]:
    """Points to skip between two points of the grid, so that at most ``keep`` even steps remain."""
    if stop - start <= keep:
        return ()
    kept = {start + round(i * (stop - start) / keep) for i in range(keep + 1)}
    return tuple(k for k in range(start, stop + 1) if k not in kept)


def _draw(below: int, source: torch.Generator) -> int:
    return int(torch.randint(below, (1,), generator=source).item())
