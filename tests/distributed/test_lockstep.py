"""Ranks with different numbers of velocities, each of as many forwards as guidance takes, meet in every forward."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from customized_grpo.training.distributed import Lockstep, any_rank
from forked import two_ranks


@pytest.mark.parametrize("forwards", [1, 2, 3])
def test_an_idle_rank_answers_every_forward_of_the_others(tmp_path: Path, forwards: int) -> None:
    def of_rank() -> None:
        torch.set_num_threads(1)
        AcceleratorState._reset_state(reset_partial_state=True)  # of a test before, in the process that was forked
        accelerator = Accelerator(cpu=True)

        class Gathers(nn.Module):
            """Like FSDP2's blocks: a forward ends when all ranks are in one."""

            count = 0

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                self.count += 1
                any_rank(accelerator, True)
                return x

        model = Gathers()

        def velocity() -> None:
            for _ in range(forwards):
                model(torch.zeros(1))

        lockstep = Lockstep(accelerator, model)
        for _ in range(3 if accelerator.process_index else 1):
            velocity()
        lockstep.finish(velocity)
        assert model.count == 3 * forwards
        assert not any_rank(accelerator, False)

    two_ranks(tmp_path, of_rank)
