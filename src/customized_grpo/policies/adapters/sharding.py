"""What several processes make of a transformer, undone: its wrapper off, and the shards of FSDP2 whole again."""

from typing import Any

from torch import Tensor, nn

from customized_grpo.policies.base import Policy


def base_transformer(policy: Policy) -> Any:
    """The diffusers model itself, out of whatever DDP or compile wrapper the trainer has put around it."""
    from accelerate.utils import extract_model_from_parallel

    return extract_model_from_parallel(policy.transformer)


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that is sharded over the ranks, all of which must ask for it; any other as it is."""
    from torch.distributed.tensor import DTensor

    if isinstance(tensor, DTensor):
        full: Tensor = tensor.full_tensor()
        return full
    return tensor


def cut_like(tensor: Tensor, other: Tensor) -> Tensor:
    """A whole tensor, sharded as ``other`` is and on its device; unchanged where ``other`` is not sharded.

    Every rank cuts its own copy, so nothing is sent.
    """
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(other, DTensor):
        return distribute_tensor(
            tensor.to(other.device), other.device_mesh, other.placements, src_data_rank=None
        )
    return tensor


def reshard(model: nn.Module) -> None:
    """Drop whole weights that FSDP2 has kept from a forward, after its shards were written to; else do nothing."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
