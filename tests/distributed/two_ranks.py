"""One rank of two: ``two_ranks.py WORLD OUT ddp|fsdp``, with the variables that torchrun and accelerate set.

``ddp`` writes what it has trained to ``OUT/rank-<r>.safetensors``; to ``OUT/alone-<r>.safetensors`` what comes out
where gradients are not exchanged; to ``resumed-<r>`` what one process's checkpoint leads to; and to
``OUT/said-<r>.json`` the message of each fault. ``fsdp`` writes the runs under FSDP2 to ``fsdp`` and ``fsdp-again``.
"""

import errno
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

from customized_grpo.training import checkpoint, engine, setup
from customized_grpo.training import trainer as module
from customized_grpo.training.checkpoint import write_tensors
from customized_grpo.training.state import save
from customized_grpo.training.trainer import Trainer
from runs import SIGNAL_AT, tiny_recipe, with_evaluation

STEPS = 5
# "auto", as users launch it: accelerate joins processes without a GPU only if it is told to use the CPU.
CHANGES = {
    "run__device": "auto",
    "train__steps": STEPS,
    "train__save_samples_every": 2,
    "train__checkpoint_every": 1,
    "train__keep_checkpoints": STEPS,
}


def main(world: Path, out: Path, engine: str) -> None:
    torch.set_num_threads(1)

    def trainer_of(name: str, **changes: Any) -> Trainer:
        return Trainer(setup.build(tiny_recipe(world, out / name, **(CHANGES | changes))))

    if engine == "fsdp":
        fully_sharded(out, world, trainer_of)
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
    trainer.run()
    write_tensors(out / f"rank-{rank}.safetensors", trainer.parts.parameters)

    resumed = trainer_of("from-one", run__resume="latest")
    resumed.run()
    write_tensors(out / f"resumed-{rank}.safetensors", resumed.parts.parameters)

    said = faults(rank, trainer_of)
    (out / f"said-{rank}.json").write_text(json.dumps(said))


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
    with mock.patch.object(checkpoint, "write_tensors", side_effect=full):  # rank 0 alone writes
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
    """FSDP2 on gloo, as the GPUs would have it.

    accelerate turns FSDP on for accelerators only, so it is told here; all that it then does is its own.
    """
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        reshard_after_forward=True,
        cpu_ram_efficient_loading=False,
    )
    real = setup.Accelerator

    def sharded(**given: Any) -> Any:
        accelerator = real(fsdp_plugin=plugin, **given)
        AcceleratorState._shared_state["fsdp_plugin"] = plugin
        for state in (AcceleratorState, PartialState):
            state._shared_state["distributed_type"] = DistributedType.FSDP
        return accelerator

    # two examples for one rank, one for the other
    three = with_evaluation(world, 4) | {"evaluate__limit": 3, "evaluate__batch": 1}
    with mock.patch.object(setup, "Accelerator", sharded):
        trainer = trainer_of("fsdp", train__ema=0.5, **three)
        parameters, accelerator = trainer.parts.parameters, trainer.parts.accelerator
        assert engine.needs_all_ranks(accelerator, trainer.parts.policy.transformer)
        trainer.run()
        local = sum(one.to_local().numel() for one in parameters.values())
        assert local < 0.6 * sum(one.numel() for one in parameters.values())
        if accelerator.is_main_process:
            shutil.copytree(out / "fsdp", out / "fsdp-again")
            shutil.rmtree(out / "fsdp-again" / "checkpoints" / f"step-{STEPS:06d}")
        accelerator.wait_for_everyone()
        again = trainer_of("fsdp-again", train__ema=0.5, run__resume="latest", **three)
        again.run()


if __name__ == "__main__":
    # the end of a run leaves the group of processes, and there are several runs
    with mock.patch("accelerate.Accelerator.end_training", return_value=None):
        main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
