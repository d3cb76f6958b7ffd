"""Layers of diffusers' transformers that ComfyUI reads from a LoRA file by the names that diffusers gives them.

ComfyUI maps the keys that it knows to its own model, and drops all others with the line "lora key not loaded" in its
log. Its scale is a layer's ``.alpha`` over the rank, or 1 where there is none: it reads no header. This is what
``model_lora_keys_unet`` of its ``comfy/lora.py`` and ``flux_to_diffusers`` of ``comfy/utils.py`` did in November 2026.
"""

import re
from collections.abc import Iterable
from typing import Final

_QKV: Final = r"attn\.(to_q|to_k|to_v|add_q_proj|add_k_proj|add_v_proj|to_out\.0|to_add_out)"
_FLUX_ENDS: Final = r"x_embedder|context_embedder|proj_out|norm_out\.linear"
_READ: Final = {
    "FLUX.1": re.compile(
        rf"transformer_blocks\.\d+\.({_QKV}|(norm1|norm1_context)\.linear|(ff|ff_context)\.net\.(0\.proj|2))|"
        r"single_transformer_blocks\.\d+\.(attn\.(to_q|to_k|to_v)|proj_mlp|proj_out|norm\.linear)|"
        rf"time_text_embed\.(timestep|text|guidance)_embedder\.linear_[12]|{_FLUX_ENDS}"
    ),
    "FLUX.2": re.compile(
        rf"transformer_blocks\.\d+\.({_QKV}|(ff|ff_context)\.linear_(in|out))|"
        rf"single_transformer_blocks\.\d+\.attn\.(to_qkv_mlp_proj|to_out)|{_FLUX_ENDS}"
    ),
    # ComfyUI's own module names are diffusers' here, so that all of them are keys.
    "Qwen-Image": re.compile(r".+"),
    "Qwen-Image-2.1": re.compile(r".+"),
}
"""Family -> pattern of a whole module name that is read behind ``transformer.``."""


def unread(modules: Iterable[str], family: str | None) -> list[str] | None:
    """Modules of an adapter that ComfyUI drops.

    Args:
        modules: diffusers' names.
        family: the model; see ``_READ``.

    Returns:
        Their names, sorted; None where it isn't known what ComfyUI reads of this family.
    """
    pattern = _READ.get(family or "")
    return None if pattern is None else sorted(name for name in modules if not pattern.fullmatch(name))
