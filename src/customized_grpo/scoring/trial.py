"""Rewards tried before any model is loaded: a first question to judges and servers, a first call of functions."""

from collections.abc import Callable, Mapping
from typing import Final

import torch
from pydantic import BaseModel

from customized_grpo import registry
from customized_grpo.rewards.base import AnyReward, RewardFailure, account_of
from customized_grpo.rewards.function import FromFunction
from customized_grpo.rewards.trial import Trial
from customized_grpo.scoring.scorer import score_locally
from customized_grpo.seeding import generator
from customized_grpo.types import Example

SKIP: Final = "run.ask_first=false"
"""The key by which a run or an evaluation begins without these questions."""


def ask_first(sections: Mapping[str, BaseModel], *, run: Callable[[], str], place: str, skip: str = SKIP) -> list[str]:
    """Ask each that is asked over the network once; a line for each answer.

    Args:
        sections: rewards or metrics by name.
        run: gives the run's name, in which its budget is counted.
        place: what stands before a name in the recipe, as for ``rewards.base.begin``.
        skip: how to begin without these questions, for the message.

    Raises:
        ValueError: one can't be asked, or its answer has no score.
    """
    said = []
    for name, section in sections.items():
        given = registry.type_of(section)
        kind: registry.Kind = "metrics" if given in registry.available("metrics") else "rewards"
        plugin = registry.resolve(kind, given)
        if not issubclass(plugin, Trial):
            continue
        try:
            said.append(f"{place}{name}: {plugin.first_answer(section, account_of(run(), place, name))}")
        except (ValueError, RewardFailure) as error:
            raise ValueError(f"{place}{name}: {error}; or begin without asking: {skip}") from error
    return said


def call_first(rewards: Mapping[str, AnyReward], example: Example, size: tuple[int, int]) -> None:
    """Call each reward that is a function once, on two pictures of noise: its mistakes are cheaper now than later.

    Args:
        rewards: by name.
        example: one of the training's.
        size: height and width of the training's images.

    Raises:
        RewardFailure: one raised, or gave something else than a number an image.
    """
    noise = torch.randint(256, (2, *size, 3), dtype=torch.uint8, generator=generator(0, "trial", 0, 0))
    for name, reward in rewards.items():
        if isinstance(reward, FromFunction):
            score_locally(name, reward, example, noise)
