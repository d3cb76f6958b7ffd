"""What an engine of accelerate can't do is refused, and it is told what it has to know. The rest: tests/distributed."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import create_autospec

import pytest
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn

from customized_grpo.training.engine import configure, needs_all_ranks
from runs import tiny_recipe


def accelerator(kind: DistributedType, *, stage: int = 2, is_fsdp2: bool = True) -> Any:
    plugin = SimpleNamespace(zero_stage=stage, deepspeed_config={"bf16": {"enabled": True}})
    made = create_autospec(Accelerator, instance=True)
    made.distributed_type = kind
    made.num_processes = 1 if kind == DistributedType.NO else 2
    made.is_fsdp2 = is_fsdp2
    made.state = SimpleNamespace(deepspeed_plugin=plugin)
    return made


def recipe(**changes: Any) -> Any:
    return tiny_recipe(Path("world"), Path("run"), **changes)


@pytest.mark.parametrize(
    ("kind", "stage", "plain", "with_buffers"),
    [
        (DistributedType.NO, 0, False, False),
        (DistributedType.MULTI_GPU, 0, False, True),
        (DistributedType.FSDP, 0, True, True),
        (DistributedType.DEEPSPEED, 2, False, False),
        (DistributedType.DEEPSPEED, 3, True, True),
    ],
)
def test_which_forwards_take_all_ranks(kind: DistributedType, stage: int, plain: bool, with_buffers: bool) -> None:
    engine = accelerator(kind, stage=stage)
    assert needs_all_ranks(engine, nn.Linear(2, 2)) is plain
    assert needs_all_ranks(engine, nn.BatchNorm1d(2)) is with_buffers


@pytest.mark.parametrize("kind", [DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.FSDP])
def test_most_engines_take_every_recipe(kind: DistributedType) -> None:
    configure(accelerator(kind), recipe(train__ema=0.5))


def test_the_first_fsdp_is_refused() -> None:
    with pytest.raises(ValueError, match="fsdp_version: 2"):
        configure(accelerator(DistributedType.FSDP, is_fsdp2=False), recipe())


@pytest.mark.parametrize(("kind", "stage"), [(DistributedType.FSDP, 0), (DistributedType.DEEPSPEED, 3)])
def test_no_forward_is_tried_that_needs_all_ranks(kind: DistributedType, stage: int) -> None:
    """One that doesn't fit would leave the others waiting."""
    with pytest.raises(ValueError, match=r"sampling\.batch: auto .* give a number, or null"):
        configure(accelerator(kind, stage=stage), recipe(sampling__batch="auto"))
    configure(accelerator(DistributedType.MULTI_GPU), recipe(sampling__batch="auto"))


@pytest.mark.parametrize(("kind", "stage"), [(DistributedType.FSDP, 0), (DistributedType.DEEPSPEED, 3)])
def test_a_plan_of_different_forwards_is_refused_where_each_needs_all_ranks(kind: DistributedType, stage: int) -> None:
    def with_plan(**plan: Any) -> Any:
        return recipe(run__precision="bf16", sampling__steps=8, sampling__plan=plan, train__groups_per_step=4)

    cut = accelerator(kind, stage=stage)
    with pytest.raises(ValueError, match=r"sampling\.plan: .* different numbers of forwards"):
        configure(cut, with_plan(type="branch"))
    configure(accelerator(DistributedType.MULTI_GPU), with_plan(type="branch"))
    for plan in ({"type": "branch", "at": 2}, {"type": "window", "width": 1, "mode": "random", "every": 1}):
        configure(cut, with_plan(**plan))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, r"run\.precision: given 'no'.*run\.precision=bf16"),
        ({"run__precision": "bf16", "train__ema": 0.5}, r"train\.ema.*fsdp2\.yaml"),
        (
            {"run__precision": "bf16", "policy__lora": None, "policy__full": {}},
            r"policy\.full: its checkpoints are not read out of DeepSpeed; use DDP or FSDP2",
        ),
    ],
)
def test_deepspeed_is_refused_what_it_cant_do(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        configure(accelerator(DistributedType.DEEPSPEED), recipe(**changes))


def test_deepspeed_clips_as_the_recipe_says_and_divides_nothing() -> None:
    engine = accelerator(DistributedType.DEEPSPEED)
    configure(engine, recipe(run__precision="bf16", train__max_grad_norm=0.3))
    config = engine.state.deepspeed_plugin.deepspeed_config
    assert config["gradient_clipping"] == 0.3
    assert config["gradient_accumulation_steps"] == 1
    assert config["bf16"] == {"enabled": True}
