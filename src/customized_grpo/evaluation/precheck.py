"""Checks of a recipe's data before a run: the training's by its rewards, the held-out by its metrics and protocol."""

from collections.abc import Callable

from customized_grpo.conditioning.outlines import Outline, outlines_of
from customized_grpo.conditioning.precheck import Findings, check_examples
from customized_grpo.console import err, say
from customized_grpo.data.base import Dataset
from customized_grpo.evaluation.blocks import encoded_examples
from customized_grpo.evaluation.protocols import find_protocol
from customized_grpo.recipe.config import Evaluate, EvaluateRecipe, Recipe
from customized_grpo.recipe.sections import PolicySpec


def check_training(recipe: Recipe, dataset: Dataset, *, download: bool = False) -> None:
    """Say what is doubtful about a recipe's examples.

    Args:
        recipe: of a training.
        dataset: its ``data``.
        download: fetch missing tokenizers of a hub id.

    Raises:
        ValueError: examples that the policy or a reward can't use.
    """
    _tell(check_examples(outlines_of(dataset), recipe.policy, recipe.rewards, download=download), "data")


def check_held_out(policy: PolicySpec, spec: Evaluate, dataset: Dataset, *, download: bool = False) -> None:
    """``check_training`` for the examples of an evaluation.

    Raises:
        ValueError: examples that the policy, a metric or the protocol can't use.
    """
    outlines = outlines_of(dataset, len(encoded_examples(dataset, spec)))
    found = check_examples(outlines, policy, spec.metrics, lacking=lacking_of(spec), views=True, download=download)
    _tell(found, "evaluate.data")


def look_over(
    recipe: Recipe | EvaluateRecipe, dataset: Dataset | None, held_out: Dataset | None, *, download: bool = False
) -> None:
    """Both, for the data that are given.

    Raises:
        ValueError: examples that can't be used, named by file and line.
    """
    if isinstance(recipe, Recipe) and dataset is not None:
        check_training(recipe, dataset, download=download)
    if recipe.evaluate is not None and held_out is not None:
        check_held_out(recipe.evaluated, recipe.evaluate, held_out, download=download)


def lacking_of(spec: Evaluate) -> Callable[[Outline], str]:
    """What an example lacks for an evaluation; empty if it has everything."""
    protocol = find_protocol(spec.protocol)

    def lacking(one: Outline) -> str:
        extra = {"views": one.views, **one.extra}
        return protocol.lacking(one.key, len(one.references), extra)

    return lacking


def _tell(found: Findings, place: str) -> None:
    found.refuse(place)
    for notice in found.notices:
        say(f"{place}: {notice}", on=err, style="yellow")
