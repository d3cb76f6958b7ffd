"""Which examples a recipe encodes, for a cache that is completed beforehand."""

from collections.abc import Iterator
from contextlib import contextmanager

from customized_grpo.conditioning.cache import Jobs
from customized_grpo.console import OnProgress, err
from customized_grpo.data import order
from customized_grpo.data.base import Dataset, load_dataset
from customized_grpo.evaluation.evaluator import encoded_examples
from customized_grpo.recipe.config import EvaluateRecipe, Recipe


def needed(recipe: Recipe | EvaluateRecipe) -> Jobs:
    """Every example that a recipe encodes: those of all training steps, and the held-out ones."""
    jobs: list[tuple[Dataset, int]] = []
    if isinstance(recipe, Recipe):
        dataset, train, seed = load_dataset(recipe.data, "data"), recipe.train, recipe.run.seed
        groups, size = train.groups_per_step, len(dataset)
        drawn = {
            index
            for step in range(train.steps)
            for index in order.indices(step, rank=0, world=1, groups_per_step=groups, size=size, seed=seed)
        }
        jobs += [(dataset, index) for index in sorted(drawn)]
    if recipe.evaluate is not None and (isinstance(recipe, EvaluateRecipe) or recipe.train.evaluate_every):
        held_out = load_dataset(recipe.evaluate.data, "evaluate.data")
        jobs += [(held_out, index) for index in encoded_examples(held_out, recipe.evaluate)]
    return jobs


@contextmanager
def bars() -> Iterator[OnProgress]:
    """A progress bar a phase, on a terminal; silent elsewhere."""
    from rich.progress import Progress, TaskID

    tasks: dict[str, TaskID] = {}
    with Progress(console=err, disable=not err.is_terminal, transient=True) as shown:

        def tell(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = shown.add_task(f"conditioning: {phase}")
            shown.update(tasks[phase], completed=done, total=total)

        yield tell
