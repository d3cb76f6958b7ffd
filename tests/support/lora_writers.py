"""LoRA files for the tiny models in the conventions of public training tools, each with the update that it means.

Names, dtypes, alphas and headers follow the tools' own source; peft's folders and diffusers' files are written by
peft and diffusers themselves. What a file means is computed here from the stored factors in float64: scale x up x down.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

Layers = Mapping[str, tuple[str, ...]]
"""A tool's name of a layer -> the modules of diffusers whose rows it stacks."""

FLUX_ORIGINAL: Layers = {
    "double_blocks.0.img_attn.qkv": tuple(f"transformer_blocks.0.attn.to_{one}" for one in "qkv"),
    "double_blocks.0.txt_attn.qkv": tuple(f"transformer_blocks.0.attn.add_{one}_proj" for one in "qkv"),
    "double_blocks.0.img_attn.proj": ("transformer_blocks.0.attn.to_out.0",),
    "double_blocks.0.txt_attn.proj": ("transformer_blocks.0.attn.to_add_out",),
    "double_blocks.0.img_mlp.0": ("transformer_blocks.0.ff.net.0.proj",),
    "double_blocks.0.img_mlp.2": ("transformer_blocks.0.ff.net.2",),
    "double_blocks.0.txt_mlp.0": ("transformer_blocks.0.ff_context.net.0.proj",),
    "double_blocks.0.txt_mlp.2": ("transformer_blocks.0.ff_context.net.2",),
    "double_blocks.0.img_mod.lin": ("transformer_blocks.0.norm1.linear",),
    "double_blocks.0.txt_mod.lin": ("transformer_blocks.0.norm1_context.linear",),
    "single_blocks.0.linear1": (
        *(f"single_transformer_blocks.0.attn.to_{one}" for one in "qkv"),
        "single_transformer_blocks.0.proj_mlp",
    ),
    "single_blocks.0.linear2": ("single_transformer_blocks.0.proj_out",),
    "single_blocks.0.modulation.lin": ("single_transformer_blocks.0.norm.linear",),
}
FLUX_OUTSIDE: Layers = {
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "time_in.in_layer": ("time_text_embed.timestep_embedder.linear_1",),
    "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
    "guidance_in.in_layer": ("time_text_embed.guidance_embedder.linear_1",),
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
}
SWAPPED = ("final_layer.adaLN_modulation.1", "final_layer.image.adaLN_modulation.1")
"""Their rows are (shift, scale) in the original, (scale, shift) in diffusers."""
FLUX2_ORIGINAL: Layers = {
    **{name: made for name, made in FLUX_ORIGINAL.items() if "_attn." in name},
    "double_blocks.0.img_mlp.0": ("transformer_blocks.0.ff.linear_in",),
    "double_blocks.0.img_mlp.2": ("transformer_blocks.0.ff.linear_out",),
    "double_blocks.0.txt_mlp.0": ("transformer_blocks.0.ff_context.linear_in",),
    "double_blocks.0.txt_mlp.2": ("transformer_blocks.0.ff_context.linear_out",),
    "single_blocks.0.linear1": ("single_transformer_blocks.0.attn.to_qkv_mlp_proj",),
    "single_blocks.0.linear2": ("single_transformer_blocks.0.attn.to_out",),
}
FLUX2_OUTSIDE: Layers = {
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "time_in.in_layer": ("time_guidance_embed.timestep_embedder.linear_1",),
    "guidance_in.out_layer": ("time_guidance_embed.guidance_embedder.linear_2",),
    "double_stream_modulation_img.lin": ("double_stream_modulation_img.linear",),
    "single_stream_modulation.lin": ("single_stream_modulation.linear",),
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
}
FLUX3_ORIGINAL: Layers = {
    f"{theirs}.{name}": (f"{ours}.{one}",)
    for theirs, ours in {
        "content_mode_blocks.image.0": "mode_blocks.image.0",
        "txt_mode_blocks.0": "txt_mode_blocks.0",
        "single_blocks.1": "single_transformer_blocks.1",
    }.items()
    for name, one in {
        "q_proj": "attn.to_q",
        "k_proj": "attn.to_k",
        "v_proj": "attn.to_v",
        "attn_out": "attn.to_out.0",
        "mlp_in": "ff.linear_in",
        "mlp_out": "ff.linear_out",
    }.items()
}
FLUX3_OUTSIDE: Layers = {
    "emb_in.image": ("x_embedders.image",),
    "txt_in": ("context_embedder",),
    "time_in.in_layer": ("timestep_embedder.linear_1",),
    "early_stream_modulations.image.lin": ("early_stream_modulations.image.linear",),
    "final_layer.image.linear": ("proj_out",),
    "final_layer.image.adaLN_modulation.1": ("norm_out.linear",),
}
QWEN21: Layers = {
    f"transformer_blocks.{block}.{name}": (f"transformer_blocks.{block}.{name}",)
    for block in (0, 1)
    for name in (
        "attn.to_q",
        "attn.to_k",
        "attn.to_v",
        "attn.to_out.0",
        *(f"img_mlp.{one}" for one in ("proj", "gate_layer", "out")),
    )
}
FLUX_XLABS: Layers = {
    "double_blocks.0.processor.qkv_lora1": FLUX_ORIGINAL["double_blocks.0.img_attn.qkv"],
    "double_blocks.0.processor.proj_lora1": FLUX_ORIGINAL["double_blocks.0.img_attn.proj"],
    "double_blocks.0.processor.qkv_lora2": FLUX_ORIGINAL["double_blocks.0.txt_attn.qkv"],
    "double_blocks.0.processor.proj_lora2": FLUX_ORIGINAL["double_blocks.0.txt_attn.proj"],
    "single_blocks.0.processor.qkv_lora": tuple(f"single_transformer_blocks.0.attn.to_{one}" for one in "qkv"),
    "single_blocks.0.processor.proj_lora": ("single_transformer_blocks.0.proj_out",),
}
QWEN: Layers = {
    f"transformer_blocks.{block}.{name}": (f"transformer_blocks.{block}.{name}",)
    for block in (0, 1)
    for name in (
        *(f"attn.to_{one}" for one in ("q", "k", "v", "out.0", "add_out")),
        *(f"attn.add_{one}_proj" for one in "qkv"),
        *(f"{stream}_mlp.net.{part}" for stream in ("img", "txt") for part in ("0.proj", "2")),
    )
}
QWEN_OUTSIDE: Layers = {name: (name,) for name in ("img_in", "txt_in", "proj_out", "norm_out.linear")}


def as_diffusers(layers: Layers) -> Layers:
    """The same modules under diffusers' own names."""
    return {module: (module,) for modules in layers.values() for module in modules}


@dataclass(frozen=True)
class Written:
    """A LoRA on disk."""

    path: Path
    delta: dict[str, Tensor]
    """Module of diffusers -> what it adds to the weight, float64."""
    aside: int = 0
    """Tensors that are of no transformer: of text encoders, say."""


@dataclass(frozen=True)
class Names:
    """How a tool calls the tensors of a layer."""

    layer: Callable[[str], str]
    down: str = ".lora_down.weight"
    up: str = ".lora_up.weight"
    alpha: str = ".alpha"


@dataclass(frozen=True)
class Numbers:
    """Rank, alpha (None: no key) and dtype of a layer's tensors, by the layer's name."""

    rank: Callable[[str], int] = lambda name: 4
    alpha: Callable[[str], float | None] = lambda name: None
    dtype: torch.dtype = torch.float32
    split: bool = False
    """Each stacked module has a rank of its own: one A above another, B block by block (sd-scripts' ``split_qkv``)."""


def flat(prefix: str) -> Callable[[str], str]:
    """``lora_unet_double_blocks_0_img_attn_qkv``."""
    return lambda name: f"{prefix}_{name.replace('.', '_')}"


def dotted(prefix: str) -> Callable[[str], str]:
    """``diffusion_model.double_blocks.0.img_attn.qkv``."""
    return lambda name: f"{prefix}{name}"


def shapes_of(transformer: torch.nn.Module) -> dict[str, tuple[int, int]]:
    """(rows, columns) of every linear layer."""
    return {
        name: (one.out_features, one.in_features)
        for name, one in transformer.named_modules()
        if isinstance(one, torch.nn.Linear)
    }


def tensors_of(
    layers: Layers, shapes: Mapping[str, tuple[int, int]], names: Names, numbers: Numbers
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Random tensors by a tool's names, and the update that they mean."""
    draw = torch.Generator().manual_seed(7)
    tensors: dict[str, Tensor] = {}
    delta: dict[str, Tensor] = {}
    for name, modules in layers.items():
        rows, (_, inner) = [shapes[one][0] for one in modules], shapes[modules[0]]
        each, alpha = numbers.rank(name), numbers.alpha(name)
        rank = each * len(modules) if numbers.split else each
        down = (torch.randn(rank, inner, generator=draw) * inner**-0.5).to(numbers.dtype)
        up = (torch.randn(sum(rows), rank, generator=draw) * 0.3).to(numbers.dtype)
        if numbers.split:
            up *= torch.block_diag(*(torch.ones(one, each) for one in rows)).to(numbers.dtype)
        layer = names.layer(name)
        tensors |= {f"{layer}{names.down}": down, f"{layer}{names.up}": up}
        if alpha is not None:
            tensors[f"{layer}{names.alpha}"] = torch.tensor(alpha, dtype=numbers.dtype)
        whole = up.double() @ down.double() * (1.0 if alpha is None else alpha / rank)
        if name in SWAPPED:
            whole = torch.cat(whole.chunk(2)[::-1])
        delta |= dict(zip(modules, whole.split(rows), strict=True))
    return tensors, delta


def text_encoder(names: Names, layer: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """One layer of CLIP, as tools put it beside a transformer's."""
    draw = torch.Generator().manual_seed(8)
    pair = {names.down: torch.randn(4, 32, generator=draw), names.up: torch.randn(32, 4, generator=draw)}
    place = names.layer(layer)
    return {f"{place}{end}": one.to(dtype) for end, one in pair.items()} | {f"{place}{names.alpha}": torch.tensor(4.0)}


@dataclass(frozen=True)
class Plain:
    """A tool that writes one safetensors file."""

    layers: Layers
    names: Names
    numbers: Numbers = field(default_factory=Numbers)
    header: Mapping[str, str] = field(default_factory=dict)
    beside: Mapping[str, Tensor] = field(default_factory=dict)
    file: str = "lora.safetensors"

    def __call__(self, folder: Path, transformer: torch.nn.Module) -> Written:
        tensors, delta = tensors_of(self.layers, shapes_of(transformer), self.names, self.numbers)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({**tensors, **self.beside}, folder / self.file, {"format": "pt", **self.header})
        return Written(folder / self.file, delta, len(self.beside))


@dataclass(frozen=True)
class Beside:
    """A file of these tensors, whose meaning isn't worked out here."""

    tensors: Mapping[str, Tensor]

    def __call__(self, folder: Path, transformer: torch.nn.Module) -> Written:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: one.clone() for name, one in self.tensors.items()}, folder / "lora.safetensors")
        return Written(folder / "lora.safetensors", {})


@dataclass(frozen=True)
class OfPeft:
    """peft's own ``save_pretrained``, or diffusers' ``save_lora_weights`` with its header, from a real adapter."""

    config: Mapping[str, Any]
    scale: Callable[[str, int], float]
    """(module, rank) -> scale, worked out by hand from ``config``."""
    pipeline: str | None = None
    """Class of diffusers that writes; None: peft writes a folder."""
    says: Mapping[str, Any] = field(default_factory=dict)
    """What adapter_config.json is made to say besides."""

    def __call__(self, folder: Path, transformer: torch.nn.Module) -> Written:
        import diffusers
        from diffusers.training_utils import _collate_lora_metadata
        from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

        settings = LoraConfig(**{**self.config, "init_lora_weights": False})
        draw = torch.Generator().manual_seed(9)
        if self.pipeline is None:
            tuned: Any = get_peft_model(transformer, settings)
        else:
            tuned = transformer
            tuned.add_adapter(settings)
        for name, parameter in tuned.named_parameters():
            if ".lora_" in name:
                size = parameter.shape[1] ** -0.5 if ".lora_A." in name else 0.3
                parameter.data = torch.randn(parameter.shape, generator=draw) * size
        state = get_peft_model_state_dict(tuned)
        if self.pipeline is None:
            tuned.save_pretrained(folder)
            config = json.loads((folder / "adapter_config.json").read_text())
            (folder / "adapter_config.json").write_text(json.dumps(config | dict(self.says)))
            path = folder
        else:
            about = _collate_lora_metadata({"transformer": tuned})
            getattr(diffusers, self.pipeline).save_lora_weights(folder, transformer_lora_layers=state, **about)
            path = folder / "pytorch_lora_weights.safetensors"
        bare = {name.removeprefix("base_model.model."): one.double() for name, one in state.items()}
        modules = sorted({name.split(".lora_")[0] for name in bare})  # of DoRA, what is low-rank
        pairs = {one: (bare[f"{one}.lora_A.weight"], bare[f"{one}.lora_B.weight"]) for one in modules}
        return Written(path, {name: self.scale(name, len(a)) * b @ a for name, (a, b) in pairs.items()})
