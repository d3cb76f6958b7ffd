"""``customized-grpo data cache``: the command around ``conditioning.cache``. Heavy imports are inside."""

from pathlib import Path
from typing import Annotated

import typer

from customized_grpo.commands.arguments import Overrides, quoted, say_next
from customized_grpo.console import bars, hush_libraries, say


def cache(
    config: Annotated[str, typer.Argument(metavar="RECIPE", help="a recipe's file or name, of either kind")],
    overrides: Overrides = None,
) -> None:
    """Encode what a recipe's prompts and references need into run.cache; may be stopped, repeated, and shared.

    Under torchrun or accelerate launch the processes share the work. Only the encoders are loaded, and only where
    something is missing.
    """
    from customized_grpo.recipe.config import Recipe
    from customized_grpo.recipe.loading import load_any

    recipe = load_any(config, overrides or [])
    if recipe.run.cache is None:
        raise ValueError("run.cache: it says where the cache is; add it to the recipe, or run.cache=FOLDER")
    hush_libraries()
    import torch
    from accelerate import PartialState
    from accelerate.utils import gather_object

    from customized_grpo.conditioning.cache import BucketCaches
    from customized_grpo.conditioning.opening import Process, complete
    from customized_grpo.devices import open_device
    from customized_grpo.training.encoded import needed

    if recipe.run.threads:
        torch.set_num_threads(recipe.run.threads)
    state = PartialState(cpu=open_device(recipe.run.device).type == "cpu")
    made, used = 0, 0
    with bars("conditioning: ") as progress:
        process = Process.of(state, recipe.run.precision, progress)
        for buckets, jobs in needed(recipe):
            caches = BucketCaches(recipe.run.cache, buckets, recipe.run.precision)
            made += sum(gather_object([complete(caches, jobs, process)]))
            used += len(jobs)
    say(f"{Path(recipe.run.cache).expanduser()}\n{made:,} conditionings made; the recipe uses {used:,} examples")
    command = "train" if isinstance(recipe, Recipe) else "evaluate"
    say_next(" ".join([command, *map(quoted, [config, *(overrides or [])])]), "reads what is there")
