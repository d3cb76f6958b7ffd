"""Scores over the network are on their way while the next group is sampled, in the real training step."""

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import pytest
import torch
from PIL.Image import Image

from customized_grpo.rewards.base import AsyncGroupReward, RewardConfig
from customized_grpo.training.setup import build
from customized_grpo.training.trainer import Trainer
from customized_grpo.types import Example
from runs import tiny_recipe

SAMPLING = threading.Event()
"""The second group is being sampled."""


@final
class Patient(AsyncGroupReward):
    """Scores a group once the next one is being sampled; where nothing overlaps, it waits in vain and fails."""

    Config = RewardConfig

    def __init__(self, config: RewardConfig, *, device: torch.device) -> None:
        """Nothing to open."""

    async def __call__(self, example: Example, images: Sequence[Image]) -> list[float]:
        if not await asyncio.to_thread(SAMPLING.wait, 30.0):
            raise TimeoutError("the next group was not sampled")
        return [float(at) for at in range(len(images))]


def test_the_next_group_is_sampled_while_scores_are_on_their_way(
    tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {
        "train__steps": 1,
        "rewards__warm": {"type": f"{__name__}:Patient", "axis": "identity"},
        "advantage__max_failed_share": 0.0,
    }
    SAMPLING.clear()
    trainer = Trainer(build(tiny_recipe(tiny_world, tmp_path / "run", **changes)))
    sample, groups = trainer.sample, []

    def watched(step: int, group: int, index: int) -> Any:
        groups.append(group)
        if len(groups) == 2:
            SAMPLING.set()
        return sample(step, group, index)

    monkeypatch.setattr(trainer, "sample", watched)
    metrics = trainer.step(0)
    trainer.parts.scorer.close()
    assert len(groups) == 2
    assert metrics["reward/warm/failed_share"] == 0.0
