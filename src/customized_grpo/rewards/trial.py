"""A first question to a judge or reward server, asked before any model is loaded: the smallest that has an answer.

A wrong key, model or address would else show after minutes of loading. The pictures are two small squares, always the
same, so a judge with a cache is asked once in its life, and pays for it from the run's budget.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from PIL import Image, ImageDraw

from customized_grpo.types import Example

T = TypeVar("T")

SIDE: Final = 64
"""Pixels: endpoints refuse pictures below 10 to 28."""
LIMIT_S: Final = 30.0
"""Longest wait for the answer; a reasoning model takes seconds."""
DOWN_S: Final = 3.0
"""Longest wait for a server that is down."""


class Trial(ABC):
    """A reward over the network that can be asked a first question."""

    @classmethod
    @abstractmethod
    def first_answer(cls, config: Any, account: str) -> str:
        """Ask it, impatiently; gives who answered and what, for people.

        Args:
            config: the reward's section.
            account: under which it is counted, see ``AsyncReward.begin``.

        Raises:
            ValueError: it can't be asked, or its answer has no score; the message says what to do.
        """


def first_example() -> Example:
    """An example with all that a reward may need."""
    mask = Image.new("L", (SIDE, SIDE))
    ImageDraw.Draw(mask).ellipse((8, 8, SIDE - 8, SIDE - 8), fill=255)
    return Example(key="trial", prompt="a red ball", references=(_ball("red"),), subject="ball", masks=(mask,))


def first_images() -> list[Image.Image]:
    """A group of two, which a comparison needs."""
    return [_ball("red"), _ball("blue")]


def waited_for(work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, also where an event loop is running already."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


def _ball(colour: str) -> Image.Image:
    picture = Image.new("RGB", (SIDE, SIDE), "white")
    ImageDraw.Draw(picture).ellipse((8, 8, SIDE - 8, SIDE - 8), fill=colour)
    return picture
