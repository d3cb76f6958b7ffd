"""What an engine of accelerate can't do is refused, and it is told what it has to know. The rest: tests/distributed."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import create_autospec

import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import TensorBoardTracker, WandBTracker
from accelerate.utils import DistributedType, DynamoBackend
from torch import nn

from customized_grpo.policies.base import Policy
from customized_grpo.training.engine import configure, finishing, needs_all_ranks
from runs import tiny_recipe


def accelerator(kind: DistributedType, *, stage: int = 2, is_fsdp2: bool = True) -> Any:
    plugin = SimpleNamespace(zero_stage=stage, deepspeed_config={"bf16": {"enabled": True}})
    dynamo = SimpleNamespace(backend=DynamoBackend.NO)
    made = create_autospec(Accelerator, instance=True)
    made.distributed_type = kind
    made.num_processes = 1 if kind == DistributedType.NO else 2
    made.is_fsdp2 = is_fsdp2
    made.mixed_precision, made.gradient_accumulation_steps = "no", 1
    made.state = SimpleNamespace(deepspeed_plugin=plugin, dynamo_plugin=dynamo)
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


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("ACCELERATE_MIXED_PRECISION", "bf16", r"mixed_precision is bf16 .*run\.precision decides"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", r"gradient_accumulation_steps is 4 .*train\.microbatch"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", r"dynamo_backend is inductor .*policy\.compile"),
    ],
)
def test_accelerates_own_settings_change_nothing(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    """Another project's 'accelerate config' decided beside the script (huggingface/diffusers#1272)."""
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=said):
        configure(Accelerator(cpu=True), recipe())
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("fails", [True, False])
def test_a_tracker_learns_how_a_run_ended(fails: bool) -> None:
    """wandb showed a run that had failed as finished (Lightning-AI/pytorch-lightning#21787)."""
    engine = accelerator(DistributedType.NO)
    wandb, other = create_autospec(WandBTracker, instance=True), create_autospec(TensorBoardTracker, instance=True)
    wandb.name, other.name = "wandb", "tensorboard"
    other.finish.side_effect = OSError("no network")  # hides no error of the run
    engine.trackers = [other, wandb]
    policy = create_autospec(Policy, instance=True)
    policy.transformer = nn.Linear(1, 1)
    with pytest.raises(KeyError) if fails else nullcontext(), finishing(engine, policy):
        if fails:
            raise KeyError("a reward")
    if fails:
        wandb.tracker.finish.assert_called_once_with(exit_code=1)
        other.finish.assert_called_once_with()
    else:
        engine.end_training.assert_called_once_with()
