"""``score``: a notebook's images by a recipe's rewards."""

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from customized_grpo.recipe.loading import load_recipe
from customized_grpo.rewards.base import RewardFailure
from customized_grpo.scoring.score import load_rewards, score
from tiny_rewards import example, pictures

MODULE = """
import numpy as np

def bright(example, images):
    return [float(np.asarray(image).mean()) for image in images]

async def shy(example, image):
    raise OSError("connection refused")

def broken(example, images):
    raise KeyError("oops")
"""


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "note_rewards.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("note_rewards", None)


def rewards(*names: str) -> Any:
    overrides = [f"rewards.{name}={{type: 'note_rewards:{name}', axis: prompt}}" for name in names]
    recipe = load_recipe("mini_customized", overrides)
    return load_rewards({name: recipe.rewards[name] for name in names})


def test_a_tensor_and_pil_images_get_the_same_scores() -> None:
    group = pictures(3)
    loaded = rewards("bright", "shy")
    scores = score(group, loaded, example())
    assert list(scores) == ["bright", "shy"]
    assert scores["bright"].tolist() == pytest.approx(group.float().mean((1, 2, 3)).tolist())
    assert scores["bright"].dtype == torch.float32
    assert all(math.isnan(value) for value in scores["shy"].tolist())
    again = score([Image.fromarray(image) for image in group.numpy()], loaded, example())
    assert torch.equal(again["bright"], scores["bright"])


def test_a_recipes_own_rewards() -> None:
    loaded = load_rewards(load_recipe("mini_customized").rewards)
    scores = score(pictures(2), loaded, example())
    assert {name: tuple(column.shape) for name, column in scores.items()} == {"clip": (2,), "dino": (2,)}


def test_images_of_several_sizes_and_none() -> None:
    loaded = rewards("bright")
    with pytest.raises(ValueError, match="given 4 x 4 and 8 x 4; give at least one, all of one size"):
        score([Image.new("RGB", (4, 4)), Image.new("RGB", (8, 4))], loaded, example())
    with pytest.raises(ValueError, match="given none; give at least one"):
        score([], loaded, example())


def test_a_reward_that_breaks_is_named() -> None:
    with pytest.raises(RewardFailure, match=r"'broken' failed on example .*oops"):
        score(pictures(1), rewards("broken"), example())


def test_a_model_that_is_not_there_is_named() -> None:
    recipe = load_recipe("mini_customized", ["rewards.dino.model=/nowhere"])
    with pytest.raises(ValueError, match=r"rewards\.dino: .*nowhere"):
        load_rewards(recipe.rewards)
