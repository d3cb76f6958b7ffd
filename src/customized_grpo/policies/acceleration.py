"""Acceleration of a policy's transformer: bitsandbytes weights, attention backend, casts, norms, compiled blocks.

Only the sparing of casts, which changes no bit of it, is on by default. The others change the velocity by rounding; the
guard on the first replay's ratio (``train.ratio_guard``) checks that rollout and replay still compute the same.
"""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from customized_grpo.policies import precision
from customized_grpo.policies.checkpointing import checkpoint_blocks

if TYPE_CHECKING:
    from diffusers import BitsAndBytesConfig

Quantization = Literal["none", "8bit", "4bit"]
Norms = Literal["float32", "half"]

NOT_QUANTIZED = ("x_embedder", "x_embedders", "context_embedder", "time_text_embed", "norm_out", "proj_out")
"""Layers that stay in the compute dtype. An error of the last layer goes into the velocity undamped: NF4 moves a tiny
random FLUX by 9 % with ``proj_out``, by 1 % without. diffusers matches a name's end, so that the ``proj_out`` of FLUX's
single blocks (15 % of the weights) stays as well.
"""
_QUANTIZED_ON = ("cuda", "xpu", "mps")
"""Devices on which diffusers loads bitsandbytes weights; bitsandbytes itself also has a CPU back end."""
_ATTENTION_TOLERANCE = 0.02
"""Relative tolerance; bfloat16 rounds by 0.004, and quantised attention is off by several per cent."""


def transformer_options(quantization: Quantization, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Arguments of the ``from_pretrained`` of a transformer alone.

    Raises:
        ValueError: bitsandbytes is missing, or diffusers doesn't run it on the device.
    """
    if quantization == "none":
        return {}
    if device.type not in _QUANTIZED_ON:
        raise ValueError(
            f"policy.quantization: {quantization} needs a GPU, and this runs on {device.type}; "
            "use policy.quantization=none"
        )
    need_bitsandbytes(f"policy.quantization: {quantization}")
    return {"quantization_config": bitsandbytes_config(quantization, dtype)}


def bitsandbytes_config(quantization: Literal["8bit", "4bit"], dtype: torch.dtype) -> "BitsAndBytesConfig":
    """NF4 with quantized scales, or LLM.int8 without outlier columns.

    Outlier columns are chosen over a whole batch, so with them a sample's velocity would depend on what else is in it.
    """
    from diffusers import BitsAndBytesConfig

    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0, llm_int8_skip_modules=list(NOT_QUANTIZED))
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=list(NOT_QUANTIZED),
    )


def need_bitsandbytes(key: str) -> None:
    """Raise a ``ValueError`` if bitsandbytes, which ``key`` needs, isn't installed."""
    if find_spec("bitsandbytes") is None:
        raise ValueError(f"{key} needs bitsandbytes: pip install 'customized-grpo[bitsandbytes]'")


def place_and_freeze(pipeline: Any, config: Any, device: torch.device) -> None:
    """Move a loaded pipeline to its device, freeze its parts, and turn on gradient checkpointing if configured.

    Args:
        pipeline: as ``from_pretrained`` gave it.
        config: the policy's section.
        device: where it runs.
    """
    pipeline.to(device)
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.requires_grad_(False)
            part.eval()
    if getattr(config, "channels_last", False) and pipeline.vae is not None:
        to_channels_last(pipeline.vae)
    if config.gradient_checkpointing and pipeline.transformer is not None:
        checkpoint_blocks(pipeline.transformer, float(config.gradient_checkpointing), config.recompute)


def apply(
    transformer: nn.Module,
    device: torch.device,
    *,
    quantization: Quantization,
    attention: str | None,
    norms: Norms = "float32",
    compile_blocks: bool | Literal["dynamic"],
) -> None:
    """Check the weights' quantisation, set the attention backend, spare casts, and compile the repeated blocks.

    Raises:
        ValueError: the policy ignored ``quantization``, or the backend or the compiler can't be used here.
    """
    model: Any = transformer
    if quantization != "none" and not is_quantized(transformer):
        raise ValueError(
            f"policy.quantization: given {quantization!r}, but this policy doesn't read it; set it to none"
        )
    if attention is not None:
        from diffusers.models.attention_dispatch import _AttentionBackendRegistry

        before, _ = _AttentionBackendRegistry.get_active_backend()
        try:
            model.set_attention_backend(attention)
            _try_attention(attention, device)
        except (RuntimeError, ValueError, ImportError, NotImplementedError, AssertionError) as error:
            raise ValueError(
                f"policy.attention: {attention!r} can't be used here ({str(error).splitlines()[0]}); "
                "use policy.attention=native, or null"
            ) from error
        finally:  # diffusers also makes it the default of every other model in this process
            _AttentionBackendRegistry.set_active_backend(before)
    precision.cast_once(transformer)
    if norms == "half":
        precision.half_norms(transformer)
    if compile_blocks:
        try:
            # a shape seen before reuses its code; None leaves it to torch, which makes what has changed a variable
            model.compile_repeated_blocks(dynamic=None if compile_blocks == "dynamic" else False)
        except (ValueError, AttributeError) as error:
            raise ValueError(
                f"policy.compile: {type(model).__name__} names no repeated blocks; set it to false"
            ) from error


def to_channels_last(model: nn.Module) -> None:
    """Lay out the weights of convolutions as their kernels on a GPU read them; they pass it on to what they compute."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.to(memory_format=torch.channels_last)
        elif isinstance(module, nn.Conv3d):
            module.weight.data = module.weight.data.to(memory_format=torch.channels_last_3d)


def keep_compiled(folder: str | None) -> None:
    """Keep compiled code in a run's cache, where a restart finds it, unless ``TORCHINDUCTOR_CACHE_DIR`` says where."""
    if folder is not None:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(folder).expanduser().resolve() / "compiled"))


def is_quantized(transformer: nn.Module) -> bool:
    """True if a layer's weights are quantised by bitsandbytes."""
    return any(type(module).__module__.startswith("bitsandbytes") for module in transformer.modules())


def _try_attention(name: str, device: torch.device) -> None:
    """Compare a backend with torch's own on a small input: several lack a gradient, and some are approximations.

    The second gradient is a slice of a wider one, as after the attention of FLUX's single-stream blocks.

    Raises:
        ValueError: outputs or gradients differ by more than rounding.
    """
    from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn

    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    draw = torch.Generator().manual_seed(0)
    given = [torch.randn(1, 128, 2, 64, generator=draw).to(device, dtype) for _ in range(3)]

    def run(backend: str) -> list[Tensor]:
        found: list[Tensor] = []
        for wider in (False, True):
            leaves = [tensor.clone().requires_grad_() for tensor in given]
            out: Tensor = dispatch_attention_fn(*leaves, backend=AttentionBackendName(backend))
            if not out.requires_grad:
                raise ValueError("it has no gradient")
            whole = torch.cat([out.flatten(2), out.detach().flatten(2)], dim=2) if wider else out
            found += [out.detach(), *torch.autograd.grad(whole.float().square().sum(), leaves)]
        return found

    for found, expected in zip(run(name), run("native"), strict=True):
        if not float((found - expected).norm() / expected.norm()) < _ATTENTION_TOLERANCE:
            raise ValueError("its outputs or gradients differ from torch's own by more than rounding")
