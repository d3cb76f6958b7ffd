"""Half precision within a transformer's blocks, without casts that no kernel needs.

Under a GPU's autocast norms compute in float32 and pass float32 on, which every linear layer behind them casts again.
"""

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from customized_grpo.policies.checkpointing import repeated_blocks

_HALF = (torch.bfloat16, torch.float16)
_STATES = ("hidden_states", "encoder_hidden_states")


def cast_once(transformer: nn.Module) -> None:
    """Let each attention and feed-forward module of the blocks cast its inputs to autocast's dtype once.

    They give them to linear layers alone, each of which would cast them by itself: outputs keep their bits. In a
    backward, what comes back from these layers is summed in half precision instead of float32.
    """
    for _, block in _blocks(transformer):
        for module in block.modules():
            attention = hasattr(module, "to_q") and not getattr(module, "residual_connection", False)
            done = _halved in module._forward_pre_hooks.values()
            if (attention or type(module).__name__.endswith("FeedForward")) and not done:
                module.register_forward_pre_hook(_halved, with_kwargs=True)


def half_norms(transformer: nn.Module) -> None:
    """Let the norms of the blocks read and write half precision; their kernels still sum in float32.

    It is how diffusers' pipelines draw in half precision, which know no autocast.
    """
    for _, block in _blocks(transformer):
        for module in block.modules():
            if isinstance(module, nn.LayerNorm | nn.RMSNorm):
                module.forward = MethodType(_without_autocast, module)  # type: ignore[method-assign]


def _blocks(transformer: Any) -> list[tuple[str, nn.Module]]:
    return repeated_blocks(transformer) if getattr(transformer, "_repeated_blocks", None) else []


def _halved(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    first = args[0] if args else kwargs.get(_STATES[0])
    if not isinstance(first, Tensor) or not torch.is_autocast_enabled(first.device.type):
        return args, kwargs
    dtype = torch.get_autocast_dtype(first.device.type)

    def half(one: Any) -> Any:
        return one.to(dtype) if isinstance(one, Tensor) and one.dtype == torch.float32 else one

    return (half(first), *args[1:]) if args else args, {k: half(v) if k in _STATES else v for k, v in kwargs.items()}


def _without_autocast(norm: Any, x: Tensor) -> Tensor:
    weight = getattr(norm, "weight", None)
    fits = x.dtype in _HALF and (weight is None or weight.dtype == x.dtype)
    with torch.autocast(x.device.type, enabled=torch.is_autocast_enabled(x.device.type) and not fits):
        out: Tensor = type(norm).forward(norm, x)
    return out
