"""A pairwise judge: which of two images of a group is better, and the win rate of each as its reward.

It needs no scale, on which a judge's scores tie; but a win rate compares within the group alone, so it is no metric. A
comparison without both answers is left out, and an image without any comparison is NaN. Dimensions: G group size.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import ClassVar, Final, final

import torch
from PIL.Image import Image
from pydantic import Field, NonNegativeInt

from customized_grpo.identity.hashes import pixel_hash
from customized_grpo.rewards.base import AsyncGroupReward, RewardFailure
from customized_grpo.rewards.judge.asker import Judge
from customized_grpo.rewards.judge.builtin import PAIRWISE, BuiltIn
from customized_grpo.rewards.judge.choice import Reader
from customized_grpo.rewards.judge.pairs import Pair, agreed, ordered, round_robin, win_rates
from customized_grpo.rewards.judge.rubrics import Asks
from customized_grpo.rewards.judge.section import JudgeSection
from customized_grpo.rewards.judge.trial import first_answer
from customized_grpo.rewards.judge.unscorable import Unscorable
from customized_grpo.rewards.judge.verdict import FIRST, WINNER, read_verdict
from customized_grpo.rewards.trial import Trial
from customized_grpo.types import Example

_log = logging.getLogger(__name__)
_VERDICTS: Final = Reader(read_verdict, WINNER)


@final
class Pairwise(AsyncGroupReward, Trial):
    """The share of comparisons with others of its group that each image wins, 0 to 1; a tie counts one half."""

    relative: bool = True

    @final
    class Config(JudgeSection):
        """A reward's section with ``type: vlm_pairwise``."""

        built_in: ClassVar[Mapping[str, BuiltIn]] = PAIRWISE
        asked: ClassVar[frozenset[Asks]] = frozenset({"better"})
        compared: ClassVar[int] = 2

        comparisons: int = Field(
            default=4,
            ge=2,
            description="others of its group that each image is compared with, in both orders; more: with all",
        )
        seed: NonNegativeInt = Field(default=0, description="with the images' content, it decides who meets whom")

        def questions(self, samples: int) -> int:
            """Each comparison has two images and two questions."""
            return samples * self.comparisons

    def __init__(self, config: Config, *, device: torch.device) -> None:
        self._config = config
        self._judge = Judge(config, _VERDICTS)
        self._counts: Counter[str] = Counter()

    def begin(self, account: str) -> None:
        """Count the budget under this account."""
        self._judge.begin(account)

    def close(self) -> None:
        """Close connections and the cache; done automatically when the judge is no longer used."""
        self._judge.close()

    @classmethod
    def first_answer(cls, config: Config, account: str) -> str:
        """As ``Trial.first_answer``."""
        return first_answer(config, _VERDICTS, account)

    def drain(self) -> dict[str, float]:
        """Shares of the comparisons since the last drain: ties, orders that disagree, and those without an answer."""
        counts, self._counts = self._counts, Counter()
        asked, answered = counts["asked"], counts["asked"] - counts["unanswered"]
        shares = {"unanswered_share": counts["unanswered"] / asked} if asked else {}
        if answered:
            shares |= {f"{name}_share": counts[name] / answered for name in ("tie", "contradiction")}
        return shares

    async def __call__(self, example: Example, images: Sequence[Image]) -> list[float]:
        """Win rates; images of equal pixels have one, and are not compared with each other.

        Raises:
            Unscorable: no comparison has an answer; the message is the last one's.
            RewardFailure: the endpoint refuses for good, or the budget is spent; what was in flight is answered.
            ValueError: a single image, or an example that lacks what the rubric shows.
        """
        if len(images) < 2:
            raise ValueError("a win rate takes at least 2 images of an example; given 1")
        example = self._judge.prepared(example)
        contents = [pixel_hash(image) for image in images]
        entrants = ordered(contents, self._config.seed)
        if len(entrants) == 1:
            return [0.5] * len(images)
        pictures = [images[contents.index(content)] for content in entrants]
        points = await self._compared(example, pictures, round_robin(len(entrants), self._config.comparisons))
        rates = dict(zip(entrants, win_rates(len(entrants), points), strict=True))
        return [rates[content] for content in contents]

    async def _compared(self, example: Example, pictures: Sequence[Image], pairs: Sequence[Pair]) -> dict[Pair, float]:
        """Points of the first image of each pair that has both answers."""
        turn = asyncio.Semaphore(self._config.concurrency)
        stops, errors = list[RewardFailure](), list[Unscorable]()

        async def asked(first: int, second: int) -> float | None:
            async with turn:  # after a stop nothing more is asked, and what is in flight is answered and kept
                if stops:
                    return None
                try:
                    return await self._judge.score(example, [pictures[first], pictures[second]]) / FIRST
                except RewardFailure as failure:
                    stops.append(failure)
                except Unscorable as error:
                    errors.append(error)
            return None

        orders = [order for first, second in pairs for order in ((first, second), (second, first))]
        answers = dict(zip(orders, await asyncio.gather(*(asked(*order) for order in orders)), strict=True))
        if stops:
            raise stops[0]
        points = dict[Pair, float]()
        for first, second in pairs:
            forward, backward = answers[first, second], answers[second, first]
            if forward is not None and backward is not None:
                points[first, second] = agreed(forward, backward)
                self._counts["contradiction"] += forward != 1.0 - backward
                self._counts["tie"] += forward == backward == 0.5
        if errors and not self._counts["unanswered"]:
            _log.warning("%d of %d questions have no answer: %s", len(errors), len(orders), errors[-1])
        self._counts["asked"] += len(pairs)
        self._counts["unanswered"] += len(pairs) - len(points)
        if not points:
            raise errors[-1]
        return points
