"""Conventions of LoRA files in the wild: which tool writes what, and what diffusers and this package make of it."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, Literal
from unittest import mock

import torch
from diffusers.loaders import lora_pipeline
from torch import Tensor

import lora_writers as w
from customized_grpo.types import Conditioning
from lora_writers import Beside, Names, Numbers, OfPeft, Plain, Written, as_diffusers, dotted, flat
from pipeline_cases import CASES
from tiny import make_tiny_flux, tiny_policy

Family = Literal["FLUX.1", "FLUX.2", "Qwen-Image"]
Outcome = Literal["same", "rounds", "refuses", "loads nothing", "other", "ignores", "reads"]
"""Compared with the true velocity: the same but for float32's rounding, or for a file's half precision; an error; the
base's; another one. Where this package refuses, diffusers may ignore what makes the file no plain LoRA, or read it."""
AB = {"down": ".lora_A.weight", "up": ".lora_B.weight"}
FLUX_MODULES = as_diffusers(w.FLUX_ORIGINAL)
BLOCKS = "(single_)?transformer_blocks.*"


@dataclass(frozen=True)
class Convention:
    """One tool's way of writing."""

    tool: str
    family: Family
    write: Any
    """(folder, transformer) -> ``Written``."""
    example: str
    alpha: str
    """How a scale is said."""
    diffusers: Outcome = "same"
    why: str = ""
    """Reason of what diffusers does, where it isn't the same."""
    refused: str = ""
    """Words of this package's refusal; empty where it reads."""

    @property
    def name(self) -> str:
        """For a test's id and a folder."""
        return "".join(one if one.isalnum() else "-" for one in f"{self.family} {self.tool}".lower())


def _patterned(module: str, rank: int) -> float:
    alpha = {"to_q": 2, "proj_mlp": 16}.get(module.rpartition(".")[2], 8)
    return (3 if module == "transformer_blocks.0.attn.to_v" else alpha) / rank


PATTERNS: dict[str, Any] = {
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["to_q", "to_k", "to_v", "to_out.0", "proj_mlp", "net.2"],
    "rank_pattern": {"to_k": 2, r"^transformer_blocks\.\d+\.attn\.to_v": 3},
    "alpha_pattern": {"to_q": 2, "single_transformer_blocks.0.proj_mlp": 16, r"^transformer_blocks\.0\.attn\.to_v": 3},
}
RSLORA: dict[str, Any] = {
    "r": 4, "lora_alpha": 3, "target_modules": ["to_q", "to_k", "to_out.0"], "use_rslora": True,
    "rank_pattern": {"to_k": 2},
}  # fmt: skip
QWEN_PATTERNS: dict[str, Any] = {
    "r": 4, "lora_alpha": 8, "target_modules": ["to_q", "to_k", "net.2"],
    "rank_pattern": {"to_k": 2}, "alpha_pattern": {"to_q": 2},
}  # fmt: skip


def _rslora(module: str, rank: int) -> float:
    return 3 / math.sqrt(rank)


def _plain_alpha(module: str, rank: int) -> float:
    return 3 / rank


def _qwen_patterned(module: str, rank: int) -> float:
    return (2 if module.endswith("to_q") else 8) / rank


def _alternating(name: str) -> float:
    return 2.0 if "attn" in name else 8.0


def _some(name: str) -> float | None:
    return 2.0 if "attn" in name else None


def _bare(name: str) -> str:
    return name


KOHYA_TE = Names(flat("lora_te1"))
COMFY_CLIP = Names(dotted("text_encoders.clip_l.transformer."))
CLIP = "text_model.encoder.layers.0.mlp.fc1"
BF16, FP16 = torch.bfloat16, torch.float16
SS = {"ss_network_module": "networks.lora_flux", "ss_network_dim": "4", "ss_network_alpha": "1.0"}
T5_NAMES = Names(flat("lora_te3"))

FLUX: tuple[Convention, ...] = (
    Convention(
        "diffusers' examples, with header", "FLUX.1", OfPeft(PATTERNS, _patterned, "FluxPipeline"),
        "transformer.transformer_blocks.0.attn.to_q.lora_A.weight",
        "header `lora_adapter_metadata`: `lora_alpha`, `alpha_pattern`, `rank_pattern`",
    ),
    Convention(
        "diffusers' examples, rsLoRA", "FLUX.1", OfPeft(RSLORA, _rslora, "FluxPipeline"),
        "transformer.transformer_blocks.0.attn.to_q.lora_A.weight", "header: `use_rslora`, alpha / sqrt(r)",
    ),
    Convention(
        "diffusers before 0.34, ai-toolkit, Replicate's trainer", "FLUX.1",
        Plain(FLUX_MODULES, Names(dotted("transformer."), **AB), Numbers(dtype=BF16), {"software": "{}"}),
        "transformer.single_transformer_blocks.0.proj_mlp.lora_A.weight", "none: scale 1",
    ),
    Convention(
        "peft's `save_pretrained` (TRL, UniRL, Flow-Factory)", "FLUX.1", OfPeft(PATTERNS, _patterned),
        "base_model.model.transformer_blocks.0.attn.to_q.lora_A.weight", "adapter_config.json",
        "refuses", "takes every `base_model` key for fal's Kontext trainer",
    ),
    Convention(
        "peft's `save_pretrained`, rsLoRA", "FLUX.1", OfPeft(RSLORA, _rslora),
        "base_model.model.transformer_blocks.0.attn.to_q.lora_A.weight", "adapter_config.json: `use_rslora`",
        "refuses", "takes every `base_model` key for fal's Kontext trainer",
    ),
    Convention(
        "TheLastBen's trainer", "FLUX.1",
        Plain(FLUX_MODULES, Names(dotted("transformer."), **AB), Numbers(alpha=_alternating)),
        "transformer.single_transformer_blocks.0.attn.to_q.alpha", "`.alpha` of each layer",
    ),
    Convention(
        "the same, alpha of some layers only", "FLUX.1",
        Plain(FLUX_MODULES, Names(dotted("transformer."), **AB), Numbers(alpha=_some)),
        "transformer.transformer_blocks.0.attn.to_q.alpha", "`.alpha` of some layers, else scale 1",
        "other", "gives layers without an alpha the others' one", "has an alpha for some modules and none for",
    ),
    Convention(
        "sd-scripts (kohya)", "FLUX.1",
        Plain(
            w.FLUX_ORIGINAL, Names(flat("lora_unet")), Numbers(alpha=lambda name: 1.0, dtype=BF16), SS,
            w.text_encoder(KOHYA_TE, CLIP, BF16),
        ),
        "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight", "`.alpha` of each layer",
    ),
    Convention(
        "sd-scripts, `train_t5xxl`", "FLUX.1",
        Plain(
            w.FLUX_ORIGINAL, Names(flat("lora_unet")), Numbers(alpha=lambda name: 1.0), SS,
            w.text_encoder(T5_NAMES, "encoder.block.0.layer.0.SelfAttention.q"),
        ),
        "lora_te3_encoder_block_0_layer_0_SelfAttention_q.lora_down.weight", "`.alpha` of each layer",
    ),
    Convention(
        "sd-scripts, `split_qkv`", "FLUX.1",
        Plain(w.FLUX_ORIGINAL, Names(flat("lora_unet")), Numbers(alpha=lambda name: 2.0, split=True), SS),
        "lora_unet_single_blocks_0_linear1.lora_up.weight (block by block)", "`.alpha` of each layer",
    ),
    Convention(
        "sd-scripts, unequal ranks (`network_args`)", "FLUX.1",
        Plain(
            w.FLUX_ORIGINAL, Names(flat("lora_unet")),
            Numbers(rank=lambda name: 2 if "mlp" in name else 6, alpha=_alternating, dtype=FP16), SS,
        ),
        "lora_unet_double_blocks_0_img_mlp_0.lora_down.weight", "`.alpha` of each layer",
        "rounds", "scales in the file's float16",
    ),
    Convention(
        "sd-scripts, `in_dims` and last layer", "FLUX.1",
        Plain(
            {**w.FLUX_ORIGINAL, **w.FLUX_OUTSIDE}, Names(flat("lora_unet")), Numbers(alpha=lambda name: 2.0), SS,
        ),
        "lora_unet_final_layer_adaLN_modulation_1.lora_down.weight", "`.alpha` of each layer",
        "other", "drops the layers outside the blocks",
    ),
    Convention(
        "ComfyUI's LoraSave", "FLUX.1",
        Plain(w.FLUX_ORIGINAL, Names(dotted("diffusion_model.")), Numbers(dtype=FP16)),
        "diffusion_model.double_blocks.0.img_attn.qkv.lora_up.weight", "none: scale 1",
    ),
    Convention(
        "ComfyUI's trainer, with CLIP", "FLUX.1",
        Plain(
            w.FLUX_ORIGINAL, Names(dotted("diffusion_model.")), Numbers(alpha=_alternating), {},
            w.text_encoder(COMFY_CLIP, CLIP),
        ),
        "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.lora_up.weight", "`.alpha` of each layer",
    ),
    Convention(
        "OneTrainer", "FLUX.1",
        Plain(
            {name: made for name, made in FLUX_MODULES.items() if ".attn." in name}, Names(flat("lora_transformer")),
            Numbers(alpha=lambda name: 1.0, dtype=BF16), {"ot_branch": "master"}, w.text_encoder(KOHYA_TE, CLIP, BF16),
        ),
        "lora_transformer_transformer_blocks_0_attn_to_q.lora_down.weight", "`.alpha` of each layer",
        "refuses", "fails on CLIP's layers",
    ),
    Convention(
        "OneTrainer, layers beside attention", "FLUX.1",
        Plain(FLUX_MODULES, Names(flat("lora_transformer")), Numbers(alpha=lambda name: 1.0)),
        "lora_transformer_transformer_blocks_0_ff_net_0_proj.lora_down.weight", "`.alpha` of each layer",
        "refuses", "names attention's layers alone",
    ),
    Convention(
        "OneTrainer, OMI format", "FLUX.1",
        Plain(
            {f"{name}.{i}" if len(made) > 1 else name: (one,)
             for name, made in w.FLUX_ORIGINAL.items() for i, one in enumerate(made)},
            Names(dotted("transformer.")), Numbers(alpha=lambda name: 1.0),
        ),
        "transformer.double_blocks.0.img_attn.qkv.0.lora_down.weight", "`.alpha` of each layer",
        "refuses", "takes the names for its own",
    ),
    Convention(
        "XLabs (x-flux)", "FLUX.1",
        Plain(w.FLUX_XLABS, Names(dotted(""), ".down.weight", ".up.weight"), Numbers(dtype=BF16)),
        "double_blocks.0.processor.qkv_lora1.down.weight", "none: scale 1",
    ),
    Convention(
        "XLabs, some blocks", "FLUX.1",
        Plain(
            {name: made for name, made in w.FLUX_XLABS.items() if "double" in name},
            Names(dotted("diffusion_model."), ".down.weight", ".up.weight"),
        ),
        "diffusion_model.double_blocks.0.processor.proj_lora1.down.weight", "none: scale 1",
    ),
    Convention(
        "fal's Kontext trainer", "FLUX.1",
        Plain(
            {**w.FLUX_ORIGINAL, "final_layer.linear": ("proj_out",)}, Names(dotted("base_model.model."), **AB),
            Numbers(dtype=BF16),
        ),
        "base_model.model.double_blocks.0.img_attn.qkv.lora_A.weight", "none: scale 1",
    ),
    Convention(
        "LyCORIS wrapper (SimpleTuner), LoRA", "FLUX.1",
        Plain(FLUX_MODULES, Names(flat("lycoris")), Numbers(alpha=_alternating)),
        "lycoris_transformer_blocks_0_attn_to_q.lora_down.weight", "`.alpha` of each layer",
        "refuses", "knows no `lycoris_` names of FLUX.1",
    ),
    Convention(
        "diffusers' names with kohya's endings", "FLUX.1",
        Plain(FLUX_MODULES, Names(dotted("transformer.")), Numbers(alpha=_alternating)),
        "transformer.transformer_blocks.0.attn.to_q.lora_down.weight", "`.alpha` of each layer",
        "other", "ignores the alphas",
    ),
    Convention(
        "a peft model's own state", "FLUX.1",
        Plain(FLUX_MODULES, Names(_bare, ".lora_A.default.weight", ".lora_B.default.weight")),
        "transformer_blocks.0.attn.to_q.lora_A.default.weight", "none: scale 1",
        "loads nothing", "only looks at names that begin with `transformer.`",
    ),
    Convention(
        "ComfyUI's prefix before diffusers' names", "FLUX.1",
        Plain(FLUX_MODULES, Names(dotted("diffusion_model."), **AB)),
        "diffusion_model.transformer_blocks.0.attn.to_q.lora_A.weight", "none: scale 1",
        "loads nothing", "only looks at names that begin with `transformer.`",
    ),
)  # fmt: skip

REFUSED: tuple[Convention, ...] = (
    Convention(
        "LyCORIS or OneTrainer, DoRA", "FLUX.1",
        Plain(
            w.FLUX_ORIGINAL, Names(flat("lora_unet")), Numbers(alpha=lambda name: 1.0), {},
            {"lora_unet_double_blocks_0_img_attn_proj.dora_scale": torch.ones(64, 1)},
        ),
        "lora_unet_double_blocks_0_img_attn_proj.dora_scale", "`.alpha` of each layer",
        "ignores", "drops the magnitudes, with a warning", "DoRA",
    ),
    Convention(
        "peft, DoRA", "FLUX.1", OfPeft(RSLORA | {"use_rslora": False, "use_dora": True}, _plain_alpha, "FluxPipeline"),
        "transformer.transformer_blocks.0.attn.to_q.lora_magnitude_vector", "header", "reads", "", "DoRA",
    ),
    Convention(
        "LyCORIS, LoKr", "FLUX.1",
        Beside({f"lycoris_transformer_blocks_0_attn_to_q.lokr_w{i}": torch.ones(8, 8) for i in (1, 2)}),
        "lycoris_transformer_blocks_0_attn_to_q.lokr_w1", "in the factors",
        "refuses", "knows no `lycoris_` names of FLUX.1", "LoKr",
    ),
    Convention(
        "LyCORIS, LoHa", "FLUX.1",
        Beside({f"lora_unet_double_blocks_0_img_attn_proj.hada_w{i}": torch.ones(64, 64) for i in ("1_a", "1_b")}),
        "lora_unet_double_blocks_0_img_attn_proj.hada_w1_a", "`.alpha` of each layer",
        "loads nothing", "knows no LoHa", "LoHa",
    ),
    Convention(
        "ComfyUI's LoraSave, with biases", "FLUX.1",
        Plain(
            w.FLUX_ORIGINAL, Names(dotted("diffusion_model.")), Numbers(dtype=FP16), {},
            {"diffusion_model.double_blocks.0.img_attn.proj.diff_b": torch.ones(64)},
        ),
        "diffusion_model.double_blocks.0.img_attn.proj.diff_b", "none: scale 1",
        "ignores", "drops what was added to biases", "full differences of weights",
    ),
    Convention(
        "Black Forest Labs' Depth and Canny LoRA", "FLUX.1",
        Plain(
            w.FLUX_ORIGINAL, Names(dotted(""), **AB), Numbers(), {},
            {"double_blocks.0.img_attn.norm.query_norm.scale": torch.ones(16),
             "double_blocks.0.img_attn.proj.lora_B.bias": torch.ones(64)},
        ),
        "double_blocks.0.img_attn.norm.query_norm.scale", "none: scale 1",
        "refuses", "wants every layer (the real files have them, and are read)", "LoRA with biases",
    ),
    Convention(
        "peft, PiSSA", "FLUX.1",
        OfPeft(RSLORA | {"use_rslora": False}, _plain_alpha, says={"init_lora_weights": "pissa"}),
        "base_model.model.transformer_blocks.0.attn.to_q.lora_A.weight", "adapter_config.json",
        "refuses", "takes every `base_model` key for fal's Kontext trainer", "init_lora_weights: 'pissa'",
    ),
    Convention(
        "musubi-tuner (Blissful), rsLoRA", "FLUX.1",
        Plain(
            w.FLUX_ORIGINAL, Names(flat("lora_unet")), Numbers(alpha=lambda name: 2.0), {},
            {"use_rslora_flag": torch.tensor(1.0)},
        ),
        "use_rslora_flag", "`.alpha` of each layer, by its root", "ignores", "drops the flag", "use_rslora_flag",
    ),
    Convention(
        "sd-scripts, SDXL", "FLUX.1",
        Beside({f"lora_unet_down_blocks_0_attentions_0_proj_in.{end}": torch.ones(4, 4)
                for end in ("lora_down.weight", "lora_up.weight")}),
        "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight", "`.alpha` of each layer",
        "refuses", "knows no such layer", "it is a LoRA of a Stable Diffusion model",
    ),
)  # fmt: skip

FLUX2: tuple[Convention, ...] = (
    Convention(
        "diffusers' examples, with header", "FLUX.2",
        OfPeft(QWEN_PATTERNS | {"target_modules": ["to_q", "to_k", "linear_in"]}, _qwen_patterned, "Flux2Pipeline"),
        "transformer.transformer_blocks.0.attn.to_q.lora_A.weight", "header `lora_adapter_metadata`",
    ),
    Convention(
        "ai-toolkit", "FLUX.2",
        Plain(w.FLUX2_ORIGINAL, Names(dotted("diffusion_model."), **AB), Numbers(dtype=BF16)),
        "diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight", "none: scale 1",
    ),
    Convention(
        "ai-toolkit, layers outside the blocks", "FLUX.2",
        Plain({**w.FLUX2_ORIGINAL, **w.FLUX2_OUTSIDE}, Names(dotted("diffusion_model."), **AB)),
        "diffusion_model.final_layer.adaLN_modulation.1.lora_A.weight", "none: scale 1",
        "other", "leaves the last modulation's halves in the original order",
    ),
    Convention(
        "sd-scripts, musubi-tuner", "FLUX.2",
        Plain(w.FLUX2_ORIGINAL, Names(flat("lora_unet")), Numbers(alpha=lambda name: 1.0, dtype=BF16)),
        "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight", "`.alpha` of each layer",
    ),
    Convention(
        "peft's `save_pretrained`", "FLUX.2",
        OfPeft(QWEN_PATTERNS | {"target_modules": ["to_q", "to_k", "linear_in"]}, _qwen_patterned),
        "base_model.model.transformer_blocks.0.attn.to_q.lora_A.weight", "adapter_config.json",
        "other", "doesn't read adapter_config.json",
    ),
    Convention(
        "OneTrainer", "FLUX.2",
        Plain(as_diffusers(w.FLUX2_ORIGINAL), Names(dotted("transformer.")), Numbers(alpha=lambda name: 1.0)),
        "transformer.transformer_blocks.0.attn.to_q.lora_down.weight", "`.alpha` of each layer",
        "loads nothing", "takes `lora_down` for sd-scripts' names",
    ),
)  # fmt: skip

QWEN: tuple[Convention, ...] = (
    Convention(
        "diffusers' examples, with header", "Qwen-Image", OfPeft(QWEN_PATTERNS, _qwen_patterned, "QwenImagePipeline"),
        "transformer.transformer_blocks.0.attn.to_q.lora_A.weight", "header `lora_adapter_metadata`",
    ),
    Convention(
        "ai-toolkit", "Qwen-Image",
        Plain({**w.QWEN, **w.QWEN_OUTSIDE}, Names(dotted("diffusion_model."), **AB), Numbers(dtype=BF16)),
        "diffusion_model.transformer_blocks.0.attn.to_q.lora_A.weight", "none: scale 1",
    ),
    Convention(
        "musubi-tuner", "Qwen-Image",
        Plain({**w.QWEN, **w.QWEN_OUTSIDE}, Names(flat("lora_unet")), Numbers(alpha=lambda name: 1.0, dtype=BF16)),
        "lora_unet_transformer_blocks_0_attn_to_q.lora_down.weight", "`.alpha` of each layer",
    ),
    Convention(
        "Lightning (lightx2v)", "Qwen-Image", Plain(w.QWEN, Names(_bare), Numbers(alpha=lambda name: 8.0, dtype=BF16)),
        "transformer_blocks.0.attn.to_q.lora_down.weight", "`.alpha` of each layer",
    ),
    Convention(
        "DiffSynth-Studio", "Qwen-Image",
        Plain(w.QWEN, Names(_bare, ".lora_A.default.weight", ".lora_B.default.weight"), Numbers(dtype=BF16)),
        "transformer_blocks.0.attn.to_q.lora_A.default.weight", "none: scale 1",
    ),
    Convention(
        "peft's `save_pretrained`", "Qwen-Image", OfPeft(QWEN_PATTERNS, _qwen_patterned),
        "base_model.model.transformer_blocks.0.attn.to_q.lora_A.weight", "adapter_config.json",
        "loads nothing", "only looks at names that begin with `transformer.`",
    ),
)  # fmt: skip
CONVENTIONS = FLUX + FLUX2 + QWEN + REFUSED


def make_model(family: Family, folder: Path) -> Path:
    """The tiny model of a family, in a new folder."""
    if family == "FLUX.1":
        return make_tiny_flux(folder)
    case = CASES["flux2" if family == "FLUX.2" else "qwen-2509"]
    return case.make(folder, **case.options)


def open_model(family: Family, folder: Path, **changes: Any) -> Any:
    """Its policy, in float32."""
    if family == "FLUX.1":
        return tiny_policy(folder)
    return CASES["flux2" if family == "FLUX.2" else "qwen-2509"].load(folder, **changes)


@contextmanager
def at_tiny_size() -> Iterator[None]:
    """Inside, diffusers' converters take the tiny FLUX.1's sizes in place of FLUX.1-dev's, which they have built in."""
    sizes = {3072: 64, 12288: 256, 19: 1, 38: 1, (3072, 3072, 3072, 12288): (64, 64, 64, 256)}

    def smaller(code: CodeType) -> CodeType:
        def one(value: object) -> object:
            if isinstance(value, CodeType):
                return smaller(value)
            return sizes.get(value, value) if type(value) in (int, tuple) else value

        return code.replace(co_consts=tuple(one(value) for value in code.co_consts))

    made: dict[str, Any] = {}
    for name in ("_convert_kohya_flux_lora_to_diffusers", "_convert_fal_kontext_lora_to_diffusers"):
        real = getattr(lora_pipeline, name)
        made[name] = FunctionType(smaller(real.__code__), real.__globals__, name, real.__defaults__)
    with mock.patch.multiple(lora_pipeline, **made):
        yield


def by_diffusers(policy: Any, written: Written) -> str:
    """Load a file by the policy's own pipeline; the error's first line where it refuses, else empty."""
    pipeline = policy.pipeline if hasattr(policy, "pipeline") else policy._pipeline
    file = written.path / "adapter_model.safetensors" if written.path.is_dir() else written.path
    try:
        with at_tiny_size():
            pipeline.load_lora_weights(file)
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return ""


@torch.no_grad()
def add(policy: Any, delta: Mapping[str, Tensor]) -> None:
    """Add an update to a policy's weights."""
    for name, one in delta.items():
        weight = policy.transformer.get_submodule(name).weight
        weight.copy_(weight.double() + one)


@torch.no_grad()
def velocity(policy: Any, cond: Conditioning) -> Tensor:
    """Of two samples at one noise level."""
    x = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    found: Tensor = policy.velocity(x, torch.tensor(0.7), cond)
    return found


def difference(one: Tensor, other: Tensor) -> float:
    """The largest."""
    return float((one - other).abs().max())


CLOSE = 1e-5
"""Rounding of float32 through the tiny models; what a LoRA moves is above a hundredth."""


def check_outcome(convention: Convention, error: str, found: Tensor, right: Tensor, base: Tensor) -> None:
    """Refuse (AssertionError) a velocity of diffusers that is not what a convention declares.

    Args:
        convention: says what diffusers makes of its files.
        error: of loading by diffusers, or empty.
        found: diffusers' velocity.
        right: the true one.
        base: without the LoRA.
    """
    apart, moved = difference(found, right), difference(found, base)
    declared = {
        "same": not error and apart < CLOSE,
        "rounds": not error and CLOSE < apart < 1e-3,
        "refuses": bool(error),
        "loads nothing": not error and moved == 0,
        "other": not error and moved > 0 and apart > 1e-2,
        "ignores": not error and moved > 0,
        "reads": not error and moved > 0,
    }
    assert declared[convention.diffusers], (convention.name, error, apart, moved)
    assert not convention.refused or convention.diffusers not in ("same", "rounds")
