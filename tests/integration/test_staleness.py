"""Rollouts one update behind: the weights that sample, what losses compare with, rewards in flight, exact resume."""

import asyncio
import copy
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import pytest
import torch
from PIL.Image import Image
from pydantic import ValidationError

from customized_grpo.rewards.base import AsyncGroupReward, RewardConfig
from customized_grpo.training import autotune
from customized_grpo.training.engine_limits import Engine, check
from customized_grpo.training.setup import build
from customized_grpo.training.trainer import Trainer, train
from customized_grpo.types import Example
from runs import BALANCED, NFT, RULES, checkpoint_bytes, tiny_recipe

from .test_resume import assert_equal_runs

STALE: dict[str, Any] = {"train__staleness": 1, "train__checkpoint_every": 1, "train__keep_checkpoints": 9}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "grpo": {"objective__clip": 0.1, "train__ratio_guard": 1e-4},
    "grpo, two updates": {
        "objective__clip": 0.1,
        "train__ratio_guard": 1e-4,
        "train__updates_per_rollout": 2,
        "train__old_log_probs": "replay",
    },
    "nft": copy.deepcopy(NFT) | {"train__steps": 4},
    "nft, newest samples": {"objective": {"type": "nft"}},
    "awm": {
        "objective": {"type": "awm", "average": {"limit": 0.9}, "average_kl": 1.0},
        "train__updates_per_rollout": 2,
    },
    "balanced": BALANCED | {"train__steps": 4, "objective__clip": 0.1, "train__ratio_guard": 1e-4},
}


def weights(trainer: Trainer) -> list[torch.Tensor]:
    return [one.detach().clone() for one in trainer.parts.parameters.values()]


def put(trainer: Trainer, values: Sequence[torch.Tensor]) -> None:
    for parameter, value in zip(trainer.parts.parameters.values(), values, strict=True):
        parameter.data.copy_(value)


@pytest.mark.parametrize("name", ["grpo", "grpo, two updates", "nft, newest samples"])
def test_a_step_trains_on_what_the_weights_before_the_last_update_sampled(
    name: str, tiny_world: Path, tmp_path: Path
) -> None:
    """The same run by hand: a second trainer is given the earlier weights, and samples."""
    changes = STALE | OBJECTIVES[name]
    run, other, sampler = (
        Trainer(build(tiny_recipe(tiny_world, tmp_path / one, **changes))) for one in ("run", "other", "sampler")
    )
    earlier = weights(other)

    def by_hand(step: int) -> Any:
        nonlocal earlier
        put(sampler, earlier)
        begun = sampler.begun(step)
        groups = autotune.with_old(sampler.parts, [group for group, _ in begun], sampler.shares())
        earlier = weights(other)
        return groups, [scores for _, scores in begun]

    other.rollouts.of = by_hand  # type: ignore[method-assign]
    first = []
    for step in range(4):
        found = run.step(step)
        first.append(found.get("ratio/max_abs_log_first"))
        other.step(step)
    assert all(torch.equal(a, b) for a, b in zip(weights(run), weights(other), strict=True))
    if name.startswith("grpo"):  # the first step's weights sampled it; later ones are an update further
        assert first[0] == 0
        assert min(first[1:]) > run.recipe.train.ratio_guard  # so no guard is in the way


def test_the_schedule_matters(tiny_world: Path, tmp_path: Path) -> None:
    """The control: with the newest samples other weights come out."""
    ends = []
    for staleness in (0, 1):
        trainer = Trainer(build(tiny_recipe(tiny_world, tmp_path / str(staleness), train__staleness=staleness)))
        for step in range(2):
            trainer.step(step)
        ends.append(weights(trainer))
    assert not all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_resumed_run_samples_by_the_same_weights(name: str, tiny_world: Path, tmp_path: Path) -> None:
    changes = STALE | OBJECTIVES[name]
    whole = train(tiny_recipe(tiny_world, tmp_path / "whole", **changes))
    run = train(tiny_recipe(tiny_world, tmp_path / "run", **(changes | {"train__steps": 2})))
    assert checkpoint_bytes(run, 2)["behind.safetensors"] == checkpoint_bytes(whole, 2)["behind.safetensors"]
    train(tiny_recipe(tiny_world, run, run__resume="latest", **changes))
    assert_equal_runs(run, whole, 4)


STARTED = threading.Semaphore(0)
UPDATED = threading.Event()


@final
class Waiting(AsyncGroupReward):
    """Scores the second step's groups once the first update has been made; else it waits in vain and fails."""

    Config = RewardConfig

    def __init__(self, config: RewardConfig, *, device: torch.device) -> None:
        self.calls = 0

    async def __call__(self, example: Example, images: Sequence[Image]) -> list[float]:
        self.calls += 1
        STARTED.release()
        if self.calls > 2 and not await asyncio.to_thread(UPDATED.wait, 30.0):
            raise TimeoutError("no update was made meanwhile")
        return [float(at) for at in range(len(images))]


def test_the_next_steps_rewards_work_while_the_weights_are_updated(tiny_world: Path, tmp_path: Path) -> None:
    changes = {
        "train__steps": 2,
        "train__staleness": 1,
        "rewards__warm": {"type": f"{__name__}:Waiting", "axis": "identity"},
        "advantage__max_failed_share": 0.0,
    }
    trainer = Trainer(build(tiny_recipe(tiny_world, tmp_path / "run", **changes)))
    update = trainer.update

    def watched(*args: Any, **kwargs: Any) -> dict[str, float]:
        for _ in range(4):  # both groups of both steps
            assert STARTED.acquire(timeout=30.0)
        found = update(*args, **kwargs)
        UPDATED.set()
        return found

    trainer.update = watched  # type: ignore[method-assign]
    trainer.step(0)
    trainer.update = update  # type: ignore[method-assign]
    assert trainer.step(1)["reward/warm/failed_share"] == 0.0
    trainer.parts.scorer.close()


def test_what_can_not_be_stale_is_refused(tiny_world: Path, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"train.staleness: .* use train.staleness=0, or leave them out"):
        tiny_recipe(tiny_world, tmp_path, train__staleness=1, **RULES)
    recipe = tiny_recipe(tiny_world, tmp_path, train__staleness=1, run__precision="bf16")
    with pytest.raises(ValueError, match=r"train.staleness: DeepSpeed keeps the float32 weights to itself"):
        check(Engine.ZERO2, recipe)
    check(Engine.FSDP2, recipe)
