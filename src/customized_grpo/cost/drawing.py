"""Forecast of an evaluation: the images that it draws, and their measured or scaled seconds."""

from dataclasses import dataclass
from functools import partial

from customized_grpo.cost.cards import Card
from customized_grpo.cost.forecast import (
    Sized,
    UnknownTimeError,
    drawn_s,
    other_card,
    scaled_from,
    unmeasured_drawing,
)
from customized_grpo.cost.measured import measured
from customized_grpo.memory.footprint import UnknownModelError
from customized_grpo.recipe.config import EvaluateRecipe
from customized_grpo.recipe.loading import load_recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """Expected time to draw an evaluation's images, without its metrics."""

    where: str
    """Card of the seconds."""
    image_s: float
    """Seconds of one image."""
    seconds: float
    """Seconds of all images."""
    source: str
    """Where the seconds were measured."""
    guesses: tuple[str, ...]
    """Reasons for which the seconds are no measurement of this recipe; empty: they are."""


def images_of(recipe: EvaluateRecipe, examples: int) -> int:
    """Images that an evaluation draws: by the base, and by an adapter where one is given."""
    return examples * recipe.evaluate.images_per_prompt * (1 + bool(recipe.lora))


def forecast_drawing(recipe: EvaluateRecipe, card: Card, *, examples: int, world: int = 1) -> Drawing:
    """The forecast of an evaluation on a card.

    Args:
        recipe: a whole recipe.
        card: each process has one.
        examples: held-out examples.
        world: number of processes.

    Raises:
        UnknownTimeError: the model's shapes or the card's peak are unknown, or the model is too small to scale to.
    """
    table = measured()
    policy, (reference, speed) = recipe.evaluated, scaled_from(card)
    try:
        sized = partial(Sized, load_recipe(table.recipe, []).policy, speed=speed)(policy)
    except UnknownModelError as error:
        raise UnknownTimeError(str(error)) from error
    an_image = drawn_s(recipe.evaluate, recipe.evaluate.steps or recipe.sampling.steps, sized, speed)
    unknown = [key for key, given in unmeasured_drawing(policy, recipe.run.precision).items() if given]
    guesses = [*other_card(card, reference), *sized.guesses]
    guesses += [f"what {', '.join(unknown)} does to the time was not measured"] if unknown else []
    return Drawing(
        where=f"{world} x {card.name}" if world > 1 else f"one {card.name}",
        image_s=an_image,
        seconds=images_of(recipe, examples) / world * an_image,
        source=f"{table.model} at 512 x 512 on one {table.card}, torch {table.torch}: {table.source}",
        guesses=tuple(dict.fromkeys(guesses)),
    )
