"""Examples to begin with: the first subjects of a run's held-out data, or of what it is trained on."""

from dataclasses import replace

from customized_grpo.console import err, say
from customized_grpo.data.base import Dataset, load_dataset
from customized_grpo.recipe.config import EvaluateRecipe, Recipe
from customized_grpo.types import Example

_LOOKED_AT = 200
"""Limit on examples that are looked through for different subjects: reading them may take a while."""


def dataset_of(recipe: Recipe | EvaluateRecipe) -> tuple[Dataset | None, str]:
    """The held-out data of a recipe, or else its training's; None, and why, where neither can be read here."""
    section = recipe.evaluate.data if recipe.evaluate is not None else recipe.data  # an evaluation always has the first
    try:
        return load_dataset(section), ""
    except (ValueError, OSError) as error:
        return None, str(error)


def examples_of(dataset: Dataset | None, count: int) -> list[Example]:
    """Up to ``count`` examples, of different prompts and references; those that can't be read are left out and said."""
    found: dict[tuple[str, bytes], Example] = {}
    lost: dict[str, None] = {}
    for index in range(min(len(dataset), _LOOKED_AT) if dataset is not None else 0):
        assert dataset is not None
        try:
            example = dataset[index]
        except ValueError as error:
            lost[str(error)] = None
            continue
        if example.references:
            found.setdefault((example.subject, example.references[0].tobytes()), example)
        if len(found) == count:
            break
    if lost:
        more = f" (and {len(lost) - 1:,} more)" if len(lost) > 1 else ""
        say(f"left out of the examples to begin with: {next(iter(lost))}{more}", style="yellow", on=err)
    return [replace(example, masks=(), targets=()) for example in found.values()]
