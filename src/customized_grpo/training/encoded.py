"""Examples that a recipe encodes, for a cache that is completed beforehand; and its policy, opened to encode them."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Self, final

from customized_grpo.conditioning.drawing import check_drawing
from customized_grpo.conditioning.opening import Encode, Jobs, Process, open_beside, open_policy
from customized_grpo.console import err, say
from customized_grpo.data import order
from customized_grpo.data.base import Dataset, load_dataset, supervised
from customized_grpo.evaluation.blocks import encoded_examples
from customized_grpo.evaluation.precheck import look_over
from customized_grpo.policies.base import Policy
from customized_grpo.recipe.config import EvaluateRecipe, Recipe
from customized_grpo.recipe.drawn import Buckets
from customized_grpo.types import Example


@final
@dataclass(frozen=True, slots=True)
class Chosen:
    """The examples that ``samples`` draws, with their own prompts or those of the recipe; a ``Dataset``."""

    examples: Dataset
    indices: tuple[int, ...]
    prompts: tuple[str, ...]

    @classmethod
    def of(cls, recipe: Recipe, dataset: Dataset, held_out: Dataset | None) -> Self | None:
        """Those of a recipe, spread evenly over the held-out data, or without them over the training's.

        Returns:
            None where nothing is drawn.

        Raises:
            ValueError: the policy can't draw one of the recipe's own prompts.
        """
        samples, examples = recipe.samples, dataset if held_out is None else held_out
        if not samples.every:
            return None
        count = len(samples.prompts) or min(samples.count, len(examples))
        made = cls(examples, tuple(at * len(examples) // count for at in range(count)), samples.prompts)
        for place, prompt in enumerate(samples.prompts):
            try:
                notices = check_drawing(recipe.policy, prompt, made[place].references)
            except ValueError as error:
                raise ValueError(f"samples.prompts: number {place + 1}, {prompt!r}: {error}") from error
            for notice in notices:
                say(f"samples.prompts: number {place + 1}, {prompt!r}: {notice}", on=err, style="yellow")
        return made

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Example:
        example = self.examples[self.indices[index]]
        return replace(example, prompt=self.prompts[index]) if self.prompts else example


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
    fixed = Chosen.of(recipe, dataset, held_out)
    if held_out is None or _alike(recipe):
        return [(recipe.buckets(), needed_of(recipe, dataset, held_out, fixed))]
    return [
        (recipe.buckets(), needed_of(recipe, dataset, None)),
        (Buckets((recipe.evaluated,)), needed_of(recipe, None, held_out, fixed)),
    ]


def open_for_training(
    recipe: Recipe, dataset: Dataset, held_out: Dataset | None, fixed: Chosen | None, process: Process
) -> tuple[Policy, Encode, Encode]:
    """A recipe's policy, and functions to the conditioning of its training's examples and of the held-out ones.

    Fixed prompts are encoded by the second one, as they are of the held-out data where there are any.

    Raises:
        ValueError: as ``open_policy`` does.
    """
    buckets, cache = recipe.buckets(), recipe.run.cache
    if held_out is None or _alike(recipe):
        policy, encode = open_policy(buckets, cache, partial(needed_of, recipe, dataset, held_out, fixed), process)
        return policy, encode, encode

    jobs, held = partial(needed_of, recipe, dataset, None), partial(needed_of, recipe, None, held_out, fixed)
    return open_beside((buckets, jobs), (Buckets((recipe.evaluated,)), held), cache, process)


def _alike(recipe: Recipe) -> bool:
    """Whether training and evaluation draw images of one size."""
    return recipe.evaluated is recipe.policy and not recipe.train.buckets


def load_held_out(recipe: Recipe | EvaluateRecipe) -> Dataset | None:
    """The data that a recipe evaluates on; None where it never does."""
    if recipe.evaluate is None or (isinstance(recipe, Recipe) and not recipe.train.evaluate_every):
        return None
    return load_dataset(recipe.evaluate.data, "evaluate.data")


def needed_of(
    recipe: Recipe | EvaluateRecipe, dataset: Dataset | None, held_out: Dataset | None, fixed: Chosen | None = None
) -> Jobs:
    """Every example that a recipe encodes: those of all training steps, the held-out ones, and the fixed prompts."""
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
    if fixed is not None:
        jobs += [(fixed, index) for index in range(len(fixed))]
    return jobs
