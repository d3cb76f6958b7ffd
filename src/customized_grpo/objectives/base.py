"""Base class of objectives: what a rollout has to record, how its samples are paired with levels, and a pair's loss.

Dimensions: G group size, T sampler steps, K trained levels, Q axes, n pairs of a micro-batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from customized_grpo import registry
from customized_grpo.policies.adapters import tuning
from customized_grpo.policies.base import Policy
from customized_grpo.recipe.config import Recipe
from customized_grpo.recipe.sections import ObjectiveSpec as ObjectiveConfig
from customized_grpo.sampling.clock import Clock
from customized_grpo.types import Conditioning, Example, Rollout

__all__ = ["Draw", "Objective", "ObjectiveConfig", "PairLoss", "load_objective", "rows_at"]


@dataclass(frozen=True, slots=True)
class Draw:
    """Which random draws a group gets: those of its place in the run, whatever the number of ranks."""

    seed: int
    step: int
    """The GRPO step."""
    group: int
    """Global index of the group in this step, over all ranks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairLoss:
    """Loss of a micro-batch."""

    loss: Float[Tensor, ""]
    """Mean over the pairs."""
    penalty: Float[Tensor, ""]
    """Mean divergence from the base, before ``objective.kl``; 0 without one."""
    details: Mapping[str, Float[Tensor, " n"]] = field(default_factory=dict)
    """Numbers of each pair for the metrics, without gradient."""


class Objective(ABC):
    """An objective of one run. Concrete ones are final.

    Attributes:
        Config: the pydantic model that reads its section of a recipe.
        formula: raised when the same recipe has another loss than in the version before, so that no run changes midway.
        records_old: whether a rollout records what a loss compares with, as log-probabilities of transitions are.
        kl: weight of the divergence from the base.
        ratio_clip: half-width of the range in which a ratio has a gradient; None of an objective that clips none.
        old_decay: decay of a policy that lags behind, after a number of updates; None: there is none.
        old_samples: whether that policy samples; else the loss holds on to it.
    """

    Config: ClassVar[type[ObjectiveConfig]]
    formula: ClassVar[int] = 1
    records_old: ClassVar[bool] = False

    def __init__(self, recipe: Recipe, policy: Policy, sigmas: Float[Tensor, " t_plus_1"]) -> None:
        self.recipe, self.policy, self.sigmas = recipe, policy, sigmas
        self.kl = recipe.objective.kl
        self.ratio_clip: float | None = None
        self.old_decay: Callable[[int], float] | None = None
        self.old_samples = True

    @abstractmethod
    def sample(self, example: Example, cond: Conditioning, draw: Draw, *, clock: Clock, batch: int | None) -> Rollout:
        """Sample one group, without gradients; ``batch`` is the number of samples per forward, None: all."""

    def rollout_metrics(self) -> dict[str, float]:
        """Metrics of the groups sampled since the last call."""
        return {}

    @property
    @abstractmethod
    def sensitivity(self) -> Float[Tensor, " t"]:
        """Size of the gradient at each step of the grid for equal advantages, its weight included; 0: not trained."""

    @abstractmethod
    def level_weights(self, rollout: Rollout) -> Float[Tensor, " k"]:
        """Weight of each of a rollout's levels in the loss (``objective.step_weighting``)."""

    @abstractmethod
    def old(self, pairs: Any) -> Float[Tensor, "n *values"]:
        """What a loss compares with, by the weights as they are: log-probabilities, or velocities."""

    @abstractmethod
    def loss(self, pairs: Any, *, on_policy: bool) -> PairLoss:
        """The loss of a micro-batch.

        Args:
            pairs: of ``Rollout.pairs``.
            on_policy: the weights are those that sampled, so that what the loss compares with is this forward's own.
        """

    def metrics(
        self, details: Mapping[str, Float[Tensor, " n"]], advantage: Float[Tensor, " n"], *, first: bool
    ) -> dict[str, float]:
        """Metrics of an update from all its pairs; ``first``: of the first update after a rollout."""
        return {}

    def reference(self) -> AbstractContextManager[None]:
        """Context in which the policy is the base."""
        return tuning.reference(self.policy)


def load_objective(recipe: Recipe, policy: Policy, sigmas: Float[Tensor, " t_plus_1"]) -> Objective:
    """The objective of a recipe.

    Raises:
        ValueError: the weights of its levels are not numbers.
    """
    kind: type[Objective] = registry.resolve("objectives", registry.type_of(recipe.objective))
    objective = kind(recipe, policy, sigmas)
    keeps = recipe.objective.keeps_average  # what the estimate and the limits of engines go by
    assert keeps == (objective.old_decay is not None), f"{kind.__name__}.Config.keeps_average says {keeps}"
    if not bool(objective.sensitivity.isfinite().all()):
        raise ValueError(
            f"objective.step_weighting: {recipe.objective.step_weighting} weighs the levels by "
            f"{objective.sensitivity.tolist()}; a level whose gradient is 0 can't be given the size of the others"
        )
    return objective


def rows_at(table: Float[Tensor, "t *q"], progress: Float[Tensor, " k"] | Int[Tensor, " k"]) -> Float[Tensor, "k *q"]:
    """Rows of a table over the sampler's steps; between two steps they are interpolated linearly."""
    below = progress.long()
    above = (below + 1).clamp(max=len(table) - 1)
    share = (progress - below).to(table.dtype).reshape(-1, *(1,) * (table.ndim - 1))
    return torch.lerp(table[below], table[above], share)
