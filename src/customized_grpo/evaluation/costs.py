"""Estimate of API requests and tokens, which cost money or quota, printed before a run starts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from customized_grpo.identity.runs import name_of
from customized_grpo.recipe.config import Evaluate, EvaluateRecipe, Recipe
from customized_grpo.rewards.base import Budgeted, costs

REWARDS: Final = "rewards."
METRICS: Final = "evaluate.metrics."
"""What stands before a name in a recipe."""


def announced(recipe: Recipe | EvaluateRecipe, examples: int | None, *, done: int = 0) -> list[str]:
    """One line per judge of what a recipe will still ask, and what its run has spent.

    Args:
        recipe: of a training run or an evaluation.
        examples: held-out examples that an evaluation takes; None: unknown, and then it is not told.
        done: GRPO steps of the run so far.
    """
    run = name_of(Path(recipe.run.dir)) if isinstance(recipe, EvaluateRecipe) or recipe.run.resume else None
    lines = of_training(recipe, done=done, run=run) if isinstance(recipe, Recipe) else []
    if recipe.evaluate is None or examples is None:
        return lines
    return lines + of_evaluation(recipe.evaluate, examples, rows=_rows(recipe, done), run=run)


def tokens(recipe: Recipe | EvaluateRecipe, examples: int | None, *, done: int = 0) -> int:
    """Tokens of all judges that ``announced`` tells of, roughly."""
    sections: list[tuple[Mapping[str, object], Mapping[str, int]]] = []
    if isinstance(recipe, Recipe):
        sections.append((recipe.rewards, dict.fromkeys(recipe.rewards, _samples(recipe, done))))
    if recipe.evaluate is not None and examples is not None:
        sections.append((recipe.evaluate.metrics, _images(recipe.evaluate, examples, _rows(recipe, done))))
    return sum(
        spec.asked_tokens(images[name])
        for specs, images in sections
        for name, spec in specs.items()
        if isinstance(spec, Budgeted)
    )


def of_training(recipe: Recipe, *, done: int, run: str | None) -> list[str]:
    """Costs of the training rewards after ``done`` steps of a run; at most, where groups may be sampled anew.

    They score fixed prompts, too, unless they compare the images of a group.
    """
    images = dict.fromkeys(recipe.rewards, _samples(recipe, done))
    found = costs(recipe.rewards, images, place=REWARDS, run=run)
    return [f"{REWARDS}{name}: {said}" for name, said in found.items()]


def of_evaluation(spec: Evaluate, examples: int, *, rows: int, run: str | None) -> list[str]:
    """Costs of the metrics for ``examples`` examples in each of ``rows`` table rows."""
    images = _images(spec, examples, rows)
    return [f"{METRICS}{name}: {said}" for name, said in costs(spec.metrics, images, place=METRICS, run=run).items()]


def _samples(recipe: Recipe, done: int) -> int:
    train, most = recipe.train, 1 + recipe.advantage.rules.resample
    return max(0, train.steps - done) * train.groups_per_step * train.group_size * most + fixed(recipe, done)


def _images(spec: Evaluate, examples: int, rows: int) -> Mapping[str, int]:
    return {name: examples * spec.images_per_prompt * rows * spec.runs.get(name, 1) for name in spec.metrics}


def _rows(recipe: Recipe | EvaluateRecipe, done: int) -> int:
    return evaluations(recipe, done) if isinstance(recipe, Recipe) else 2 + bool(recipe.lora)


def evaluations(recipe: Recipe, done: int = 0) -> int:
    """Number of evaluations in a training run after ``done`` steps: before the first one, every N, and at the end."""
    return _times(recipe.train.evaluate_every, recipe.train.steps, done)


def fixed(recipe: Recipe, done: int = 0) -> int:
    """Number of pictures of fixed prompts that a training run draws after ``done`` steps."""
    return recipe.samples.count * _times(recipe.samples.every, recipe.train.steps, done)


def _times(every: int, steps: int, done: int) -> int:
    if not every or done > steps:
        return 0
    return (done == 0) + steps // every - done // every + (steps % every > 0 and done < steps)
