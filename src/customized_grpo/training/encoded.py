"""Examples that a recipe encodes, for a cache that is completed beforehand; and its policy, opened to encode them."""

from functools import partial

from customized_grpo.conditioning.cache import Encode, Jobs, Process, open_at_two_sizes, open_policy
from customized_grpo.data import order
from customized_grpo.data.base import Dataset, load_dataset
from customized_grpo.evaluation.blocks import encoded_examples
from customized_grpo.evaluation.precheck import look_over
from customized_grpo.policies.base import Policy
from customized_grpo.recipe.config import EvaluateRecipe, Recipe
from customized_grpo.recipe.sections import PolicySpec


def needed(recipe: Recipe | EvaluateRecipe) -> list[tuple[PolicySpec, Jobs]]:
    """Every example that a recipe encodes, its data opened and checked, with the section ``policy`` that encodes it.

    There are two sections where the held-out images are of another size.
    """
    dataset = load_dataset(recipe.data, "data") if isinstance(recipe, Recipe) else None
    held_out = load_held_out(recipe)
    look_over(recipe, dataset, held_out, download=True)
    if dataset is None or held_out is None or recipe.evaluated is recipe.policy:
        return [(recipe.policy if held_out is None else recipe.evaluated, needed_of(recipe, dataset, held_out))]
    return [
        (recipe.policy, needed_of(recipe, dataset, None)),
        (recipe.evaluated, needed_of(recipe, None, held_out)),
    ]


def open_for_training(
    recipe: Recipe, dataset: Dataset, held_out: Dataset | None, process: Process
) -> tuple[Policy, Encode, Encode]:
    """A recipe's policy, and functions to the conditioning of its training's examples and of the held-out ones.

    Raises:
        ValueError: as ``open_policy`` does.
    """
    spec, cache = recipe.policy, recipe.run.cache
    if held_out is None or recipe.evaluated is spec:
        policy, encode = open_policy(spec, cache, partial(needed_of, recipe, dataset, held_out), process)
        return policy, encode, encode

    jobs, held = partial(needed_of, recipe, dataset, None), partial(needed_of, recipe, None, held_out)
    return open_at_two_sizes((spec, jobs), (recipe.evaluated, held), cache, process)


def load_held_out(recipe: Recipe | EvaluateRecipe) -> Dataset | None:
    """The data that a recipe evaluates on; None where it never does."""
    if recipe.evaluate is None or (isinstance(recipe, Recipe) and not recipe.train.evaluate_every):
        return None
    return load_dataset(recipe.evaluate.data, "evaluate.data")


def needed_of(recipe: Recipe | EvaluateRecipe, dataset: Dataset | None, held_out: Dataset | None) -> Jobs:
    """Every example that a recipe encodes: those of all training steps, and the held-out ones."""
    jobs: list[tuple[Dataset, int]] = []
    if isinstance(recipe, Recipe) and dataset is not None:
        train, seed, size = recipe.train, recipe.run.seed, len(dataset)
        groups = train.groups_per_step
        drawn = set[int]()
        for step in range(train.steps):
            visited = order.indices(step, rank=0, world=1, groups_per_step=groups, size=size, seed=seed)
            drawn |= set(visited)
            for attempt in range(1, recipe.advantage.rules.resample + 1):
                drawn |= {
                    order.another(step, attempt * groups + place, size=size, seed=seed, instead_of=index)
                    for place, index in enumerate(visited)
                }
        jobs += [(dataset, index) for index in sorted(drawn)]
    if recipe.evaluate is not None and held_out is not None:
        jobs += [(held_out, index) for index in encoded_examples(held_out, recipe.evaluate)]
    return jobs
