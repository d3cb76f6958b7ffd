"""Data parallelism and FSDP2 of one gloo process, for tests of what the wrapper does to a policy."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from customized_grpo.policies.base import Policy
from customized_grpo.policies.checkpointing import repeated_blocks


@contextmanager
def data_parallel(policy: Policy, folder: Path) -> Iterator[None]:
    """Inside, the policy's transformer is wrapped."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
    module = policy.transformer
    policy.transformer = DistributedDataParallel(module)
    try:
        yield
    finally:
        # The wrapper goes before the group: a group that dies with it would join its threads while it holds Python's
        # lock, for which these threads may wait.
        policy.transformer = module
        gc.collect()
        torch.distributed.destroy_process_group()


@contextmanager
def fully_sharded(policy: Policy, folder: Path) -> Iterator[None]:
    """Inside, the policy's transformer is sharded, each block for itself; it stays so, and is of no use afterwards."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
    try:
        mesh = torch.distributed.init_device_mesh("cpu", (1,))
        for _, block in repeated_blocks(policy.transformer):
            fully_shard(block, mesh=mesh)
        fully_shard(policy.transformer, mesh=mesh)
        yield
    finally:
        torch.distributed.destroy_process_group()
