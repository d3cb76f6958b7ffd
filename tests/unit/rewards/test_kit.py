"""The conformance kit over the rewards that are one model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from customized_grpo import registry
from customized_grpo.testing import check_reward
from tiny_rewards import example, pictures


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("clip_t", "clip_folder"),
        ("clip_i", "clip_folder"),
        ("pickscore", "clip_folder"),
        ("dino", "dino_folder"),
    ],
)
def test_rewards_of_one_model(name: str, folder: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(folder)
    kind: Any = registry.resolve("rewards", name)
    files = {"model": str(path)} | ({"processor": str(path)} if name == "pickscore" else {})
    build: Callable[..., Any] = kind
    reward = build(kind.Config(type=name, axis="prompt", **files), device=torch.device("cpu"))
    check_reward(reward, example(2), pictures(4))
