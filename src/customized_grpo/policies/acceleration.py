"""Acceleration of a policy's transformer: bitsandbytes weights, attention backend, compiled blocks.

None of it is on by default, and each changes the velocity by rounding; the guard on the first replay's ratio
(``train.ratio_guard``) checks that rollout and replay still compute the same.
"""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from customized_grpo.policies.checkpointing import checkpoint_blocks

if TYPE_CHECKING:
    from diffusers import BitsAndBytesConfig

Quantization = Literal["none", "8bit", "4bit"]

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
    if config.gradient_checkpointing and pipeline.transformer is not None:
        checkpoint_blocks(pipeline.transformer, float(config.gradient_checkpointing))


def apply(
    transformer: nn.Module,
    device: torch.device,
    *,
    quantization: Quantization,
    attention: str | None,
    compile_blocks: bool,
) -> None:
    """Check the weights' quantisation, set the attention backend, and compile the repeated blocks.

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
    if compile_blocks:
        try:
            model.compile_repeated_blocks(dynamic=False)  # a shape seen before reuses its code
        except (ValueError, AttributeError) as error:
            raise ValueError(
                f"policy.compile: {type(model).__name__} names no repeated blocks; set it to false"
            ) from error


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
