"""Two ranks that train all of a transformer's weights: ``full_ranks.py WORLD OUT``, under DDP and then FSDP2.

Each writes the weights that it ends with, whole, to ``OUT/<engine>-<rank>.safetensors``.
"""

import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

from customized_grpo.policies.adapters.sharding import whole
from customized_grpo.policies.adapters.tensor_files import write_tensors
from customized_grpo.training import setup
from customized_grpo.training.trainer import Trainer
from forked import two_ranks
from runs import FULL, tiny_recipe

_REAL = setup.Accelerator


def main(world: Path, out: Path) -> None:
    torch.set_num_threads(1)
    train(world, out, "ddp")
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        reshard_after_forward=False,  # harder than the shipped configuration: stale whole weights would be used
        cpu_ram_efficient_loading=False,
    )

    def sharded(**given: Any) -> Any:
        """FSDP2 on gloo: accelerate turns it on for accelerators only, so it is told here."""
        accelerator = _REAL(fsdp_plugin=plugin, **given)
        AcceleratorState._shared_state["fsdp_plugin"] = plugin
        for state in (AcceleratorState, PartialState):
            state._shared_state["distributed_type"] = DistributedType.FSDP
        return accelerator

    with mock.patch.object(setup, "Accelerator", sharded):
        accelerator = train(world, out, "fsdp").parts.accelerator
        if accelerator.is_main_process:
            shutil.copytree(out / "fsdp", out / "again")
            shutil.rmtree(out / "again" / "checkpoints" / "step-000004")
        accelerator.wait_for_everyone()
        trainer = train(world, out, "again", run__resume="latest")
    base = trainer.parts.policy.base_weights
    assert base is not None
    assert sum(one.to_local().numel() for one in base.values()) < 0.6 * sum(one.numel() for one in base.values())


def train(world: Path, out: Path, name: str, **more: Any) -> Trainer:
    trainer = Trainer(setup.build(tiny_recipe(world, out / name, **(FULL | {"run__device": "auto"} | more))))
    assert trainer.parts.accelerator.num_processes == 2
    trainer.run()
    weights = {key: whole(one.detach()) for key, one in trainer.parts.parameters.items()}
    rank = trainer.parts.accelerator.process_index
    write_tensors(out / f"{name}-{rank}.safetensors", weights)
    return trainer


if __name__ == "__main__":
    with mock.patch("accelerate.Accelerator.end_training", return_value=None):  # there are several runs
        two_ranks(Path(sys.argv[2]), partial(main, Path(sys.argv[1]), Path(sys.argv[2])))
