"""Estimate of API requests and tokens, which cost money or quota, printed before a run starts."""

from collections.abc import Mapping

from customized_grpo.recipe.config import Evaluate, EvaluateRecipe, Recipe
from customized_grpo.rewards.base import costs


def announced(recipe: Recipe | EvaluateRecipe) -> list[str]:
    """One line per judge, as far as the recipe alone tells: an evaluation without a limit depends on its data."""
    lines = of_training(recipe) if isinstance(recipe, Recipe) else []
    spec = recipe.evaluate
    if spec is None or spec.limit is None:
        return lines
    if isinstance(recipe, EvaluateRecipe):
        return of_evaluation(spec, spec.limit, rows=2 + bool(recipe.lora))
    return lines + of_evaluation(spec, spec.limit, rows=evaluations(recipe))


def of_training(recipe: Recipe) -> list[str]:
    """Costs of the training rewards."""
    train = recipe.train
    samples = train.steps * train.groups_per_step * train.group_size
    found = costs(recipe.rewards, dict.fromkeys(recipe.rewards, samples))
    return [f"rewards.{name}: {said}" for name, said in found.items()]


def of_evaluation(spec: Evaluate, examples: int, *, rows: int) -> list[str]:
    """Costs of the metrics for ``examples`` examples in each of ``rows`` table rows."""
    images: Mapping[str, int] = {
        name: examples * spec.images_per_prompt * rows * spec.runs.get(name, 1) for name in spec.metrics
    }
    return [f"evaluate.metrics.{name}: {said}" for name, said in costs(spec.metrics, images).items()]


def evaluations(recipe: Recipe) -> int:
    """Number of evaluations in a training run: before the first step, every N, and at the end."""
    every, steps = recipe.train.evaluate_every, recipe.train.steps
    return 0 if not every else 1 + steps // every + (steps % every > 0)
