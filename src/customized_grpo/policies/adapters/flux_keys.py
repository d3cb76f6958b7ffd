"""Conversion of FLUX.1's weights between Black Forest Labs' and diffusers' keys, with every key accounted for.

A tensor of the original may stack several of diffusers' (q, k and v; and the MLP of a single block).
The final modulation alone also changes its order: (shift, scale) there, (scale, shift) here.
"""

from collections.abc import Mapping, Set
from typing import Final

import torch
from torch import Tensor

from customized_grpo.policies.adapters.low_rank import mismatch

_SWAPPED: Final = "final_layer.adaLN_modulation.1"

_QKV: Final = ("attn.to_q", "attn.to_k", "attn.to_v")
_ADDED_QKV: Final = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
_DOUBLE: Final[Mapping[str, tuple[str, ...]]] = {
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
    "img_attn.qkv": _QKV,
    "txt_attn.qkv": _ADDED_QKV,
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
}
_DOUBLE_NORMS: Final[Mapping[str, str]] = {
    "img_attn.norm.query_norm": "attn.norm_q",
    "img_attn.norm.key_norm": "attn.norm_k",
    "txt_attn.norm.query_norm": "attn.norm_added_q",
    "txt_attn.norm.key_norm": "attn.norm_added_k",
}
_SINGLE: Final[Mapping[str, tuple[str, ...]]] = {
    "modulation.lin": ("norm.linear",),
    "linear1": (*_QKV, "proj_mlp"),
    "linear2": ("proj_out",),
}
_SINGLE_NORMS: Final[Mapping[str, str]] = {
    "norm.query_norm": "attn.norm_q",
    "norm.key_norm": "attn.norm_k",
}
_TOP: Final[Mapping[str, tuple[str, ...]]] = {
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "time_in.in_layer": ("time_text_embed.timestep_embedder.linear_1",),
    "time_in.out_layer": ("time_text_embed.timestep_embedder.linear_2",),
    "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
    "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
    "final_layer.linear": ("proj_out",),
    _SWAPPED: ("norm_out.linear",),
}
_GUIDANCE: Final[Mapping[str, tuple[str, ...]]] = {
    "guidance_in.in_layer": ("time_text_embed.guidance_embedder.linear_1",),
    "guidance_in.out_layer": ("time_text_embed.guidance_embedder.linear_2",),
}


def key_map(num_double: int, num_single: int, *, guidance: bool) -> dict[str, tuple[str, ...]]:
    """Original key -> diffusers' keys whose tensors it holds, from top to bottom."""
    layers = dict(_TOP) | (dict(_GUIDANCE) if guidance else {})
    norms: dict[str, str] = {}
    for ours, theirs, count, linear, norm in (
        ("transformer_blocks", "double_blocks", num_double, _DOUBLE, _DOUBLE_NORMS),
        ("single_transformer_blocks", "single_blocks", num_single, _SINGLE, _SINGLE_NORMS),
    ):
        for i in range(count):
            layers |= {
                f"{theirs}.{i}.{name}": tuple(f"{ours}.{i}.{one}" for one in names) for name, names in linear.items()
            }
            norms |= {f"{theirs}.{i}.{name}": f"{ours}.{i}.{one}" for name, one in norm.items()}
    pairs = {
        f"{name}.{kind}": tuple(f"{one}.{kind}" for one in names)
        for name, names in layers.items()
        for kind in ("weight", "bias")
    }
    return pairs | {f"{name}.scale": (f"{one}.weight",) for name, one in norms.items()}


def in_diffusers(state: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> bool:
    """True if a state dict has diffusers' names already; its keys and shapes are then checked.

    Args:
        state: of a model.
        shapes: of diffusers' model, by name.

    Raises:
        ValueError: these are diffusers' names, and one is missing or left over, or a tensor is of another shape.
    """
    if not any("transformer_blocks." in name for name in state):
        return False
    _check_keys(state.keys(), shapes.keys())
    for name, tensor in state.items():
        if tensor.shape != shapes[name]:
            raise ValueError(f"{name} has the shape {tuple(tensor.shape)}, the model needs {tuple(shapes[name])}")
    return True


def from_original(
    state: Mapping[str, Tensor], keys: Mapping[str, tuple[str, ...]], shapes: Mapping[str, torch.Size]
) -> dict[str, Tensor]:
    """diffusers' state dict of an original one.

    Args:
        state: original names, without a prefix.
        keys: ``key_map`` of the model.
        shapes: of diffusers' model, by name.

    Raises:
        ValueError: a key is missing or left over, or a tensor is of another shape; they are named.
    """
    _check_keys(state.keys(), keys.keys())
    converted: dict[str, Tensor] = {}
    for name, ours in keys.items():
        rows = [shapes[one][0] for one in ours]
        expected = (sum(rows), *shapes[ours[0]][1:])
        if tuple(state[name].shape) != expected:
            raise ValueError(f"{name} has the shape {tuple(state[name].shape)}, the model needs {expected}")
        tensor = _swap(state[name]) if name.startswith(_SWAPPED) else state[name]
        converted |= dict(zip(ours, tensor.split(rows), strict=True))
    return converted


def to_original(state: Mapping[str, Tensor], keys: Mapping[str, tuple[str, ...]]) -> dict[str, Tensor]:
    """The inverse of ``from_original``.

    Raises:
        ValueError: a key is missing or left over.
    """
    _check_keys(state.keys(), {one for ours in keys.values() for one in ours})
    return {
        name: _swap(state[ours[0]])
        if name.startswith(_SWAPPED)
        else torch.cat([state[one] for one in ours]).contiguous()
        for name, ours in keys.items()
    }


def _check_keys(given: Set[str], expected: Set[str]) -> None:
    if wrong := mismatch(given, expected):
        raise ValueError(wrong)


def _swap(tensor: Tensor) -> Tensor:
    first, second = tensor.chunk(2)
    return torch.cat([second, first])
