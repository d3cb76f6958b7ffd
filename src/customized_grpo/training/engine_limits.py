"""Limits of the engines, by the recipe and the engine alone: before a model is loaded, and in ``validate``.

``docs/how-to/multi-gpu.md`` has the table engine x option: what is run on two processes by the tests, and what is
refused here.
"""

from collections.abc import Mapping
from enum import Enum
from pathlib import Path

import torch
from torch import nn

from customized_grpo.policies.acceleration import Quantization
from customized_grpo.recipe.config import Recipe
from customized_grpo.recipe.yaml_source import read_yaml
from customized_grpo.sampling.schedule import plan_of


class Engine(Enum):
    """Form in which several processes share a training."""

    DDP = "DDP"
    """Also a single process."""
    FSDP1 = "FSDP of version 1"
    FSDP2 = "FSDP2"
    ZERO2 = "ZeRO-2"
    """Also what cuts less."""
    ZERO3 = "ZeRO-3"

    @property
    def is_deepspeed(self) -> bool:
        """True if DeepSpeed keeps gradients, optimizer and float32 weights."""
        return self in (Engine.ZERO2, Engine.ZERO3)

    @property
    def cuts_weights(self) -> bool:
        """True if every forward gathers a block's weights from all processes."""
        return self in (Engine.FSDP1, Engine.FSDP2, Engine.ZERO3)


def engine_of(distributed_type: str, *, fsdp_version: int = 1, zero_stage: int = 2) -> Engine:
    """The engine by the value of accelerate's ``DistributedType``, as its configurations write it."""
    if distributed_type == "FSDP":
        return Engine.FSDP2 if fsdp_version == 2 else Engine.FSDP1
    if distributed_type == "DEEPSPEED":
        return Engine.ZERO3 if zero_stage == 3 else Engine.ZERO2
    return Engine.DDP


def launched_engine(variables: Mapping[str, str]) -> Engine | None:
    """The engine that ``accelerate launch`` has told its processes, or that ``scripts/`` will ask for; None: none.

    Args:
        variables: of the environment.

    Raises:
        RecipeError: the file that ``ACCELERATE_CONFIG`` names can't be read.
    """
    if variables.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        return engine_of("FSDP", fsdp_version=int(variables.get("FSDP_VERSION", "1")))
    if variables.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        return engine_of("DEEPSPEED", zero_stage=int(variables.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")))
    if not (named := variables.get("ACCELERATE_CONFIG")):
        return None
    given = read_yaml(Path(named))[0]
    fsdp, zero = given.get("fsdp_config") or {}, given.get("deepspeed_config") or {}
    return engine_of(
        str(given.get("distributed_type")),
        fsdp_version=int(fsdp.get("fsdp_version", 1)),
        zero_stage=int(zero.get("zero_stage", 2)),
    )


def check(engine: Engine, recipe: Recipe) -> None:
    """Refuse what the engine can't do.

    Raises:
        ValueError: the key that asks for it, the reason, and what to use instead.
    """
    if engine == Engine.FSDP1:
        raise ValueError("FSDP of version 1 is not supported; use fsdp_version: 2 (config/accelerate/fsdp2.yaml)")
    if recipe.sampling.batch == "auto" and engine.cuts_weights:
        raise ValueError(
            "sampling.batch: auto tries forwards until one fits, and where weights are cut over processes one that "
            "doesn't fit leaves the others waiting; give a number, or null for the whole group"
        )
    if engine.cuts_weights and recipe.sampling.batch_decides:
        raise ValueError(
            "sampling.cache.type: first_block skips blocks by what each process samples, and where weights are cut "
            "over processes all need the same blocks at once; use taylorseer there, or DDP (config/accelerate/ddp.yaml)"
        )
    if engine.cuts_weights and recipe.sampling.float8:
        raise ValueError(
            "sampling.float8: it keeps the base's weights a second time, whole, and this engine cuts them over the "
            "processes; leave it out, or use DDP (config/accelerate/ddp.yaml)"
        )
    if engine.cuts_weights:
        _check_equal_forwards(recipe)
    if recipe.train.optimizer == "adamw_8bit" and engine != Engine.DDP:
        raise ValueError(
            "train.optimizer: bitsandbytes' adamw_8bit updates and saves whole weights, and FSDP2 and DeepSpeed cut "
            "them over the processes; use train.optimizer=adamw, whose moments they cut too, or DDP "
            "(config/accelerate/ddp.yaml)"
        )
    _check_bits(engine, recipe.policy.quantization)
    if engine.is_deepspeed:
        _check_deepspeed(recipe)


def check_weights(engine: Engine, transformer: nn.Module) -> None:
    """Refuse a model whose own files are quantised as ``check`` refuses ``policy.quantization``.

    Raises:
        ValueError: see ``check``.
    """
    integers = {one.dtype for one in transformer.parameters() if not one.is_floating_point()}
    if integers:
        _check_bits(engine, "8bit" if torch.int8 in integers else "4bit")


def _check_bits(engine: Engine, quantization: Quantization) -> None:
    # accelerate leaves 4-bit weights whole under FSDP2; of 8-bit ones the scales are lost with bitsandbytes' parameter.
    if engine.cuts_weights and (quantization == "8bit" or (quantization == "4bit" and engine == Engine.ZERO3)):
        raise ValueError(
            f"policy.quantization: {quantization} weights lose their scales where they are cut over the processes, as "
            "by FSDP2 and ZeRO-3; use policy.quantization=none there (4bit under FSDP2, which leaves it whole), or DDP "
            "(config/accelerate/ddp.yaml)"
        )


def _check_equal_forwards(recipe: Recipe) -> None:
    """Raise if the plan gives the groups of a step different forwards, of which each gathers weights from all ranks."""
    if recipe.sampling.plan is None:
        return  # a solver's forwards are the same for all
    plan, steps, seed = plan_of(recipe.sampling.plan), recipe.sampling.steps, recipe.run.seed
    for step in range(min(recipe.train.steps, 100)):
        plans = [plan.steps(step, steps, seed, group) for group in range(recipe.train.groups_per_step)]
        # Before the first noise a group that shares it is one sample, from there on it is all of them.
        if len({(one.stochastic[0] * recipe.sampling.shared_noise, one.num_forwards(0, steps)) for one in plans}) > 1:
            raise ValueError(
                "sampling.plan: it gives the groups of a step different numbers of forwards, and where weights are cut "
                "over processes every forward needs all of them; use {type: window, width: 1, mode: random, every: 1}, "
                "which draws one step for all groups, or a branch at a fixed step, or DDP"
            )


def _check_deepspeed(recipe: Recipe) -> None:
    if recipe.run.precision != "bf16":
        raise ValueError(
            f"run.precision: given {recipe.run.precision!r}; DeepSpeed looks for gradients that are not finite in bf16 "
            "only: use run.precision=bf16, or DDP or FSDP2 (config/accelerate/)"
        )
    if recipe.policy.full is not None:
        raise ValueError(
            "policy.full: its checkpoints are not read out of DeepSpeed; use DDP or FSDP2 (config/accelerate/), or "
            "policy.lora"
        )
    if recipe.objective.keeps_average:
        raise ValueError(
            "objective: DeepSpeed keeps the float32 weights to itself, so no policy can lag behind them; leave "
            "objective.old or objective.average out, or use FSDP2 (config/accelerate/fsdp2.yaml)"
        )
    if recipe.train.staleness:
        raise ValueError(
            "train.staleness: DeepSpeed keeps the float32 weights to itself, so those that sampled can't be kept; use "
            "train.staleness=0, or FSDP2 (config/accelerate/fsdp2.yaml)"
        )
    if recipe.train.ema is not None:
        raise ValueError(
            "train.ema: DeepSpeed keeps the float32 weights to itself, so they can't be averaged; use train.ema=null, "
            "or FSDP2 (config/accelerate/fsdp2.yaml)"
        )
