"""A tiny world and one finished run of ten steps on it, which most of these tests look at."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from customized_grpo.policies.adapters.lora import adapter_state
from customized_grpo.training.setup import build
from customized_grpo.training.trainer import Trainer
from frozen_weights import frozen_hash
from runs import make_tiny_world, tiny_recipe, with_evaluation


@dataclass(frozen=True, slots=True)
class Finished:
    """A trainer after its run."""

    trainer: Trainer
    folder: Path
    frozen: str
    """Hash of the frozen weights before the run."""
    start: dict[str, Any]
    """The adapter before the run."""


def ten_steps(world: Path) -> dict[str, Any]:
    """What ``finished`` ran."""
    return {
        "train__steps": 10,
        "train__checkpoint_every": 5,
        "train__save_samples_every": 4,
        **with_evaluation(world, 5),
    }


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def ten(tiny_world: Path) -> dict[str, Any]:
    return ten_steps(tiny_world)


@pytest.fixture(scope="session")
def finished(tiny_world: Path, ten: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    folder = tmp_path_factory.mktemp("runs") / "ten"
    trainer = Trainer(build(tiny_recipe(tiny_world, folder, **ten)))
    transformer = trainer.parts.policy.transformer
    frozen, start = frozen_hash(transformer), adapter_state(transformer)
    trainer.run()
    yield Finished(trainer, folder, frozen, start)
    assert frozen_hash(transformer) == frozen, "a test moved frozen weights"
