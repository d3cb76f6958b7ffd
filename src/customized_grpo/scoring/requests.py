"""Concurrent requests to remote rewards, with a limit and a timeout, in training and evaluation alike.

A failed request leaves its image, or group, unscored with a reason; a ``RewardFailure`` is passed on.
"""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

from PIL.Image import Image

from customized_grpo.rewards.base import AsyncGroupReward, AsyncReward, RewardFailure
from customized_grpo.types import Example

MAX_CONCURRENT: Final = 8
"""Limit on concurrent requests, for a reward that doesn't set its own."""
TIMEOUT_S: Final = 60.0
"""Timeout for one image of an ``AsyncReward`` that doesn't set its own, from the moment it is sent."""


@final
@dataclass(frozen=True, slots=True)
class Outcome:
    """Scores, each with the reason why it is missing (empty if it isn't)."""

    scores: Sequence[float]
    errors: Sequence[str]

    @classmethod
    def of(cls, scores: Sequence[float], error: str = "") -> "Outcome":
        """Outcome of scores that came together, with a common error."""
        return cls(scores, [error] * len(scores))

    def reasons(self) -> list[str]:
        """Reason why each score can't be used; empty if it can."""
        pairs = zip(self.scores, self.errors, strict=True)
        return ["" if math.isfinite(score) else error or f"the score was {score:g}" for score, error in pairs]


def limit(reward: AsyncReward | AsyncGroupReward) -> asyncio.Semaphore:
    """Semaphore that limits the reward's concurrent requests; for one event loop."""
    return asyncio.Semaphore(reward.max_concurrent or MAX_CONCURRENT)


async def ask_singly(
    reward: AsyncReward, questions: Sequence[tuple[Example, Image]], limit: asyncio.Semaphore
) -> Outcome:
    """Request scores concurrently, one per image, in order. Waiting for ``limit`` doesn't count as time.

    Raises:
        RewardFailure: the reward asks to stop; requests in flight are cancelled.
    """
    errors = [""] * len(questions)
    time_s = reward.timeout_s or TIMEOUT_S

    async def score(index: int) -> float:
        try:
            async with limit, asyncio.timeout(time_s):
                return float(await reward(*questions[index]))
        except RewardFailure:
            raise
        except TimeoutError as error:
            errors[index] = str(error) or f"no answer in {time_s:g} s"
        except Exception as error:
            errors[index] = describe(error)
        return math.nan

    stop: BaseException | None = None
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(score(index)) for index in range(len(questions))]
    except* RewardFailure as stops:
        stop = stops.exceptions[0]
    if stop is not None:
        raise stop
    return Outcome([task.result() for task in tasks], errors)


async def ask_together(
    reward: AsyncGroupReward, example: Example, images: Sequence[Image], limit: asyncio.Semaphore
) -> Outcome:
    """Request the scores of a group in one call.

    Raises:
        RewardFailure: the reward asks to stop, or gives a wrong number of scores.
    """
    try:
        async with limit:
            scores = [float(score) for score in await reward(example, images)]
    except RewardFailure:
        raise
    except Exception as error:
        return Outcome.of([math.nan] * len(images), describe(error))
    if len(scores) != len(images):
        raise RewardFailure(f"it returned {len(scores)} scores for {len(images)} images")
    return Outcome.of(scores)


def describe(error: Exception) -> str:
    """Description of an error, with its type."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
