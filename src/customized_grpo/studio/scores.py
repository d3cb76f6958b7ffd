"""Scores of drawn pictures by the rewards of a run, loaded when the first picture is scored."""

import threading
from collections.abc import Sequence
from typing import final

import torch
from PIL import Image
from torch import Tensor

from customized_grpo import registry
from customized_grpo.recipe.config import EvaluateRecipe, Recipe
from customized_grpo.rewards.base import AnyReward, AsyncGroupReward, AsyncReward, RewardFailure, close
from customized_grpo.scoring.score import load_rewards, score
from customized_grpo.types import Example


@final
class Scores:
    """Rewards of a recipe that score single pictures; an evaluation's recipe has none.

    Attributes:
        local: names of the rewards that are models here.
        asked: names of those that ask a server, which may cost money; they score where one says so.
    """

    def __init__(self, recipe: Recipe | EvaluateRecipe, device: torch.device) -> None:
        self._sections = dict(recipe.rewards) if isinstance(recipe, Recipe) else {}
        self._device = device
        self.asked = tuple(name for name, section in self._sections.items() if _asks(section))
        self.local = tuple(name for name in self._sections if name not in self.asked)
        self._loaded: dict[str, AnyReward] = {}
        self._one_at_a_time = threading.Lock()

    def of(
        self, images: Sequence[Tensor], prompt: str, references: Sequence[Image.Image], subject: str, *, ask: bool
    ) -> tuple[list[dict[str, float]], list[str]]:
        """Scores of pictures of one prompt.

        Args:
            images: (1, h, w, 3), uint8.
            prompt: what they were to show.
            references: pictures of the subject.
            subject: its class word, which some rewards need; may be empty.
            ask: whether ``asked`` score, too.

        Returns:
            For each picture its scores by the reward's name, NaN where it could not be scored; and why a reward gave
            none, for people.
        """
        example = Example(key="studio", prompt=prompt, references=tuple(references), subject=subject)
        found: list[dict[str, float]] = [{} for _ in images]
        problems = []
        with self._one_at_a_time:
            for name in (*self.local, *(self.asked if ask else ())):
                try:
                    if name not in self._loaded:
                        self._loaded |= load_rewards({name: self._sections[name]}, device=self._device)
                    values = score(torch.cat(list(images)), {name: self._loaded[name]}, example)[name].tolist()
                except (ValueError, RewardFailure) as error:  # the pictures are there all the same
                    problems.append(f"{name}: {error}")
                    values = [float("nan")] * len(images)
                for row, value in zip(found, values, strict=True):
                    row[name] = value
        return found, problems

    def close(self) -> None:
        """Close what rewards have open."""
        close(self._loaded)


def _asks(section: registry.PluginSection) -> bool:
    kind = registry.resolve("rewards", section.type)
    return isinstance(kind, type) and issubclass(kind, AsyncReward | AsyncGroupReward)
