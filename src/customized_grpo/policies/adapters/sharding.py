"""Unwrapping a transformer prepared for several processes, and gathering FSDP2's shards."""

from typing import Any

from torch import Tensor, nn

from customized_grpo.policies.base import Policy


def base_transformer(policy: Policy) -> Any:
    """The diffusers model itself, out of whatever DDP or compile wrapper the trainer has put around it."""
    from accelerate.utils import extract_model_from_parallel

    return extract_model_from_parallel(policy.transformer)


def whole(tensor: Tensor) -> Tensor:
    """Gather a tensor sharded over the ranks, a collective call; any other tensor is returned unchanged."""
    from torch.distributed.tensor import DTensor

    if isinstance(tensor, DTensor):
        full: Tensor = tensor.full_tensor()
        return full
    return tensor


def cut_like(tensor: Tensor, other: Tensor) -> Tensor:
    """Shard a whole tensor like ``other``, on its device; unchanged if ``other`` is not sharded.

    Every rank cuts its own copy, so nothing is sent.
    """
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(other, DTensor):
        return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements, src_data_rank=None)
    return tensor


def reshard(model: nn.Module) -> None:
    """Drop whole weights that FSDP2 kept from a forward, after writing to its shards; no effect without FSDP2."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
