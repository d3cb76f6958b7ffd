"""Recipes that may go on from a checkpoint: which keys may differ from its own."""

import shlex
from collections.abc import Collection
from pathlib import Path
from typing import Any

from customized_grpo.identity.runs import goes_on
from customized_grpo.recipe.config import Recipe
from customized_grpo.recipe.loading import load_recipe
from customized_grpo.recipe.yaml_source import read_yaml
from customized_grpo.rewards.base import transport_of

HARMLESS = (
    "run.",
    "train.steps",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.check_ranks_every",
    "train.evaluate_every",
    "train.save_samples_every",
    "train.max_skipped",
    "train.ratio_guard",
    "advantage.max_failed_share",
    "policy.offline",
    "policy.keep_keys",
    "samples",
    "evaluate",
)
"""Keys that may differ in a resumed run: they don't change what a step computes, but when a run saves, looks or stops.
``run.seed`` and ``run.precision`` do. A reward's transport is harmless too, see ``transport_of``."""

ROUNDING = (
    "train.microbatch",
    "train.old_log_probs",
    "sampling.batch",
    "policy.gradient_checkpointing",
    "policy.recompute",
    "policy.attention",
    "policy.norms",
    "policy.compile",
)
"""Keys that change a step at most by rounding; needed after running out of memory, or after the ratio's guard."""

_ENDING = ("linear", "cosine")
"""Schedules of the learning rate that end with the last step."""

_FORMER_DEFAULTS = {("train", "eps"): 1e-8}
"""Defaults that changed, by section and key: a checkpoint of before stands at the former one."""


def saved_recipe(file: Path) -> Recipe:
    """The recipe of a run's folder or checkpoint; a key that it doesn't have yet stands at the default of its time."""
    data = read_yaml(file)[0]
    return load_recipe(
        file,
        [
            f"{section}.{key}={value}"
            for (section, key), value in _FORMER_DEFAULTS.items()
            if key not in data.get(section, {})
        ],
    )


def compare_recipes(saved: Recipe, given: Recipe, same: Collection[str] = ()) -> list[str]:
    """Keys that differ harmlessly between a checkpoint's recipe and the given one.

    Args:
        saved: the checkpoint's recipe.
        given: the recipe that goes on.
        same: beginnings of keys that name the same content in both.

    Raises:
        ValueError: a key differs that changes what a step computes; it is named with both values.
    """
    found = differing(saved, given)
    exact = {"run.seed", "run.precision"}
    if given.train.schedule.name in _ENDING:
        exact |= {"train.steps"}
    if given.sampling.batch_decides:
        exact |= {"sampling.batch"}
    transport = {f"rewards.{name}.{field}" for name, spec in given.rewards.items() for field in transport_of(spec)}
    allowed = (*HARMLESS, *ROUNDING, *transport, *same)
    refused = [key for key in found if key in exact or not key.startswith(allowed)]
    if refused:
        ends = f" (the {given.train.schedule.name} schedule ends there)"
        shown = "; ".join(
            f"{key}: was {before!r}, given {now!r}{ends if key == 'train.steps' else ''}"
            for key, (before, now) in found.items()
            if key in refused
        )
        raise ValueError(
            f"run.resume: the recipe differs from the checkpoint's where it matters - {shown}. Give the "
            f"former values, or start a new run, which may begin with these weights: {_anew(given)}"
        )
    return list(found)


def is_finished(recipe: Recipe, done: int) -> str:
    """A run that has no step left: said, with how to give it more."""
    steps = recipe.train.steps
    return f"train.steps is {steps}, and {done} steps are done already: nothing is trained; {more_steps(recipe, done)}"


def more_steps(recipe: Recipe, done: int) -> str:
    """How a run gets more steps: it goes on, or a new one begins with its weights where its schedule has ended."""
    folder, name = Path(recipe.run.dir), recipe.train.schedule.name
    if name not in _ENDING:
        return f"for more steps: {goes_on(folder)} train.steps={2 * done}"
    file = shlex.quote(str(folder / "config.yaml"))
    return f"its {name} schedule has ended, so more steps take a new run: customized-grpo train {file} {_anew(recipe)}"


def _anew(recipe: Recipe) -> str:
    """The keys by which a new run begins with the weights of the recipe's."""
    start = "policy.lora.path" if recipe.policy.lora is not None else "policy.full.path"
    return f"run.resume=null run.dir=NEW {start}={shlex.quote(recipe.run.dir)}"


def differing(saved: Recipe, given: Recipe) -> dict[str, tuple[Any, Any]]:
    """Key to both values where they differ; ``run.resume`` only says that a run goes on."""
    before, now = _flat(saved.model_dump(mode="json")), _flat(given.model_dump(mode="json"))
    pairs = {key: (before.get(key), now.get(key)) for key in sorted(before.keys() | now.keys())}
    return {key: (was, one) for key, (was, one) in pairs.items() if was != one and key != "run.resume"}


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{prefix}.{key}" if prefix else key)
    return flat
