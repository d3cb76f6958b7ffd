"""Two ranks: ``two_ranks.py WORLD OUT ENGINE...``, forked with the variables that torchrun and accelerate set.

``ddp`` writes what it has trained to ``OUT/rank-<r>.safetensors``; to ``OUT/alone-<r>.safetensors`` what comes out
where gradients are not exchanged; to ``resumed-<r>`` what one process's checkpoint leads to; and to
``OUT/said-<r>.json`` the message of each fault. ``fsdp`` writes the runs under FSDP2 to ``fsdp`` and ``fsdp-again``;
``zero2`` and ``zero3`` likewise under DeepSpeed.
"""

import copy
import errno
import json
import os
import shutil
import sys
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from accelerate import DeepSpeedPlugin, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch.nn.parallel import DistributedDataParallel

from customized_grpo.objectives import grpo as module
from customized_grpo.policies.adapters.tensor_files import write_tensors
from customized_grpo.training import engine, setup
from customized_grpo.training import state as saving
from customized_grpo.training.state import save
from customized_grpo.training.trainer import Trainer
from forked import two_ranks
from runs import (
    BALANCED,
    BUCKETS,
    NFT,
    RULES,
    SIGNAL_AT,
    SLOW,
    STALE,
    TAUGHT,
    taught_recipe,
    tiny_recipe,
    with_evaluation,
)

STEPS = 5
# "auto", as users launch it: accelerate joins processes without a GPU only if it is told to use the CPU.
CHANGES = {
    "run__device": "auto",
    "train__steps": STEPS,
    "train__save_samples_every": 2,
    "samples__every": 2,
    "train__checkpoint_every": 1,
    "train__keep_checkpoints": STEPS,
}


def main(world: Path, out: Path, engine: str) -> None:
    torch.set_num_threads(1)

    def trainer_of(name: str, **changes: Any) -> Trainer:
        return Trainer(setup.build(tiny_recipe(world, out / name, **(CHANGES | changes))))

    if engine == "fsdp":
        fully_sharded(out, world, trainer_of)
    elif engine.startswith("zero"):
        zero(engine, out, trainer_of)
    else:
        data_parallel(out, trainer_of)


def data_parallel(out: Path, trainer_of: Callable[..., Trainer]) -> None:
    """DDP on gloo."""
    alone = trainer_of("alone")
    rank = alone.parts.accelerator.process_index
    assert alone.parts.accelerator.num_processes == 2
    alone.parts.policy.transformer = alone.parts.accelerator.unwrap_model(alone.parts.policy.transformer)
    for step in range(STEPS):
        alone.step(step)
    write_tensors(out / f"alone-{rank}.safetensors", alone.parts.parameters)

    trainer = trainer_of("run")
    wrapper = weakref.ref(trainer.parts.policy.transformer)
    assert isinstance(wrapper(), DistributedDataParallel)
    trainer.run()
    assert wrapper() is None, "it must go before the group of processes does, see engine.finish"
    write_tensors(out / f"rank-{rank}.safetensors", trainer.parts.parameters)

    trainer_of("nft", **NFT).run()
    trainer_of("rules", **RULES).run()
    trainer_of("balanced", **BALANCED).run()
    trainer_of("stale", **STALE).run()
    buckets = trainer_of("buckets", data__path=str(out / "taught" / "train.jsonl"), **BUCKETS)
    wrapper = weakref.ref(buckets.parts.policy.transformer)
    buckets.run()
    assert wrapper() is None, "a view of another size holds it"
    supervised(out, "")

    resumed = trainer_of("from-one", run__resume="latest")
    resumed.run()
    write_tensors(out / f"resumed-{rank}.safetensors", resumed.parts.parameters)

    said = faults(rank, trainer_of)
    (out / f"said-{rank}.json").write_text(json.dumps(said))


def supervised(out: Path, prefix: str) -> None:
    """A run of each supervised objective, on the pictures in ``out/taught``."""
    for kind, changes in TAUGHT.items():
        given = CHANGES | copy.deepcopy(changes)
        Trainer(setup.build(taught_recipe(out / "taught", out / f"{prefix}{kind}", kind, **given))).run()


def faults(rank: int, trainer_of: Callable[..., Trainer]) -> dict[str, str]:
    """What happens to one rank, and what both say."""
    said = {}
    bad = trainer_of("bad")
    before = {name: one.detach().clone() for name, one in bad.parts.parameters.items()}
    real = module.clipped_surrogate
    infinite = mock.patch.object(module, "clipped_surrogate", lambda *a, **k: real(*a, **k) * float("inf"))
    with infinite if rank == 1 else mock.patch.object(module, "clipped_surrogate", real):
        said["not finite"] = failure(lambda: bad.step(0))
    assert all(torch.equal(before[name], one) for name, one in bad.parts.parameters.items())

    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with mock.patch.object(saving, "write_tensors", side_effect=full):  # rank 0 alone writes
        said["disk full"] = failure(lambda: save(bad.parts, 1))
    missing = "nowhere" if rank == 1 else "flux"
    world = Path(str(bad.recipe.policy.model)).parent
    said["loading"] = failure(lambda: trainer_of("loading", policy__model=str(world / missing)))

    differ = trainer_of("differ")
    step = Trainer.step

    def drifted(self: Trainer, number: int) -> dict[str, float]:
        metrics = step(self, number)
        if rank == 1:
            next(iter(self.parts.parameters.values())).data[0, 0] += 1e-6
        return metrics

    with mock.patch.object(Trainer, "step", drifted):
        said["differ"] = failure(differ.run)

    with mock.patch.dict(os.environ, {SIGNAL_AT: "15:1"} if rank == 1 else {}):
        trainer_of("signal").run()
    return said


def failure(what: Callable[[], object]) -> str:
    """The kind and message of the error that something ends with."""
    try:
        what()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def fully_sharded(out: Path, world: Path, trainer_of: Callable[..., Trainer]) -> None:
    """FSDP2 on gloo, as the GPUs would have it."""
    fsdp2()
    # two examples for one rank, one for the other
    three = with_evaluation(world, 4) | {"evaluate__limit": 3, "evaluate__batch": 1}
    trainer = trainer_of("fsdp", train__ema=0.5, **three)
    parameters = trainer.parts.parameters
    assert engine.needs_all_ranks(trainer.parts.accelerator, trainer.parts.policy.transformer)
    trainer.run()
    local = sum(one.to_local().numel() for one in parameters.values())
    assert local < 0.6 * sum(one.numel() for one in parameters.values())
    trainer_of("fsdp-nft", **NFT).run()
    trainer_of("fsdp-rules", **RULES).run()
    trainer_of("fsdp-balanced", **BALANCED).run()
    trainer_of("fsdp-stale", **STALE).run()
    trainer_of("fsdp-buckets", data__path=str(out / "taught" / "train.jsonl"), **BUCKETS).run()
    supervised(out, "fsdp-")
    without_the_last_step(trainer, out / "fsdp-again")
    trainer_of("fsdp-again", train__ema=0.5, run__resume="latest", **three).run()


def fsdp2() -> None:
    """Turn FSDP2 on for all accelerators of this process."""
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        reshard_after_forward=True,
        cpu_ram_efficient_loading=False,
    )
    setup.Accelerator(cpu=True, fsdp_plugin=plugin)
    tell(DistributedType.FSDP, fsdp_plugin=plugin)


def zero(name: str, out: Path, trainer_of: Callable[..., Trainer]) -> None:
    """DeepSpeed's ZeRO on gloo; its gradients are in bf16."""
    import deepspeed

    plugin = DeepSpeedPlugin(zero_stage=int(name.removeprefix("zero")), zero3_init_flag=False)
    plugin.set_mixed_precision("bf16")
    setup.Accelerator(cpu=True, mixed_precision="bf16", deepspeed_plugin=plugin)
    tell(DistributedType.DEEPSPEED, deepspeed_plugins=plugin)
    plugin.select(_from_accelerator_state=True)
    deepspeed.init_distributed(dist_backend="gloo")
    trainer = trainer_of(name, run__precision="bf16")
    parts = trainer.parts
    assert engine.needs_all_ranks(parts.accelerator, parts.policy.transformer) == (name == "zero3")
    trainer.run()
    without_the_last_step(trainer, out / f"{name}-again")
    trainer_of(f"{name}-again", run__precision="bf16", run__resume="latest").run()


def tell(kind: DistributedType, **plugin: Any) -> None:
    """accelerate turns FSDP and DeepSpeed on for GPUs only, so it is told here; all that it then does is its own."""
    AcceleratorState._shared_state.update(plugin)
    for state in (AcceleratorState, PartialState):
        state._shared_state["distributed_type"] = kind


def without_the_last_step(trainer: Trainer, into: Path) -> None:
    """A copy of a run from before its last step."""
    if trainer.parts.accelerator.is_main_process:
        shutil.copytree(trainer.parts.folder, into)
        shutil.rmtree(into / "checkpoints" / f"step-{STEPS:06d}")
    trainer.parts.accelerator.wait_for_everyone()


if __name__ == "__main__":
    # the end of a run leaves the group of processes, and there are several runs
    with mock.patch("accelerate.Accelerator.end_training", return_value=None):
        for name in sys.argv[3:]:
            # a slow reward on one rank: the other waits, and nothing else changes
            two_ranks(Path(sys.argv[2]), partial(main, Path(sys.argv[1]), Path(sys.argv[2]), name), {SLOW: "0.3"})
