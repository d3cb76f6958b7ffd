"""What autograd keeps of a forward, for tests and benchmarks of memory estimates."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def kept_bytes(module: nn.Module, forward: Callable[[], Any]) -> int:
    """Bytes of all storages that a forward keeps for its backward pass, the module's weights left out."""
    weights = {one.untyped_storage().data_ptr() for one in module.parameters()}
    kept: dict[int, tuple[int, Tensor]] = {}  # tensors stay alive, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = forward()  # held until everything is counted
    assert kept
    del output
    return sum(size for size, _ in kept.values())
