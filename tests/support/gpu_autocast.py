"""Norms of a GPU's autocast on a CPU, for tests and benchmarks: they compute in float32 and pass that on."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Inside, layer_norm and rms_norm do as a GPU's, the latter in one operator that moves what layer_norm does.

    A CPU's autocast leaves norms in half precision, and its rms_norm is eight operators. Fake tensors of a GPU, which
    would know, have no backward where torch has no CUDA.
    """
    layer_norm = functional.layer_norm

    def norm(x: Tensor, shape: Any, weight: Tensor | None = None, *rest: Any, **_: Any) -> Tensor:
        if not torch.is_autocast_enabled("cpu"):
            return layer_norm(x, shape, weight)
        with torch.autocast("cpu", enabled=False):
            return layer_norm(x.float(), shape, None if weight is None else weight.float())

    with patch.multiple(functional, layer_norm=norm, rms_norm=norm):
        yield
