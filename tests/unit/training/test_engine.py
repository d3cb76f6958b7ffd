"""What an engine of accelerate can't do is refused, and it is told what it has to know. The rest: tests/distributed."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import create_autospec

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import TensorBoardTracker, WandBTracker
from accelerate.utils import DistributedType, DynamoBackend
from torch import nn
from typer.testing import CliRunner

from customized_grpo.commands.app import app
from customized_grpo.policies.base import Policy
from customized_grpo.training.engine import configure, finishing, needs_all_ranks
from customized_grpo.training.engine_limits import Engine, check, check_weights, launched_engine
from runs import tiny_recipe

CONFIGS = Path(__file__).parents[3] / "config" / "accelerate"
SHIPPED = {"ddp": Engine.DDP, "fsdp2": Engine.FSDP2, "zero2": Engine.ZERO2, "zero3": Engine.ZERO3}
CUT = (Engine.FSDP2, Engine.ZERO2, Engine.ZERO3)


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


MOMENTS = {"train__optimizer": "adamw_8bit"}
BITS = r"policy\.quantization: .bit weights lose their scales .* use policy\.quantization=none .*, or DDP"


@pytest.mark.parametrize(
    ("engine", "changes", "message"),
    [
        *((engine, MOMENTS, r"train\.optimizer: .*adamw_8bit .* use train\.optimizer=adamw") for engine in CUT),
        (Engine.FSDP2, {"policy__quantization": "8bit"}, BITS),
        (Engine.ZERO3, {"policy__quantization": "8bit"}, BITS),
        (Engine.ZERO3, {"policy__quantization": "4bit"}, BITS),
    ],
)
def test_bits_of_weights_and_moments_are_refused_where_they_are_cut(
    engine: Engine, changes: dict[str, Any], message: str
) -> None:
    """They died in the first rollout (no attribute 'CB'), at the first update, or at the first checkpoint."""
    with pytest.raises(ValueError, match=message):
        check(engine, recipe(run__precision="bf16", **changes))
    check(Engine.DDP, recipe(run__precision="bf16", **changes))


def test_a_model_whose_files_are_quantised_is_refused_like_the_key() -> None:
    layer = nn.Linear(2, 2)
    for engine in Engine:
        check_weights(engine, layer)
    layer.weight = nn.Parameter(torch.zeros(2, 2, dtype=torch.int8), requires_grad=False)
    check_weights(Engine.DDP, layer)
    for engine in (Engine.FSDP2, Engine.ZERO3):
        with pytest.raises(ValueError, match=BITS):
            check_weights(engine, layer)
    layer.weight = nn.Parameter(torch.zeros(2, dtype=torch.uint8), requires_grad=False)  # two of 4 bits each
    check_weights(Engine.FSDP2, layer)
    with pytest.raises(ValueError, match=BITS):
        check_weights(Engine.ZERO3, layer)


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({}, None),
        ({"WORLD_SIZE": "2"}, None),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, Engine.FSDP2),
        ({"ACCELERATE_USE_FSDP": "true"}, Engine.FSDP1),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, Engine.ZERO3),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, Engine.ZERO2),
        *(({"ACCELERATE_CONFIG": str(CONFIGS / f"{name}.yaml")}, engine) for name, engine in SHIPPED.items()),
    ],
)
def test_the_environment_says_the_engine(variables: dict[str, str], found: Engine | None) -> None:
    assert launched_engine(variables) == found


def test_validate_refuses_what_the_engine_cant_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_CONFIG", str(CONFIGS / "fsdp2.yaml"))
    runner = CliRunner()
    said = runner.invoke(app, ["validate", "mini_customized"])
    assert said.exit_code == 0, said.output
    assert "engine: FSDP2" in said.output
    refused = runner.invoke(app, ["validate", "mini_customized", "sampling.batch=auto"])
    assert refused.exit_code == 2
    assert "sampling.batch: auto tries forwards until one fits" in " ".join(refused.output.split())


def test_memory_advice_names_nothing_that_the_engine_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kontext on 48 GB is advised 8-bit moments, which FSDP2 can't cut."""
    runner, given = CliRunner(), ["validate", "kontext_customized_grpo", "--memory-gb", "48"]
    monkeypatch.delenv("ACCELERATE_CONFIG", raising=False)
    assert "train.optimizer=adamw_8bit" in runner.invoke(app, given).output
    monkeypatch.setenv("ACCELERATE_CONFIG", str(CONFIGS / "fsdp2.yaml"))
    said = runner.invoke(app, given).output
    assert "does not fit a device" in " ".join(said.split())
    assert "8bit" not in said


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
    with pytest.raises(KeyError) if fails else nullcontext(), finishing(engine, [policy]):
        if fails:
            raise KeyError("a reward")
    if fails:
        wandb.tracker.finish.assert_called_once_with(exit_code=1)
        other.finish.assert_called_once_with()
    else:
        engine.end_training.assert_called_once_with()
