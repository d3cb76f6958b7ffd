"""Prompts of the miniature world: text from a scene and a class, and its parser."""

import re
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

_PATTERN: Final = re.compile(
    rf"a (?P<size>{'|'.join(SIZES)}) (?P<cls>{'|'.join(CLASSES)})"
    rf"(?: wearing a (?P<hat>{'|'.join(HATS[1:])}) hat)?"
    rf" (?P<place>{'|'.join(PLACE_PHRASES)}) (?P<position>{'|'.join(POSITION_PHRASES)})"
)


def prompt(*, cls: int, place: int, position: int, size: int, hat: int) -> str:
    """The prompt of a scene, such as `a small cube wearing a red hat in the snow on the left`.

    Args: indices into CLASSES, PLACES, POSITIONS, SIZES and HATS.
    """
    hat_phrase = f" wearing a {HATS[hat]} hat" if hat else ""
    return f"a {SIZES[size]} {CLASSES[cls]}{hat_phrase} {PLACE_PHRASES[place]} {POSITION_PHRASES[position]}"


def parse(text: str) -> dict[str, int]:
    """The inverse of `prompt`.

    Raises:
        ValueError: the text is not a prompt of the miniature world.
    """
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise ValueError(
            f"{text!r} is not a prompt of the miniature world. "
            f"A prompt reads: {prompt(cls=1, place=1, position=0, size=0, hat=1)!r}"
        )
    return {
        "cls": CLASSES.index(match["cls"]),
        "place": PLACE_PHRASES.index(match["place"]),
        "position": POSITION_PHRASES.index(match["position"]),
        "size": SIZES.index(match["size"]),
        "hat": HATS.index(match["hat"]) if match["hat"] else 0,
    }


def words() -> tuple[str, ...]:
    """All words of the prompts, sorted."""
    phrases = (*PLACE_PHRASES, *POSITION_PHRASES, *SIZES, *CLASSES, *HATS[1:], "a wearing hat")
    return tuple(sorted({word for phrase in phrases for word in phrase.split()}))


assert len(PLACE_PHRASES) == len(PLACES) and len(POSITION_PHRASES) == len(POSITIONS)
