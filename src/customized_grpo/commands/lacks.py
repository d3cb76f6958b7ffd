"""Packages, keys and servers that a recipe needs and that are not there. Heavy imports are inside."""

from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from customized_grpo.recipe.config import EvaluateRecipe, Recipe
    from customized_grpo.recipe.scorers import Lack


def lacking(recipe: "Recipe | EvaluateRecipe", *, ask: bool) -> "dict[str, Lack]":
    """Key of a recipe to what it lacks; the first thing of each.

    Args:
        recipe: of a training run or an evaluation.
        ask: whether servers are asked if they are there.
    """
    from customized_grpo.recipe.config import Recipe
    from customized_grpo.recipe.scorers import MetricSpec

    scorers = (
        {} if recipe.evaluate is None else {f"evaluate.metrics.{n}": s for n, s in recipe.evaluate.metrics.items()}
    )
    found: dict[str, Lack] = {}
    if isinstance(recipe, Recipe):
        scorers |= {f"rewards.{name}": spec for name, spec in recipe.rewards.items()}
        for name in recipe.run.trackers:
            if find_spec(name) is None:
                found["run.trackers"] = _package(name, f"pip install 'customized-grpo[{name}]', or leave it out")
        if recipe.train.optimizer == "adamw_8bit" and find_spec("bitsandbytes") is None:
            found["train.optimizer"] = _package("bitsandbytes", "pip install 'customized-grpo[bitsandbytes]'")
    if recipe.policy.quantization != "none" and find_spec("bitsandbytes") is None:
        found["policy.quantization"] = _package("bitsandbytes", "pip install 'customized-grpo[bitsandbytes]'")
    for place, spec in scorers.items():
        if isinstance(spec, MetricSpec) and (lacks := [*spec.lacks()] or ([*spec.unreachable()] if ask else [])):
            found[place] = lacks[0]
    return found


def _package(name: str, advice: str) -> "Lack":
    from customized_grpo.recipe.scorers import Lack

    return Lack(f"the package {name!r} is not installed", advice)
