"""A plain function as a reward: resolved by its place, sync or async, with a recipe's section like any other."""

import asyncio
import math
import sys
from collections.abc import Callable, Iterator
from multiprocessing.reduction import ForkingPickler  # what a spawned worker gets its arguments by
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from customized_grpo import registry
from customized_grpo.recipe.loading import RecipeError, recipe_of
from customized_grpo.rewards.base import AsyncReward, Reward, RewardFailure
from customized_grpo.rewards.function import reward_class
from customized_grpo.scoring.folder import Scoring
from customized_grpo.scoring.scorer import Scorer
from customized_grpo.testing import check_reward
from customized_grpo.types import Example
from tiny_rewards import example, pictures

CPU = torch.device("cpu")
MODULE = '''
import asyncio
import numpy as np

def redness(example, images):
    """How red an image is."""
    return [float(np.asarray(image)[..., 0].mean()) / len(example.prompt) for image in images]

def colour(example, images, *, channel: int = 0, scale: float = 1.0):
    return [scale * float(np.asarray(image)[..., channel].mean()) for image in images]

async def judge(example, images):
    await asyncio.sleep(0)
    return [None if np.asarray(image).mean() < 100 else 1.0 for image in images]

def three(example, images, mood):
    return []
'''


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "plain_rewards.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("plain_rewards", None)


def built(function: Callable[..., Any]) -> Any:
    kind: Any = reward_class(function)
    return kind(kind.Config(type="x"), device=CPU)


def test_its_keyword_only_parameters_are_options_of_its_section() -> None:
    section = {"type": "plain_rewards:colour", "axis": "prompt", "channel": 2, "scale": 2}
    recipe = recipe_of({"rewards": {"blue": section}}, [], Scoring)
    assert ForkingPickler.loads(ForkingPickler.dumps(recipe)) == recipe  # a server's workers get it so
    reward = registry.resolve("rewards", "plain_rewards:colour")(recipe.rewards["blue"], device=CPU)
    blue = pictures(3)[..., 2].float().mean((1, 2))
    torch.testing.assert_close(reward(example(), pictures(3)), 2 * blue)
    with pytest.raises(RecipeError, match=r"chanel.*did you mean 'channel'"):
        recipe_of({"rewards": {"blue": section | {"chanel": 1}}}, [], Scoring)


def mean(example: Example, images: list[Image.Image]) -> list[float | None]:
    return [float(np.asarray(image).mean()) for image in images]


async def slow_mean(example: Example, images: list[Image.Image]) -> list[float | None]:
    await asyncio.sleep(0.001 * (images[0].height % 3))
    return mean(example, images)


def test_a_recipe_names_it_by_its_place_and_the_scorer_runs_it() -> None:
    recipe = recipe_of(
        {
            "rewards": {
                "red": {"type": "plain_rewards:redness", "axis": "prompt", "weight": 0.5},
                "judge": {"type": "plain_rewards:judge", "axis": "identity"},
            }
        },
        [],
        Scoring,
    )
    assert recipe.rewards["red"].weight == 0.5
    red = registry.resolve("rewards", "plain_rewards:redness")
    assert issubclass(red, Reward)
    assert red.__doc__ == "How red an image is."
    assert issubclass(registry.resolve("rewards", "plain_rewards:judge"), AsyncReward)
    images, one = pictures(4), example(prompt="a red dog")
    rewards = {name: registry.resolve("rewards", spec.type)(spec, device=CPU) for name, spec in recipe.rewards.items()}
    images[1] = 0
    with Scorer(rewards, max_failed_share=1.0) as scorer:
        scores = scorer.submit(one, images).result()
    assert scores[:, 0].tolist() == pytest.approx((images[..., 0].float().mean((1, 2)) / 9).tolist(), rel=1e-5)
    assert scores[:, 1].nan_to_num(-1.0).tolist() == [1.0, -1.0, 1.0, 1.0]
    assert scorer.tally.failures == {"red": 0, "judge": 1}


def test_options_are_refused_by_name() -> None:
    with pytest.raises(RecipeError, match=r"rewards\.red\.mood: unknown key"):
        recipe_of({"rewards": {"red": {"type": "plain_rewards:redness", "mood": 3}}}, [], Scoring)


def test_another_signature_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"plain_rewards:three can't be called as f\(example, images\)"):
        recipe_of({"rewards": {"red": {"type": "plain_rewards:three"}}}, [], Scoring)


@pytest.mark.parametrize("function", [mean, slow_mean])
def test_the_kit_takes_functions(function: Callable[..., Any]) -> None:
    check_reward(function, example(), pictures(4))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda example, images: [0.0] * len(images) + [1.0], r"returned 5 scores for 4 images"),
        (lambda example, images: None, "returned None; return a list"),
        (lambda example, images: ["good"] * len(images), "return a list of one number, or None"),
    ],
)
def test_what_is_no_list_of_scores_is_refused(function: Callable[..., Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        built(function)(example(), pictures(4))
    with (
        pytest.raises(RewardFailure, match=message),
        Scorer({"f": built(function)}, max_failed_share=1.0) as scorer,
    ):
        scorer.submit(example(), pictures(4))


def test_none_is_nan_and_everything_else_float32() -> None:
    scores = built(lambda example, images: [None, 1, np.float64(0.1), True])(example(), pictures(4))
    assert scores.dtype == torch.float32
    assert math.isnan(scores[0])
    assert scores[1:].tolist() == pytest.approx([1.0, 0.1, 1.0])


def test_a_failed_call_of_an_async_function_costs_one_image() -> None:
    async def moody(example: Example, images: list[Image.Image]) -> list[float | None]:
        if np.asarray(images[0]).max() == 0:
            raise ConnectionError("no line")
        return mean(example, images)

    images = pictures(3)
    images[2] = 0
    with Scorer({"f": built(moody)}, max_failed_share=1.0) as scorer:
        assert scorer.submit(example(), images).result().isnan().flatten().tolist() == [False, False, True]


def test_the_kit_refuses_what_is_no_reward() -> None:
    with pytest.raises(AssertionError, match="is not a reward"):
        check_reward(int, example(), pictures(3))


@pytest.mark.parametrize("given", [{0.1, 0.2}, {0: 0.5, 1: 0.5}, "01"], ids=["set", "mapping", "text"])
def test_scores_without_an_order_are_refused(given: object) -> None:
    """As long as the group, they were taken: in a set's order, as a mapping's keys, letter by letter."""
    with pytest.raises(ValueError, match="return a list of one number, or None, an image"):
        built(lambda example, images: given)(example(), pictures(2))
