"""A vision-language model as a judge: one rubric, one image per question, by any OpenAI-compatible endpoint.

A failed question gives NaN, never 0: a false 0 in a group of twelve moves every other sample's advantage.
Several rubrics are several rewards. Dimensions: H x W pixels.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Final, Self, final

import torch
from PIL.Image import Image
from pydantic import Field, PositiveFloat, model_validator

from customized_grpo.rewards.base import AsyncReward
from customized_grpo.rewards.judge.answer import read
from customized_grpo.rewards.judge.asker import Judge
from customized_grpo.rewards.judge.builtin import RUBRICS, BuiltIn
from customized_grpo.rewards.judge.choice import Reader
from customized_grpo.rewards.judge.numbers import of_token
from customized_grpo.rewards.judge.objects import scores_on
from customized_grpo.rewards.judge.rubrics import Asks, Rubric
from customized_grpo.rewards.judge.scale import DREAMBENCH
from customized_grpo.rewards.judge.section import JudgeSection
from customized_grpo.rewards.judge.trial import first_answer
from customized_grpo.rewards.judge.yes_no import of_word, read_yes_no
from customized_grpo.rewards.trial import Trial
from customized_grpo.types import Example

_GRACE_S: Final = 5.0


@final
class Vlm(AsyncReward, Trial):
    """A judge's score of each image by one rubric: 0 to 4, another scale, or the probability of a yes."""

    @final
    class Config(JudgeSection):
        """A reward's section with ``type: vlm``."""

        built_in: ClassVar[Mapping[str, BuiltIn]] = RUBRICS
        asked: ClassVar[frozenset[Asks]] = frozenset({"score", "yes_no"})

        expected: bool = Field(
            default=False,
            description="use the expectation over the digit's log-probabilities instead of the digit",
        )
        best: PositiveFloat = Field(
            default=float(DREAMBENCH.best),
            description="value of the best answer: 4, or 1 as DreamBench++ reports it; by default the rubric's own",
        )

        @classmethod
        def defaults_of(cls, rubric: Rubric) -> dict[str, Any]:
            """The value of the rubric's best answer."""
            return {"best": float(best_of(rubric))}

        @model_validator(mode="after")
        def _is_expected(self) -> Self:
            rubric = self.judged().rubric
            if self.expected and rubric.asks == "yes_no":
                raise ValueError("expected: has no effect here; a yes or no is a probability already")
            if self.expected and not self.logprobs:
                raise ValueError(
                    "expected: true needs an endpoint that gives log-probabilities, and here logprobs is false; "
                    "set logprobs: true if it does, or expected: false"
                )
            if self.expected and (rubric.scale[1] > 9 or rubric.scores > 1):
                raise ValueError(
                    "expected: true takes one score of one digit, as others are several tokens; the rubric asks for "
                    f"{rubric.scores} of {rubric.scale[0]} to {rubric.scale[1]}; set expected: false"
                )
            return self

    def __init__(self, config: Config, *, device: torch.device) -> None:
        self._config = config
        self.max_concurrent = config.concurrency
        self.timeout_s = config.deadline_s + _GRACE_S  # the judge's own deadline has a better message
        self._judge = Judge(config, reader_of(config.judged().rubric, expected=config.expected))

    def begin(self, account: str) -> None:
        """Count the budget under this account."""
        self._judge.begin(account)

    def close(self) -> None:
        """Close connections and the cache; done automatically when the judge is no longer used."""
        self._judge.close()

    @classmethod
    def first_answer(cls, config: Config, account: str) -> str:
        """As ``Trial.first_answer``."""
        return first_answer(config, reader_of(config.judged().rubric, expected=config.expected), account)

    async def __call__(self, example: Example, image: Image) -> float:
        """The score of one image; the same question is asked only once, unless ``extra["run"]`` differs.

        Raises:
            Unscorable: the judge gave no readable score.
            RewardFailure: the endpoint refuses for good, or the budget is spent.
            ValueError: concept preservation of an example without references.
        """
        score = await self._judge.score(self._judge.prepared(example), [image])
        return score * self._config.best / best_of(self._config.judged().rubric)


def best_of(rubric: Rubric) -> int:
    """The best answer on the rubric's own scale: 1 for a yes."""
    return 1 if rubric.asks == "yes_no" else rubric.scale[1]


def reader_of(rubric: Rubric, *, expected: bool) -> Reader:
    """How replies to a rubric become scores."""
    if rubric.asks == "yes_no":
        return Reader(read_yes_no, value_of=of_word, cut=True)
    scale = rubric.numbers()
    value_of = partial(of_token, scale=scale) if expected else None
    return Reader(partial(read, scale=scale), scores_on(scale), value_of)
