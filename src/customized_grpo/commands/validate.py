"""``customized-grpo validate``: check a recipe and show the size of its step. Heavy imports are inside."""

import os
from typing import TYPE_CHECKING

import typer

from customized_grpo.commands.arguments import Card, Config, HourPrice, MemoryGb, Overrides, TokenPrice
from customized_grpo.commands.brief import brief
from customized_grpo.commands.conformance import failing
from customized_grpo.commands.cost import drawing_of, price_of_judges, steps_done, storage_of, time_of
from customized_grpo.commands.lacks import lacking
from customized_grpo.commands.memory import show_memory
from customized_grpo.commands.tables import print_rows
from customized_grpo.console import err, say

if TYPE_CHECKING:
    from customized_grpo.data.base import Dataset
    from customized_grpo.memory.geometry import StepGeometry
    from customized_grpo.recipe.config import EvaluateRecipe, Recipe


@brief()
def validate(
    config: Config,
    overrides: Overrides = None,
    memory_gb: MemoryGb = None,
    card: Card = None,
    hour_price: HourPrice = None,
    token_price: TokenPrice = None,
) -> None:
    """Check a recipe, show what a step of it amounts to, its time, money, disk and memory; loads no weights."""
    from customized_grpo.evaluation.costs import announced, tokens
    from customized_grpo.recipe.config import EvaluateRecipe, Recipe
    from customized_grpo.recipe.loading import is_server, load_any, load_recipe
    from customized_grpo.recipe.server import ServerConfig

    given = overrides or []
    recipe = load_recipe(config, given, ServerConfig) if is_server(config) else load_any(config, given)
    say(f"{config}: a valid recipe", style="green")
    if not isinstance(recipe, ServerConfig):
        data, held_out = _look_at_data(recipe)
        _check_plugins(recipe, data)
        examples = _num_held_out(recipe, held_out)
        done = steps_done(recipe) if isinstance(recipe, Recipe) else 0
        for place, lack in lacking(recipe, ask=False).items():
            say(f"{place}: {lack.what}; {lack.advice}", style="yellow", on=err)
        for line in announced(recipe, examples, done=done):
            say(line)
        judges = price_of_judges(tokens(recipe, examples, done=done), token_price)
    if isinstance(recipe, EvaluateRecipe):
        rows = drawing_of(recipe, examples, card=card) | judges
        print_rows("Before you spend", ("", ""), [*rows.items()])
    if isinstance(recipe, Recipe):
        _check_engine(recipe)
        _show_geometry(recipe)
        time = time_of(recipe, card=card, examples=examples, done=done, price=hour_price)
        print_rows("Before you spend", ("", ""), [*(time | judges | storage_of(recipe)).items()])
        if not show_memory(recipe, memory_gb) and memory_gb is not None:
            raise typer.Exit(1)


def _num_held_out(recipe: "Recipe | EvaluateRecipe", held_out: "Dataset | None") -> int | None:
    """Examples of an evaluation; where they are not on this machine, its limit."""
    from customized_grpo.evaluation.blocks import num_examples

    if recipe.evaluate is None:
        return None
    return recipe.evaluate.limit if held_out is None else num_examples(held_out, recipe.evaluate)


def _check_plugins(recipe: "Recipe | EvaluateRecipe", data: "Dataset | None") -> None:
    """Refuse functions of other packages that fail the conformance kit."""
    from customized_grpo.recipe.config import Recipe

    if isinstance(recipe, Recipe) and (found := failing(recipe, data)):
        raise ValueError("\n".join(f"{place}: {said}" for place, said in found.items()))


def _look_at_data(recipe: "Recipe | EvaluateRecipe") -> "tuple[Dataset | None, Dataset | None]":
    """Check the examples that are on this machine; gives those of training and the held-out ones."""
    from customized_grpo.data.base import load_dataset, missing
    from customized_grpo.evaluation.precheck import look_over
    from customized_grpo.recipe.config import Recipe
    from customized_grpo.recipe.sections import DataSpec

    def found(spec: DataSpec, place: str) -> "Dataset | None":
        if (path := missing(spec)) is not None:
            say(f"{place}: {path} is not on this machine, so its examples are not checked", style="yellow", on=err)
            return None
        return load_dataset(spec, place)

    data = found(recipe.data, "data") if isinstance(recipe, Recipe) else None
    held_out = None if recipe.evaluate is None else found(recipe.evaluate.data, "evaluate.data")
    look_over(recipe, data, held_out)
    return data, held_out


def _check_engine(recipe: "Recipe") -> None:
    """Refuse what the engine can't do, if the environment says which it will be."""
    from customized_grpo.training.engine_limits import check, launched_engine

    if (engine := launched_engine(os.environ)) is not None:
        check(engine, recipe)
        say(f"engine: {engine.value}; the recipe asks for nothing that it refuses")


def _trained(recipe: "Recipe", g: "StepGeometry") -> dict[str, str]:
    """Rows on what is trained, and on what the sampler draws."""
    rows = {}
    if recipe.objective.targets:
        return {"trained levels": f"K = {len(g.trained)} noise levels of each picture, by objective.levels"}
    if recipe.objective.transitions:
        rows["trained steps"] = f"K = {len(g.trained)} of T = {g.steps}, for instance {', '.join(map(str, g.trained))}"
    else:
        rows["trained levels"] = f"K = {len(g.trained)} noise levels of each sample, by objective.levels"
    if recipe.sampling.solver is not None:
        rows["solver"] = f"{recipe.sampling.solver}, {g.steps} steps"
    else:
        rows["stochastic steps"] = f"{len(g.stochastic)} of {g.steps}"
    if (cache := recipe.sampling.cache) is not None:
        computed = cache.computed_steps(g.steps)
        first = "the first block at every step, the others where its output moved"
        rows["computed in rollouts"] = first if computed is None else f"{len(computed)} of {g.steps} steps"
    return rows


def _pictures(g: "StepGeometry", world: int) -> dict[str, str]:
    return {"pictures": f"{g.samples}, of {g.groups} examples ({g.groups_rank} on each of {world} processes)"}


def _samples(g: "StepGeometry", world: int, size: int) -> dict[str, str]:
    return {
        "groups": f"{g.groups} ({g.groups_rank} on each of {world} processes)",
        "samples": f"{g.samples} = {g.groups} groups x {size}",
    }


def _forwards(recipe: "Recipe", g: "StepGeometry") -> dict[str, str]:
    """Rows on forwards, by what they are for."""
    update = f"{g.replay_forwards} forwards and backwards, in {g.backwards_rank} micro-batches a process"
    base = f"{g.reference_forwards} forwards" if g.reference_forwards else "none (objective.kl is 0)"
    if recipe.objective.targets:
        return {"update": update, "base": base}
    rows = {"rollout": f"{g.rollout_forwards} forwards of one sample", "replay": update, "base, for the KL": base}
    if g.compared_forwards:
        rows["old policy"] = f"{g.compared_forwards} forwards, without gradient"
    return rows


def _show_geometry(recipe: "Recipe") -> None:
    import torch

    from customized_grpo.memory.geometry import step_geometry
    from customized_grpo.training.advice import advice

    world = int(os.environ.get("WORLD_SIZE") or 1)
    train, buckets = recipe.train, recipe.buckets()
    g = step_geometry(recipe, world=world, latent_shape=recipe.policy.latent_shape())
    largest = step_geometry(recipe, world=world, latent_shape=buckets.largest.latent_shape())
    memory = levels = "unknown: the policy doesn't say its latent shape"
    if largest.trajectory_bytes is not None:
        memory = f"{largest.trajectory_bytes / 2**20:.1f} MiB a process"
    if g.sigmas is not None:
        shown = [f"{sigma:.3f}" for sigma in g.sigmas]
        levels = ", ".join(shown if len(shown) < 8 else [*shown[:3], "...", *shown[-3:]])
    rows = {
        **(_pictures(g, world) if recipe.objective.targets else _samples(g, world, train.group_size)),
        **_trained(recipe, g),
        "noise levels": levels,
        **_forwards(recipe, g),
        "updates": f"{g.updates} a step, {g.total_updates} in {train.steps} steps",
        "stored trajectories": memory,
        "rewards": ", ".join(f"{name} ({spec.axis})" for name, spec in recipe.rewards.items()) or "none",
    }
    if train.buckets:
        sizes = ", ".join(f"{one.height} x {one.width}" for one in buckets.sections)
        rows["buckets"] = f"{sizes} (height x width; noise levels are the first's, memory is the largest's)"
    if recipe.evaluate is not None and train.evaluate_every:
        rows["evaluation"] = f"by Euler in {recipe.evaluate.steps or g.steps} steps, whatever samples in training"
        if (sized := recipe.evaluated) is not recipe.policy:
            rows["evaluation"] += f", at {sized.height} x {sized.width} pixels"
    title = recipe.objective.type if recipe.objective.targets else "GRPO"
    print_rows(f"One {title} step", ("", ""), [*rows.items()])
    weights = [(steps, *(f"{value:.2f}" for value in values)) for steps, values in g.weights]
    if weights:
        print_rows("Time weights", ("sampler steps", *recipe.axes), weights)
    for warning in [] if g.sigmas is None else advice(recipe, torch.tensor(g.sigmas)):
        say(f"warning: {warning}", style="yellow")
