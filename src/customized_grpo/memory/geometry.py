"""Size of a recipe's GRPO step: forwards, backwards, trajectory bytes, counted without loading a model.

Dimensions: G group size, T sampler steps, K trained steps, S latent tokens, C latent channels, P ranks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from customized_grpo.recipe.config import Recipe
from customized_grpo.sampling.schedule import StepPlan, plan_of, sigma_grid


@dataclass(frozen=True, slots=True, kw_only=True)
class StepGeometry:
    """Counts of one GRPO step over all ranks; those named ``rank`` are one rank's share."""

    groups: int
    groups_rank: int
    samples: int
    steps: int
    """T."""
    stochastic: tuple[int, ...]
    trained: tuple[int, ...]
    """Trained steps of the first group of the first GRPO step."""
    rollout_forwards: int
    """Number of forwards, each of one sample at one step."""
    shared_forwards: int
    """Those among them that stand for a whole group, and so are of one sample alone."""
    replay_forwards: int
    """With gradient."""
    reference_forwards: int
    """Number of forwards without gradient, for the KL."""
    compared_forwards: int
    """Number of forwards without gradient, by the old policy or a running average."""
    backwards_rank: int
    """Micro-batches."""
    updates: int
    total_updates: int
    trajectory_bytes: int | None
    """Bytes of the stored states of one rank's groups; None if the policy doesn't declare its latent shape."""
    sigmas: tuple[float, ...] | None
    """T + 1 noise levels; None if they depend on a latent shape that the policy doesn't declare."""
    weights: tuple[tuple[str, tuple[float, ...]], ...]
    """(range of sampler steps, weight of each axis)."""


def step_geometry(recipe: Recipe, *, world: int, latent_shape: tuple[int, int] | None) -> StepGeometry:
    """The geometry of a recipe's first step.

    Args:
        recipe: a whole recipe.
        world: P.
        latent_shape: (S, C) if known.

    Raises:
        ValueError: the plan doesn't fit the number of steps, or the groups can't be shared by the ranks.
    """
    train, sampling = recipe.train, recipe.sampling
    if train.groups_per_step % world:
        raise ValueError(
            f"train.groups_per_step: given {train.groups_per_step}, which {world} processes can't share equally; "
            f"use a multiple of {world}"
        )
    sampler = _sampler(recipe)
    groups, size = train.groups_per_step, recipe.objective.targets or train.group_size
    share, trained = recipe.samples_per_update, len(sampler.trained)
    replay = groups * share * train.updates_per_rollout * trained
    states = None
    if latent_shape is not None:
        states = (groups // world) * size * sampler.stored_bytes * latent_shape[0] * latent_shape[1]
    return StepGeometry(
        groups=groups,
        groups_rank=groups // world,
        samples=groups * size,
        steps=sampling.steps,
        stochastic=sampler.stochastic,
        trained=sampler.trained,
        rollout_forwards=groups * (sampler.shared_forwards + sampler.own_forwards * size),
        shared_forwards=groups * sampler.shared_forwards,
        replay_forwards=replay,
        reference_forwards=replay if recipe.objective.needs_base else 0,
        compared_forwards=round(replay * _compared_share(recipe)),
        backwards_rank=groups // world * train.updates_per_rollout * -(-share * trained // recipe.pairs_per_backward),
        updates=train.updates_per_rollout,
        total_updates=train.steps * train.updates_per_rollout,
        trajectory_bytes=states,
        sigmas=_sigmas(recipe, latent_shape),
        weights=_weight_ranges(recipe),
    )


def _compared_share(recipe: Recipe) -> float:
    """Forwards for what a loss compares with, for each pair; of transitions only where they are computed again."""
    updates = _compared_updates(recipe)
    again = recipe.objective.transitions and recipe.train.old_log_probs == "replay"
    return recipe.objective.compared_shares(updates) + ((updates - 1) / updates if again else 0.0)


def _compared_updates(recipe: Recipe) -> int:
    """Updates per rollout; of a stale one each is a later one, as of very many."""
    return 10**9 if recipe.train.staleness else recipe.train.updates_per_rollout


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sampler:
    """One group's sampling."""

    stochastic: tuple[int, ...]
    trained: tuple[int, ...]
    shared_forwards: int
    """Forwards of one sample that stand for the whole group."""
    own_forwards: int
    """Forwards of each sample."""
    stored_bytes: int
    """Bytes of a sample's stored states for each number of its latent."""


def _sampler(recipe: Recipe) -> _Sampler:
    sampling = recipe.sampling
    if recipe.objective.targets:
        levels = range(recipe.objective.num_levels(sampling.steps))
        return _Sampler(
            stochastic=(),
            trained=tuple(levels),
            shared_forwards=0,
            own_forwards=0,
            stored_bytes=4 * (1 + len(levels)),  # float32: the latent, and the noise of each level
        )
    stochastic: tuple[int, ...] = ()
    trained: tuple[int, ...] = ()
    shared_forwards, own_forwards = 0, sampling.steps
    if sampling.plan is not None:
        plan: StepPlan = plan_of(sampling.plan).steps(num_steps=sampling.steps, seed=recipe.run.seed, step=0, group=0)
        shared = min(plan.stochastic) if sampling.shared_noise else 0
        stochastic, trained = plan.stochastic, plan.trained
        shared_forwards, own_forwards = plan.num_forwards(0, shared), plan.num_forwards(shared, sampling.steps)
    stored = 2 * len(trained) * (2 if recipe.run.precision == "bf16" else 4)
    if recipe.objective.compares_means:
        stored += 4 * len(trained)
    if not recipe.objective.transitions:
        trained = tuple(range(recipe.objective.num_levels(sampling.steps)))
        # float32: the final latent, the noise, and velocities that the loss compares with, each a whole tensor
        compared = math.ceil(recipe.objective.compared_shares(_compared_updates(recipe)))
        stored = 4 * (1 + len(trained) * (1 + compared))
    return _Sampler(
        stochastic=stochastic,
        trained=trained,
        shared_forwards=shared_forwards,
        own_forwards=own_forwards,
        stored_bytes=stored,
    )


def _sigmas(recipe: Recipe, latent_shape: tuple[int, int] | None) -> tuple[float, ...] | None:
    shift, steps = recipe.sampling.shift, recipe.sampling.steps
    if latent_shape is None and isinstance(shift, str):
        return None
    return tuple(sigma_grid(recipe.policy, shift, steps, latent_shape[0] if latent_shape else 1).tolist())


def _weight_ranges(recipe: Recipe) -> tuple[tuple[str, tuple[float, ...]], ...]:
    """Ranges of consecutive sampler steps with equal weights (to two digits)."""
    if recipe.objective.targets:
        return ()
    rows: Sequence[Sequence[float]] = recipe.time_weights().tolist()
    ranges: list[tuple[int, int, tuple[float, ...]]] = []
    for k, row in enumerate(rows):
        rounded = tuple(round(value, 2) for value in row)
        if ranges and ranges[-1][2] == rounded:
            ranges[-1] = (ranges[-1][0], k, rounded)
        else:
            ranges.append((k, k, rounded))
    return tuple((str(first) if first == last else f"{first}-{last}", row) for first, last, row in ranges)
