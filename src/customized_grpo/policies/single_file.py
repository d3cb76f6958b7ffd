"""A transformer's weights in one file: alone or inside an all-in-one checkpoint, plain or in float8 with scales.

ComfyUI's all-in-one checkpoints hold the transformer under ``model.diffusion_model.``, beside ``vae.`` and
``text_encoders.``. A float8 weight w with a scale s stands for s w, s one number or one for each row.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import safetensors
import torch
from torch import Tensor

from customized_grpo.policies.adapters.lora_names import FLUX1, family_of
from customized_grpo.weights import FLOAT8, shown

PREFIXES: Final = ("model.diffusion_model.", "diffusion_model.", "transformer.")
"""What a file's keys of the transformer may all begin with: of ComfyUI, and of a pipeline's parts."""
_OTHER_PARTS: Final = re.compile(
    r"(vae|first_stage_model|text_encoders?(_\d+)?|cond_stage_model|conditioner|clip_[lg]|t5xxl|model_ema|tokenizer)\."
)
_FORMATS: Final = ("float8_e4m3fn", "float8_e5m2")
_SCALES: Final = (".scale_weight", ".weight_scale")
_OF_ACTIVATIONS: Final = (".scale_input", ".input_scale")
_QUANTISED: Final = (
    (
        "bitsandbytes (NF4 or int8)",
        re.compile(r"\.(absmax|nested_absmax|quant_map|quant_state\..+|SCB|weight_format)$"),
    ),
    ("SVDQuant (nunchaku)", re.compile(r"\.(qweight|wscales|smooth_factor(_orig)?|proj_(down|up))$")),
    ("a format with several scales (NVFP4, MXFP8, SmoothQuant)", re.compile(r"\.(weight_scale_2|pre_quant_scale)$")),
    ("GPTQ or AWQ", re.compile(r"\.(qzeros|g_idx)$")),
)
_LORA: Final = re.compile(r"lora_(A|B|down|up)|\.processor\.|lokr_|hada_")


def transformer_of(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Counter[str]]:
    """The transformer's part of a file, without its prefix, and how many tensors of which other parts it holds.

    Keys of no known part stay, so that a check of the transformer's keys names them.

    Raises:
        ValueError: there is no transformer in it.
    """
    prefix, aside = _divided(tensors)
    part = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if not _OTHER_PARTS.match(name)}
    if not part:
        raise ValueError(f"it holds no transformer, only {said(aside) or 'nothing'}")
    return part, aside


def _divided(names: Iterable[str]) -> tuple[str, Counter[str]]:
    """The prefix of the transformer's keys, and how many keys of which other parts there are."""
    every = list(names)
    prefix = next((one for one in PREFIXES if any(name.startswith(one) for name in every)), "")
    return prefix, Counter(found[1] for name in every if (found := _OTHER_PARTS.match(name)))


def described(file: Path) -> str:
    """Content of a file of weights by its keys alone: prefix, model, and other parts; empty where it can't be read."""
    try:
        with safetensors.safe_open(str(file), framework="pt") as opened:
            names = list(opened.keys())
    except (safetensors.SafetensorError, OSError):
        return ""
    prefix, aside = _divided(names)
    parts = (f"keys begin with {prefix}" if prefix else "", f"it also holds {said(aside)}" if aside else "")
    model = other_model(names)
    return "; ".join(one for one in (f"it looks like {model}" if model else "", *parts) if one)


def check_no_file(model: str, advice: str) -> None:
    """Refuse one file of weights where a whole pipeline is needed.

    Raises:
        ValueError: it is a file; the message says what it holds, and ``advice``.
    """
    given = Path(model).expanduser()
    if given.is_file():
        content = described(given)
        raise ValueError(
            f"policy.model: {model!r} is one file of weights{f' ({content})' if content else ''}; {advice}"
        )


def said(counted: Mapping[str, int]) -> str:
    """``text_encoders (416), vae (244)``."""
    return ", ".join(f"{part} ({count})" for part, count in sorted(counted.items()))


def plain(part: Mapping[str, Tensor], header: Mapping[str, str], dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights in ``dtype``, scales multiplied in; scales of activations are dropped, which only fast kernels need.

    Args:
        part: as ``transformer_of`` gives it.
        header: the file's metadata.
        dtype: of the result.

    Raises:
        ValueError: quantised in a way that isn't read here.
    """
    for kind, pattern in _QUANTISED:
        if found := sorted(name for name in part if pattern.search(name)):
            raise ValueError(f"it is quantised by {kind}: {shown(found)}; {_ADVICE}")
    _check_formats(part, header)
    scales = {_weight_of(name): tensor for name, tensor in part.items() if name.endswith(_SCALES)}
    marks = (*_SCALES, *_OF_ACTIVATIONS, ".comfy_quant")
    weights = {n: t for n, t in part.items() if not n.endswith(marks) and n.rpartition(".")[2] != "scaled_fp8"}
    if lost := sorted(scales.keys() - weights.keys()):
        raise ValueError(f"it has scales without their weights: {shown(lost)}")
    return {name: _value(name, tensor, scales.get(name), dtype) for name, tensor in weights.items()}


def other_model(names: Iterable[str]) -> str:
    """What these keys belong to, where it is known and isn't FLUX.1; else empty."""
    own = [name for name in names if not _OTHER_PARTS.match(name)]
    if any(map(_LORA.search, own)):
        return "a LoRA, which goes into policy.base_lora.path"
    family = family_of(own)
    return "" if family in (None, FLUX1) else str(family)


_ADVICE: Final = "get the file in bfloat16 or plain float8 (policy.quantization quantises while the model is loaded)"


def _check_formats(part: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """ComfyUI's marks of a layer's format, beside it or in the header: only float8 with a scale is read."""
    try:
        marks = dict(json.loads(header.get("_quantization_metadata", "{}")).get("layers", {}))
        marks |= {n: json.loads(bytes(t.tolist())) for n, t in part.items() if n.endswith(".comfy_quant")}
        formats = {name: (mark["format"], set(mark)) for name, mark in marks.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"its marks of quantised layers are damaged ({error!r}); {_ADVICE}") from error
    for name, (form, entries) in sorted(formats.items()):
        if form not in _FORMATS or entries - {"format", "full_precision_matrix_mult", "orig_dtype"}:
            more = ", ".join(sorted(entries - {"format"}))
            raise ValueError(f"{name} is quantised as {form}{f' ({more})' if more else ''}; {_ADVICE}")


def _weight_of(scale: str) -> str:
    return f"{scale.rpartition('.')[0]}.weight"


def _value(name: str, tensor: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    if not tensor.is_floating_point():
        raise ValueError(f"{name} holds {tensor.dtype}, quantised numbers; {_ADVICE}")
    if scale is None:
        return tensor.to(dtype)
    if tensor.dtype not in FLOAT8:
        raise ValueError(f"{name} has a scale, but is {tensor.dtype} and not float8; {_ADVICE}")
    if scale.numel() not in (1, tensor.shape[0]):
        raise ValueError(
            f"{name} has {scale.numel()} scales for {tensor.shape[0]} rows; read are one, or one for each; {_ADVICE}"
        )
    rows = scale.float().reshape(-1, *[1] * (tensor.ndim - 1))
    return (tensor.float() * rows).to(dtype)
