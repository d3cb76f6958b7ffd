"""What a checkpoint keeps of data, models and servers, compared with a run that goes on."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL.Image import Image

from customized_grpo.identity.hashes import FileHashes
from customized_grpo.mini.dataset import MiniDataset
from customized_grpo.recipe.config import Recipe
from customized_grpo.recipe.loading import save_recipe
from customized_grpo.rewards.base import AnyReward, AsyncGroupReward
from customized_grpo.training.identity import RunIdentity, named_in
from customized_grpo.types import Example
from runs import tiny_recipe


class Served(AsyncGroupReward):
    """A server's reward, known by its fingerprint."""

    def __init__(self, config: Any, *, device: Any = None) -> None:
        self.fingerprint = config

    async def __call__(self, example: Example, images: Sequence[Image]) -> list[float]:
        return [0.0] * len(images)


def identity(recipe: Recipe, rewards: Mapping[str, AnyReward]) -> RunIdentity:
    found = RunIdentity(recipe, MiniDataset(MiniDataset.Config(type="mini", size=3)), rewards, FileHashes())
    found.look()
    return found


def checkpoint(folder: Path, recipe: Recipe, rewards: Mapping[str, AnyReward]) -> Path:
    (folder / "state").mkdir(parents=True)
    save_recipe(recipe, folder / "config.yaml")
    identity(recipe, rewards).write(folder / "state")
    return folder


def test_another_reward_behind_a_server_s_address_is_refused(tmp_path: Path) -> None:
    recipe, said = tiny_recipe(tmp_path, tmp_path / "run"), list[str]()
    saved = checkpoint(tmp_path / "saved", recipe, {"bright": Served("a" * 16)})
    same = identity(recipe, {"bright": Served("a" * 16)}).same_as(saved, recipe, recipe, said.append)
    assert "rewards.bright.fingerprint" in same
    with pytest.raises(ValueError, match=r"rewards\.bright\.fingerprint: was a{16}, is b{16}"):
        identity(recipe, {"bright": Served("b" * 16)}).same_as(saved, recipe, recipe, said.append)
    assert said == []


def test_a_changed_module_of_a_reward_is_said_and_accepted(tmp_path: Path) -> None:
    recipe, said = tiny_recipe(tmp_path, tmp_path / "run"), list[str]()
    saved = checkpoint(tmp_path / "saved", recipe, {})
    file = saved / "state" / "identity.json"
    content = json.loads(file.read_text())
    content["named"]["rewards.bright.type (source)"] = "another"
    file.write_text(json.dumps(content))
    identity(recipe, {}).same_as(saved, recipe, recipe, said.append)
    assert said == ["resuming with a changed module: rewards.bright.type (source)"]


def test_what_a_recipe_names_stands_under_its_key(tmp_path: Path) -> None:
    (tmp_path / "flux").mkdir()
    (tmp_path / "flux" / "model_index.json").write_text("{}")
    found = named_in(tiny_recipe(tmp_path, tmp_path / "run"), FileHashes())
    assert found.keys() == {"policy.model", "rewards.bright.type (source)", "rewards.warm.type (source)"}
    assert found["policy.model"].startswith("content ")
