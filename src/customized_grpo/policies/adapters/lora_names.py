"""Names of modules in LoRA files -> modules of diffusers' transformer, for each model in the names that tools give it.

A file names modules as diffusers does, as the original code does (where q, k and v are one layer), or as the attention
processors of XLabs and UNO; sd-scripts, OneTrainer and LyCORIS write an underscore for each dot. So names are compared
with underscores throughout. Rows of a fused B are those of its layers, from top to bottom.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from customized_grpo.policies.adapters import uno_lora
from customized_grpo.policies.adapters.flux_keys import key_map
from customized_grpo.policies.adapters.low_rank import Factors, linear_shapes, turned
from customized_grpo.weights import shown

_FLUX2_QKV: Final = (("img_attn", "to_q", "to_k", "to_v"), ("txt_attn", "add_q_proj", "add_k_proj", "add_v_proj"))
_FLUX2_DOUBLE: Final = {
    "img_attn.proj": "attn.to_out.0",
    "txt_attn.proj": "attn.to_add_out",
    "img_mlp.0": "ff.linear_in",
    "img_mlp.2": "ff.linear_out",
    "txt_mlp.0": "ff_context.linear_in",
    "txt_mlp.2": "ff_context.linear_out",
}
_FLUX2_SINGLE: Final = {"linear1": "attn.to_qkv_mlp_proj", "linear2": "attn.to_out"}
_FLUX2_TOP: Final = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_guidance_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_guidance_embed.timestep_embedder.linear_2",
    "guidance_in.in_layer": "time_guidance_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_guidance_embed.guidance_embedder.linear_2",
    "double_stream_modulation_img.lin": "double_stream_modulation_img.linear",
    "double_stream_modulation_txt.lin": "double_stream_modulation_txt.linear",
    "single_stream_modulation.lin": "single_stream_modulation.linear",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
_FLUX3_BLOCKS: Final = {"mode_blocks": "content_mode_blocks", "single_transformer_blocks": "single_blocks"}
_FLUX3_LAYERS: Final = {
    "attn.to_q": "q_proj",
    "attn.to_k": "k_proj",
    "attn.to_v": "v_proj",
    "attn.to_out.0": "attn_out",
    "ff.linear_in": "mlp_in",
    "ff.linear_out": "mlp_out",
}
_FLUX3_TOP: Final = {
    "context_embedder": "txt_in",
    "timestep_embedder.linear_1": "time_in.in_layer",
    "timestep_embedder.linear_2": "time_in.out_layer",
    "target_timestep_embedder.linear_1": "ref_time_in.in_layer",
    "target_timestep_embedder.linear_2": "ref_time_in.out_layer",
    "proj_out": "final_layer.image.linear",
    "norm_out.linear": "final_layer.image.adaLN_modulation.1",
}
_SWAPPED: Final = ("final_layer.adaLN_modulation.1", "final_layer.image.adaLN_modulation.1")
"""The original codes' layers whose halves (shift, scale) diffusers has in the other order."""

FLUX1: Final = "FLUX.1"
_FAMILIES: Final = (
    ("a Stable Diffusion model with a U-Net (SD 1.5, SDXL)", r"(down|up|input|output)_blocks_|mid_block|middle_block"),
    ("Stable Diffusion 3", r"joint_(transformer_)?blocks_"),
    ("Chroma", r"(^|_)distilled_guidance_layer_"),
    (
        "FLUX.3",
        r"(content|txt)_mode_blocks_|(^|_)mode_blocks_\w+?_\d+_|single_transformer_blocks_\d+_(ff_linear|attn_to_out_0)|"
        r"(^|_)single_blocks_\d+_([qkv]_proj|attn_out|mlp_(in|out))",
    ),
    ("FLUX.2", r"to_qkv_mlp_proj|(double|single)_stream_modulation|ff(_context)?_linear_(in|out)"),
    ("HiDream", r"(double|single)_stream_blocks_"),
    ("Wan", r"(^|_)blocks_\d+_((self|cross)_attn_[qkvo]|ffn|attn[12])(_|$)"),
    ("Qwen-Image-2.1", r"transformer_blocks_\d+_img_mlp_(proj|gate_layer|out)(_|$)"),
    ("Qwen-Image", r"transformer_blocks_\d+_(img|txt)_(mlp|mod)"),
    ("LTX-Video or PixArt", r"transformer_blocks_\d+_attn[12]_"),
    ("Lumina or Z-Image", r"(^|_)(layers|noise_refiner|context_refiner)_\d+_(attention|feed_forward)_"),
    (
        FLUX1,
        r"single_transformer_blocks_\d+_(proj_mlp|proj_out|norm_)|(double|single)_blocks_\d+_|ff(_context)?_net",
    ),
)
"""Models by the names of their layers, underscores for dots; the first that fits."""


@dataclass(frozen=True, slots=True)
class Place:
    """Modules of diffusers' transformer that a module of a file stands for."""

    modules: tuple[str, ...]
    """More than one where the file's is a fused layer."""
    swapped: bool = False
    """Whether the halves of its rows are in the other order."""


def places(transformer: Any) -> dict[str, Place]:
    """Every name that a linear layer of a transformer may have in a file, underscores for dots."""
    known: dict[str, Place] = {}
    for name in linear_shapes(transformer):
        block, attention, leaf = name.rpartition(".attn.")
        of_processor = f"{block}.attn.processor.{leaf.removesuffix('.0')}_lora"  # in old versions of diffusers
        known |= {_flat(one): Place((name,)) for one in (name, of_processor if attention else name)}
    classes = {one.__name__ for one in type(transformer).__mro__}
    original: dict[str, tuple[str, ...]] = {}
    if "FluxTransformer2DModel" in classes:
        original = _of_flux(transformer.config)
    elif "Flux2Transformer2DModel" in classes:
        original = _of_flux2(transformer.config)
    elif "Flux3Transformer2DModel" in classes:
        original = _of_flux3(linear_shapes(transformer))
    return {_flat(name): Place(ours, name in _SWAPPED) for name, ours in original.items()} | known


def factors_at(place: Place, factors: Factors, shapes: Mapping[str, tuple[int, int]]) -> dict[str, Factors]:
    """Factors of a file's module as those of the transformer's; they share one A, the same tensor.

    Args:
        place: of the file's module.
        factors: of the file.
        shapes: ``linear_shapes`` of the transformer.

    Raises:
        ValueError: they are of a layer of another shape.
    """
    rows = [shapes[module][0] for module in place.modules]
    expected, given = (sum(rows), shapes[place.modules[0]][1]), (factors.b.shape[0], factors.a.shape[1])
    if given != expected:
        shapes_of = f"it would be {given[0]} x {given[1]}, the model's is {expected[0]} x {expected[1]}"
        if given[0] == given[1] < factors.rank:
            raise ValueError(f"{shapes_of}{turned(factors.a.shape, factors.b.shape)}")
        raise ValueError(f"it is of a model of another width: {shapes_of}")
    b = _swap(factors.b) if place.swapped else factors.b
    return {
        module: Factors(factors.a, part, factors.alpha)
        for module, part in zip(place.modules, b.split(rows), strict=True)
    }


def unknown(names: Iterable[str], known: Mapping[str, Place]) -> str:
    """Message on modules of a file that a model doesn't have: blocks too many, or another model's."""
    lost = sorted(name for name in names if _flat(name) not in known)
    forms = {_form(name) for name in known}
    if all(_form(_flat(name)) in forms for name in lost):
        blocks = sorted({re.split(r"_\d+_", _flat(name))[0] for name in lost})
        ranges = [f"{one} {_range(names, one)} in the file, {_range(known, one)} in the model" for one in blocks]
        return f"the model has fewer blocks ({'; '.join(ranges)}), so it is a LoRA of another model"
    family = family_of(names)
    is_another = family is not None and family != family_of(known)
    return f"the model has no layer {shown(lost)}; " + (
        f"it is a LoRA of {family}" if is_another else "is it a LoRA of another model?"
    )


def family_of(names: Iterable[str]) -> str | None:
    """The model whose layers are named so, or None where it isn't known."""
    flat = [_flat(name) for name in names]
    return next((model for model, pattern in _FAMILIES if any(re.search(pattern, name) for name in flat)), None)


def _of_flux(config: Any) -> dict[str, tuple[str, ...]]:
    keys = key_map(config.num_layers, config.num_single_layers, guidance=config.guidance_embeds)
    linear = {
        name.removesuffix(".weight"): tuple(one.removesuffix(".weight") for one in ours)
        for name, ours in keys.items()
        if name.endswith(".weight")
    }
    # OneTrainer's OMI format numbers the layers of a fused one.
    omi = {f"{name}.{i}": (one,) for name, ours in linear.items() if len(ours) > 1 for i, one in enumerate(ours)}
    return (
        linear | omi | {"img_in.proj": linear["img_in"]} | uno_lora.layers(config.num_layers, config.num_single_layers)
    )


def _of_flux2(config: Any) -> dict[str, tuple[str, ...]]:
    layers: dict[str, tuple[str, ...]] = {name: (ours,) for name, ours in _FLUX2_TOP.items()}
    for i in range(config.num_layers):
        theirs, ours = f"double_blocks.{i}.", f"transformer_blocks.{i}."
        layers |= {f"{theirs}{name}": (ours + one,) for name, one in _FLUX2_DOUBLE.items()}
        layers |= {f"{theirs}{name}.qkv": tuple(f"{ours}attn.{one}" for one in trio) for name, *trio in _FLUX2_QKV}
    for i in range(config.num_single_layers):
        theirs, ours = f"single_blocks.{i}.", f"single_transformer_blocks.{i}."
        layers |= {f"{theirs}{name}": (ours + one,) for name, one in _FLUX2_SINGLE.items()}
    return layers


def _of_flux3(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    layers: dict[str, tuple[str, ...]] = {}
    for ours in names:
        found = re.fullmatch(r"(\w+)(\.(?:\w+\.)?\d+)\.((?:attn|ff)\..+)", ours)
        if found:
            theirs = f"{_FLUX3_BLOCKS.get(found[1], found[1])}{found[2]}.{_FLUX3_LAYERS.get(found[3], found[3])}"
        elif ours.startswith("x_embedders."):
            theirs = ours.replace("x_embedders.", "emb_in.")
        else:
            theirs = _FLUX3_TOP.get(ours) or re.sub(r"\.linear$", ".lin", ours)
        layers[theirs] = (ours,)
    return layers


def _flat(name: str) -> str:
    return name.replace(".", "_")


def _form(name: str) -> str:
    """A name without the number of its block."""
    return re.sub(r"_\d+_", "_#_", name, count=1)


def _range(names: Iterable[str], blocks: str) -> str:
    numbers = [int(found[1]) for name in names if (found := re.match(rf"{blocks}_(\d+)_", _flat(name)))]
    return f"{min(numbers)} to {max(numbers)}" if numbers else "none"


def _swap(tensor: Tensor) -> Tensor:
    first, second = tensor.chunk(2)
    return torch.cat([second, first])
