"""Expected time, downloads and disk of a recipe, as printed by ``validate``, ``train`` and ``doctor``."""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from customized_grpo.console import duration, say

if TYPE_CHECKING:
    from customized_grpo.cost.forecast import Forecast
    from customized_grpo.recipe.config import Evaluate, EvaluateRecipe, Recipe

_GB = 1e9


def time_of(
    recipe: "Recipe", *, card: str | None = None, examples: int | None = None, done: int = 0, price: float | None = None
) -> dict[str, str]:
    """Time of a step and of the run, with what is measured of it and what is a guess, by what it is called.

    Args:
        recipe: of a training run.
        card: name of a GPU; None: the one of this machine, else the CPU for the miniature, else the measured card.
        examples: held-out examples of an evaluation; None: unknown.
        done: steps of the run so far.
        price: of an hour of one card; None: not told.
    """
    from customized_grpo.cost.cards import asked_card, card_here, card_named
    from customized_grpo.cost.forecast import UnknownTimeError, forecast, forecast_on_cpu
    from customized_grpo.cost.measured import measured
    from customized_grpo.paths import ASSETS

    world = int(os.environ.get("WORLD_SIZE") or 1)
    found = card_here(recipe.run.device) if card is None else asked_card(card)
    embedded = Path(recipe.policy.source()).is_relative_to(ASSETS)
    try:
        if found is None and (embedded or recipe.run.device == "cpu"):
            of = forecast_on_cpu(recipe, world=world, done=done)
        else:
            of = forecast(recipe, found or card_named(measured().card), world=world, done=done, examples=examples)
    except UnknownTimeError as error:
        return {"time": f"unknown before the first steps: {error}"}
    said = {"time of a step": _step(of), "time of the run": _run(of)}
    if of.guesses:
        said["a guess"] = f"{'; '.join(of.guesses)}; measured: {of.source}"
    else:
        said["measured"] = of.source
    if price is not None:
        hours = of.run_s / 3600 * world
        said["price of the run"] = f"{hours * price:,.0f}: {hours:,.0f} hours of a card at {price:g}"
    return said


def drawing_of(recipe: "EvaluateRecipe", examples: int | None, *, card: str | None = None) -> dict[str, str]:
    """What an evaluation draws, and how long that takes, by what it is called.

    Args:
        recipe: of an evaluation.
        examples: held-out ones; None: unknown, as the data are not on this machine.
        card: as for ``time_of``.
    """
    from customized_grpo.cost.cards import asked_card, card_here, card_named
    from customized_grpo.cost.drawing import forecast_drawing, images_of
    from customized_grpo.cost.forecast import UnknownTimeError
    from customized_grpo.cost.measured import measured

    if examples is None:
        return {"images": "unknown: the examples are not on this machine, and evaluate.limit is not given"}
    by = "base and tuned" if recipe.lora else "base"
    each = f"{examples} examples x {recipe.evaluate.images_per_prompt}"
    said = {"images": f"{images_of(recipe, examples)} to draw at most: {each}, by {by}"}
    found = card_here(recipe.run.device) if card is None else asked_card(card)
    if found is None and recipe.run.device == "cpu":
        return said | {"time": "unknown before the first images: nothing like it was measured on a CPU"}
    world = int(os.environ.get("WORLD_SIZE") or 1)
    try:
        of = forecast_drawing(recipe, found or card_named(measured().card), examples=examples, world=world)
    except UnknownTimeError as error:
        return said | {"time": f"unknown before the first images: {error}"}
    basis = "a guess" if of.guesses else "measured"
    said["time to draw"] = (
        f"{duration(of.seconds)} ({basis}) on {of.where}: {of.image_s:.3g} s an image; without metrics"
    )
    said[basis] = f"{'; '.join(of.guesses)}; measured: {of.source}" if of.guesses else of.source
    return said


def _step(of: "Forecast") -> str:
    on_each = f"{of.groups} group{'s' if of.groups > 1 else ''} of {of.group_s:.3g} s"
    each = " on each" if of.world > 1 else ""
    return f"{duration(of.step_s)} on {of.where}: {on_each}{each}"


def _run(of: "Forecast") -> str:
    parts = [f"{of.steps} steps"]
    if of.evaluation_s is not None:
        parts.append(f"{of.evaluations} evaluations of {duration(of.evaluation_s)}, without their metrics")
    without = f"; without {', '.join(of.uncounted)}" if of.uncounted else ""
    basis = "a guess" if of.guesses else "measured"
    return f"{duration(of.run_s)} ({basis}): {' and '.join(parts)}{without}"


def storage_of(recipe: "Recipe") -> dict[str, str]:
    """What a run fetches and what it writes, and whether the disk has the room."""
    from customized_grpo.cost.storage import disk, downloads

    said, fetched = {}, downloads(recipe)
    if fetched:
        named = [f"{one.name} {'?' if one.bytes is None else f'{one.bytes / _GB:.1f}'}" for one in fetched]
        total = sum(one.bytes or 0 for one in fetched) / _GB
        more = " and what is unknown (?)" if any(one.bytes is None for one in fetched) else ""
        said["to download"] = f"about {total:.1f} GB{more}: {', '.join(named)}"
    of = disk(recipe)
    kept = f"{of.kept} checkpoint{'s' if of.kept > 1 else ''}"
    size = (
        "of unknown size" if of.checkpoint is None else f"of {_bytes(of.checkpoint)}, and one more while it is written"
    )
    place = next(one for one in Path(recipe.run.dir).absolute().parents if one.is_dir())
    free = shutil.disk_usage(place).free
    said["disk"] = (
        f"at most {_bytes(of.most)}: {kept} {size}; pictures up to {_bytes(of.samples)}; free: {_bytes(free)}"
    )
    if of.most > free:
        said["disk"] += ", which is not enough: give another run.dir, or keep fewer (train.keep_checkpoints)"
    return said


def _bytes(size: int) -> str:
    return f"{size / _GB:.1f} GB" if size >= _GB / 10 else f"{size / 1e6:.1f} MB"


def price_of_judges(tokens: int, price: float | None) -> dict[str, str]:
    """Money for the judges' tokens, where a price of a million is given."""
    if price is None or not tokens:
        return {}
    return {"price of the judges": f"{tokens / 1e6 * price:,.2f}: about {tokens:.2g} tokens at {price:g} a million"}


def steps_done(recipe: "Recipe") -> int:
    """Steps of the run that the recipe resumes."""
    return 0 if recipe.run.resume is None else steps_in(Path(recipe.run.dir))


def steps_in(folder: Path) -> int:
    """Steps of the newest checkpoint in a run's folder; 0 where there is none."""
    from customized_grpo.training import checkpoint

    newest = checkpoint.newest(folder / "checkpoints")
    return 0 if newest is None else int(newest.name.removeprefix("step-"))


def num_held_out(spec: "Evaluate") -> int | None:
    """Held-out examples; where they are not on this machine, which a run says in its own words, the limit."""
    from customized_grpo.data.base import load_dataset, missing
    from customized_grpo.evaluation.blocks import num_examples

    return spec.limit if missing(spec.data) else num_examples(load_dataset(spec.data, "evaluate.data"), spec)


def say_expected(recipe: "Recipe") -> None:
    """Print what a training is expected to take, before it fetches or loads anything."""
    evaluated = recipe.evaluate if recipe.train.evaluate_every else None
    examples = None if evaluated is None else num_held_out(evaluated)
    expected = time_of(recipe, examples=examples, done=steps_done(recipe))
    for name, text in {**expected, **storage_of(recipe)}.items():
        say(f"{name}: {text}")
