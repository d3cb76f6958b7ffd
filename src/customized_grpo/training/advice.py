"""Warnings from a recipe's own numbers: steps with more noise than their level holds, stages never reached."""

from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from customized_grpo import registry
from customized_grpo.recipe.config import Recipe
from customized_grpo.sampling.dynamics import kept_noise
from customized_grpo.sampling.schedule import plan_of

_PLANS: Final = 1000
"""GRPO steps whose plans are looked at: a window has been everywhere by then."""
_FINE: Final = 1000
"""A grid on which every stage of a schedule has steps."""


def advice(recipe: Recipe, sigmas: Float[Tensor, " t_plus_1"]) -> list[str]:
    """Warnings on the sampler and the time weights, for its noise levels."""
    said = _step_distilled(recipe) + _excess_noise(recipe, sigmas)
    if recipe.objective.targets:
        return said
    return said + _unused_noise(recipe) + _unreached_stage(recipe)


def _step_distilled(recipe: Recipe) -> list[str]:
    """Training of a model that was distilled to few steps."""
    if not recipe.policy.step_distilled():
        return []
    return [
        f"policy.model: {recipe.policy.model} is distilled to few steps, which training undoes: its images "
        "blur. Train on the base model that it was distilled from, and draw the base's adapter on the distilled one: "
        "generate or evaluate --base, or diffusers' load_lora_weights"
    ]


def _excess_noise(recipe: Recipe, sigmas: Float[Tensor, " t_plus_1"]) -> list[str]:
    """Stochastic steps that add more noise than the next level holds: g^2 d > 2 sigma sigma' for an SDE."""
    sampling = recipe.sampling
    if sampling.dynamics is None or sampling.plan is None:
        return []
    transition = registry.build_function("dynamics", sampling.dynamics)
    plan, seed = plan_of(sampling.plan), recipe.run.seed
    first = range(min(recipe.train.steps, _PLANS))
    stochastic = {k for step in first for k in plan.steps(step, sampling.steps, seed).stochastic}
    grid = sigmas.double().cpu()
    kept = {k: kept_noise(transition, grid[k], grid[k + 1], grid[1]) for k in sorted(stochastic)}
    worst = min(kept, key=lambda k: kept[k][0])
    coefficient, std = kept[worst]
    if coefficient >= 0.0:
        return []
    over = [k for k, (one, _) in kept.items() if one < 0.0]
    return [
        f"sampling.dynamics: step {worst} of {sampling.steps} ({grid[worst]:.3f} -> {grid[worst + 1]:.3f}) adds noise "
        f"of {std:.3f}, more than its next level holds (all such steps: {', '.join(map(str, over))}): rewards see "
        "grain that the deployed sampler doesn't have. Use {type: cps}, a smaller eta or noise_level, or a plan "
        "without noise there"
    ]


def _unused_noise(recipe: Recipe) -> list[str]:
    """Noise on the way of an objective that trains no transition: what it does instead."""
    sampling, objective = recipe.sampling, recipe.objective
    if objective.transitions or sampling.plan is None:
        return []
    told = f"sampling.dynamics: objective.type {objective.type} trains no step of the sampler, so noise on the way "
    if not sampling.shared_noise:
        return [
            f"{told}only adds its own error to what is scored, where samples begin from noise of their own; leave "
            "dynamics and plan out for a solver, which dpm_solver_2m needs fewer steps for"
        ]
    number = len(plan_of(sampling.plan).steps(0, sampling.steps, recipe.run.seed).stochastic)
    return [
        f"{told}({number} of {sampling.steps} steps) is all that samples of a group differ by, with one first noise "
        "for all. In a first look on the miniature (one seed, docs/log.md) one such step hardly moved the policy, and "
        "flow_sde no further than a solver's samples; leave dynamics, plan and shared_noise out for these"
    ]


def _unreached_stage(recipe: Recipe) -> list[str]:
    """The weights at the end of the schedule, if no trainable level has them: TDW's below T = 17."""
    steps = recipe.sampling.steps
    try:
        end = recipe.time_weights(_FINE)[-1]
    except ValueError:  # a table of one row a step is no function of progress
        return []
    place = recipe.objective.last_place(steps)
    last = recipe.time_weights()[place]
    if torch.allclose(last, end, atol=0.02):
        return []
    return [
        f"advantage.time_weights: it ends at prompt {end[0]:.2f}, identity {end[1]:.2f}, but the last trainable "
        f"of {steps} steps has {last[0]:.2f}, {last[1]:.2f}, so nothing is trained by its end. If it should be, let it "
        f"begin earlier (tdw: integrate at most {place / steps:.2f}), or take more steps"
    ]
