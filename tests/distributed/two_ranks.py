"""One rank of two: ``two_ranks.py WORLD OUT``, with the variables that torchrun and accelerate set.

Writes what it has trained to ``OUT/rank-<r>.safetensors``, and to ``OUT/alone-<r>.safetensors`` what comes out where
gradients are not exchanged.
"""

import sys
from pathlib import Path

import torch

from customized_grpo.training.checkpoint import write_tensors
from customized_grpo.training.setup import build
from customized_grpo.training.trainer import Trainer
from runs import tiny_recipe

# "auto", as users launch it: accelerate joins processes without a GPU only if it is told to use the CPU.
CHANGES = {
    "run__device": "auto",
    "train__steps": 3,
    "train__save_samples_every": 2,
    "train__checkpoint_every": 1,
}


def main(world: Path, out: Path) -> None:
    torch.set_num_threads(1)
    alone = Trainer(build(tiny_recipe(world, out / "alone", **CHANGES)))
    rank = alone.parts.accelerator.process_index
    assert alone.parts.accelerator.num_processes == 2
    alone.parts.policy.transformer = alone.parts.accelerator.unwrap_model(alone.parts.policy.transformer)
    for step in range(3):
        alone.step(step)
    write_tensors(out / f"alone-{rank}.safetensors", alone.parts.parameters)

    trainer = Trainer(build(tiny_recipe(world, out / "run", **CHANGES)))
    trainer.run()
    write_tensors(out / f"rank-{rank}.safetensors", trainer.parts.parameters)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
