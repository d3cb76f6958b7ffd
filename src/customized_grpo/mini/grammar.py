"""Prompts of the miniature world: text from a scene and a class."""

from typing import Final

from customized_grpo.mini.world import CLASSES, HATS, PLACES, POSITIONS, SIZES

PLACE_PHRASES: Final = (
    "on the beach",
    "in the snow",
    "on the grass",
    "at night",
    "on a red floor",
    "in the water",
    "in the city",
    "at sunset",
)
POSITION_PHRASES: Final = ("on the left", "in the middle", "on the right")
MAX_TOKENS: Final = 16
"""Length of a tokenised prompt, end (and begin) token included."""


def prompt(*, cls: int, place: int, position: int, size: int, hat: int) -> str:
    """The prompt of a scene, such as `a small cube wearing a red hat in the snow on the left`.

    Args: indices into CLASSES, PLACES, POSITIONS, SIZES and HATS.
    """
    hat_phrase = f" wearing a {HATS[hat]} hat" if hat else ""
    return f"a {SIZES[size]} {CLASSES[cls]}{hat_phrase} {PLACE_PHRASES[place]} {POSITION_PHRASES[position]}"


def words() -> tuple[str, ...]:
    """All words of the prompts, sorted."""
    phrases = (*PLACE_PHRASES, *POSITION_PHRASES, *SIZES, *CLASSES, *HATS[1:], "a wearing hat")
    return tuple(sorted({word for phrase in phrases for word in phrase.split()}))


assert len(PLACE_PHRASES) == len(PLACES) and len(POSITION_PHRASES) == len(POSITIONS)
