"""Examples that a recipe encodes, for a cache that is completed beforehand; and its policy, opened to encode them."""

from functools import partial

from customized_grpo.conditioning.opening import Encode, Jobs, Process, open_beside, open_policy
from customized_grpo.data import order
from customized_grpo.data.base import Dataset, load_dataset, supervised
from customized_grpo.evaluation.blocks import encoded_examples
from customized_grpo.evaluation.precheck import look_over
from customized_grpo.policies.base import Policy
from customized_grpo.recipe.config import EvaluateRecipe, Recipe
from customized_grpo.recipe.drawn import Buckets


def needed(recipe: Recipe | EvaluateRecipe) -> list[tuple[Buckets, Jobs]]:
    """Every example that a recipe encodes, its data opened and checked, with the sizes of the images it is encoded for.

    There are two entries where training and evaluation don't draw images of the same one size.
    """
    dataset = load_dataset(recipe.data, "data") if isinstance(recipe, Recipe) else None
    held_out = load_held_out(recipe)
    look_over(recipe, dataset, held_out, download=True)
    if not isinstance(recipe, Recipe) or dataset is None:
        return [(Buckets((recipe.evaluated,)), needed_of(recipe, None, held_out))]
    dataset = supervised(dataset, recipe.objective.targets)
    if held_out is None or _alike(recipe):
        return [(recipe.buckets(), needed_of(recipe, dataset, held_out))]
    return [
        (recipe.buckets(), needed_of(recipe, dataset, None)),
        (Buckets((recipe.evaluated,)), needed_of(recipe, None, held_out)),
    ]


def open_for_training(
    recipe: Recipe, dataset: Dataset, held_out: Dataset | None, process: Process
) -> tuple[Policy, Encode, Encode]:
    """A recipe's policy, and functions to the conditioning of its training's examples and of the held-out ones.

    Raises:
        ValueError: as ``open_policy`` does.
    """
    buckets, cache = recipe.buckets(), recipe.run.cache
    if held_out is None or _alike(recipe):
        policy, encode = open_policy(buckets, cache, partial(needed_of, recipe, dataset, held_out), process)
        return policy, encode, encode

    jobs, held = partial(needed_of, recipe, dataset, None), partial(needed_of, recipe, None, held_out)
    return open_beside((buckets, jobs), (Buckets((recipe.evaluated,)), held), cache, process)


def _alike(recipe: Recipe) -> bool:
    """Whether training and evaluation draw images of one size."""
    return recipe.evaluated is recipe.policy and not recipe.train.buckets


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
