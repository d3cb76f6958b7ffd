"""A LoRA layer's products as one operator: on large cards memory's traffic limits them, not arithmetic.

Dimensions: n... leading dimensions, d_in and d_out widths, r rank.
"""

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import register_flop_formula


@torch.library.custom_op("customized_grpo::lora_product", mutates_args=())
def lora_product(x: Tensor, weight: Tensor, bias: Tensor | None, inner: Tensor, factor: Tensor, scale: float) -> Tensor:
    """y = W x + bias + scale B z with z = A x: the last product is added to the first where that lies.

    peft's layer multiplies by the scale and adds in operators of their own, each of which reads and writes the whole
    output. The sum is rounded once here and three times there, so the two agree to rounding. One operator for all of
    it, so that a checkpoint which stores or recomputes by operator can't come between.

    Args:
        x: the input, (n..., d_in); all tensors are of its dtype.
        weight: W of the base, (d_out, d_in); frozen, it gets no gradient.
        bias: of the base, (d_out,), or None.
        inner: z, (n..., r).
        factor: B, (d_out, r).
        scale: alpha / r.

    Returns:
        y, (n..., d_out).
    """
    y = functional.linear(x, weight, bias)
    y.view(-1, y.shape[-1]).addmm_(inner.reshape(-1, inner.shape[-1]), factor.t(), alpha=scale)
    return y


@lora_product.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, inner: Tensor, factor: Tensor, scale: float) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@register_flop_formula(torch.ops.customized_grpo.lora_product)
def product_flops(x: Any, weight: Any, bias: Any, inner: Any, factor: Any, scale: Any, **_: Any) -> int:
    """FLOPs of both products, from shapes."""
    positions = torch.Size(x).numel() // x[-1]
    return int(2 * positions * weight[0] * (weight[1] + factor[1]))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, weight, _, inner, factor, ctx.scale = inputs
    ctx.save_for_backward(weight, inner, factor)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    weight, inner, factor = ctx.saved_tensors
    of_x, _, _, of_inner, of_factor, _ = ctx.needs_input_grad
    flat = grad.reshape(-1, grad.shape[-1])
    return (
        (flat @ weight).view(*grad.shape[:-1], -1) if of_x else None,
        None,
        None,
        (flat @ factor).mul_(ctx.scale).view_as(inner) if of_inner else None,
        (flat.t() @ inner.reshape(-1, inner.shape[-1])).mul_(ctx.scale) if of_factor else None,
        None,
    )


lora_product.register_autograd(_backward, setup_context=_save)


def join_products(layer: Any) -> None:
    """Let a LoRA layer of peft compute by ``lora_product`` in half precision, where its base is a plain linear layer.

    In float32 it stays peft's, whose bits are those of every tool that loads the adapter.
    """
    from peft.tuners.lora.layer import Linear

    if type(layer) is Linear and type(layer.base_layer) is nn.Linear:
        layer.forward = MethodType(_forward, layer)


def _forward(layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    base, device = layer.base_layer, x.device.type
    names = list(layer.lora_A)
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    plain = not (layer.disable_adapters or layer.merged or args or kwargs or layer.lora_variant)
    plain = plain and "forward" not in vars(base)  # else another product has taken its place, as in float8
    # DeepSpeed's stage 3 gathers a weight (ds_id) for its own module's forward alone
    plain = plain and layer.active_adapters == names and len(names) == 1  # one beneath rounds alike with and without
    if not plain or base.weight.dtype != dtype or hasattr(base.weight, "ds_id"):
        own: Tensor = type(layer).forward(layer, x, *args, **kwargs)
        return own
    (name,) = names
    x = x.to(dtype)  # once, for both products
    inner = layer.lora_A[name](layer.lora_dropout[name](x))
    factor = layer.lora_B[name].weight.to(dtype)
    y: Tensor = lora_product(x, base.weight, base.bias, inner, factor, layer.scaling[name])
    return y
