"""Products with a frozen base in float8 while a group is sampled: half the bytes of bfloat16, twice the arithmetic.

Weights have one scale per output and activations one per position (E4M3, the largest value at 448). Every product is
off by some 3 %, so it is for rollouts whose forward no loss compares with: objectives on final images.
Dimensions: p positions, d_in and d_out widths.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any, Final, final
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from customized_grpo.policies.adapters.sharding import base_transformer
from customized_grpo.policies.base import Policy
from customized_grpo.policies.checkpointing import repeated_blocks

_FORMAT: Final = torch.float8_e4m3fn
_LARGEST: Final = torch.finfo(_FORMAT).max
_MULTIPLE: Final = 16
"""Divisor of both widths, as the kernel wants it."""
_LEAST_CAPABILITY: Final = (8, 9)
"""Compute capability of the first GPUs that have such products: Ada and Hopper."""

_KEPT: Final[WeakKeyDictionary[nn.Module, list[tuple[Tensor, Tensor]]]] = WeakKeyDictionary()
"""A transformer's weights and their scales, once for views of all sizes."""


def quantized(values: Float[Tensor, "m d"]) -> tuple[Tensor, Float[Tensor, "m 1"]]:
    """Each row in float8, and what it is to be multiplied by."""
    scale = values.abs().amax(1, keepdim=True).float().clamp(min=torch.finfo(torch.float32).tiny * _LARGEST) / _LARGEST
    return (values.float() / scale).to(_FORMAT), scale


@final
class Float8Products:
    """Linear layers of a transformer's blocks, whose weights are kept a second time in float8.

    Args:
        policy: in half precision, its linear layers frozen and whole.

    Raises:
        ValueError: the device has no such products, or the weights are not in half precision.
    """

    def __init__(self, policy: Policy) -> None:
        if policy.device.type == "cuda" and torch.cuda.get_device_capability(policy.device) < _LEAST_CAPABILITY:
            raise ValueError(
                f"sampling.float8: {torch.cuda.get_device_name(policy.device)} multiplies no float8 (Ada, Hopper and "
                "later do); leave it out, in a new run"
            )
        self._transformer = base_transformer(policy)
        self._layers: list[Any] = [
            layer
            for _, block in repeated_blocks(self._transformer)
            for name, layer in block.named_modules()
            if type(layer) is nn.Linear
            and ".lora_" not in name
            and layer.weight.dtype in (torch.bfloat16, torch.float16)
            and not any(size % _MULTIPLE for size in layer.weight.shape)
        ]
        if not self._layers:
            raise ValueError(
                "sampling.float8: no linear layer of the blocks is in half precision with widths of a multiple of "
                f"{_MULTIPLE}; leave it out, in a new run"
            )

    @contextmanager
    def over(self) -> Iterator[None]:
        """Inside, these layers multiply in float8, without gradient; afterwards the model is as it was."""
        if self._transformer not in _KEPT:
            _KEPT[self._transformer] = [quantized(layer.weight.detach()) for layer in self._layers]
        for layer, weight in zip(self._layers, _KEPT[self._transformer], strict=True):
            layer.forward = MethodType(_product(*weight), layer)
        try:
            yield
        finally:
            for layer in self._layers:
                del layer.forward


def _product(weight: Tensor, scale: Tensor) -> Any:
    def forward(layer: nn.Linear, x: Float[Tensor, "*p d_in"]) -> Float[Tensor, "*p d_out"]:
        flat, by = quantized(x.reshape(-1, x.shape[-1]))
        y: Tensor = torch._scaled_mm(
            flat, weight.t(), scale_a=by, scale_b=scale.t(), bias=layer.bias, out_dtype=layer.weight.dtype
        )
        return y.view(*x.shape[:-1], -1)

    return forward
