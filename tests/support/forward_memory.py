"""The memory that a model's forward holds beside its weights, counted without any: on fake tensors."""

import weakref
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
import transformers
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Live(TorchDispatchMode):
    """Counts the storages that are alive at once."""

    def __init__(self, weights: nn.Module) -> None:
        super().__init__()
        own = [*weights.parameters(), *weights.buffers()]
        self._sizes = {one.untyped_storage()._cdata: 0 for one in own}
        self._now = self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and (key := tensor.untyped_storage()._cdata) not in self._sizes:
                self._sizes[key] = tensor.untyped_storage().nbytes()
                self._now += self._sizes[key]
                weakref.finalize(tensor.untyped_storage(), self._drop, key)
        self.peak = max(self.peak, self._now)
        return made

    def _drop(self, key: int) -> None:
        self._now -= self._sizes.pop(key, 0)


def forward_bytes(build: Callable[[], nn.Module], call: Callable[[Any], object], dtype: torch.dtype) -> int:
    """Largest number of bytes that are alive at once in ``call(build())``, without gradient and without the weights."""
    usual = torch.get_default_dtype()
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        patch.object(transformers.PreTrainedModel, "initialize_weights", lambda self: None),
        torch.no_grad(),
    ):
        try:
            torch.set_default_dtype(dtype)
            model = build().eval()
        finally:
            torch.set_default_dtype(usual)
        with _Live(model) as live:
            call(model)
    return live.peak
