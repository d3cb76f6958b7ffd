"""Shapes of models that are too large, or gated, to be looked at before a run: facts, so that an estimate needs no hub.

The transformer's configuration is the published one of FLUX.1 (black-forest-labs/flux, ``flux/util.py``, and
``transformer/config.json`` of the hub's repositories); it is also the default of diffusers' class but for
``guidance_embeds``. Parameters are those of the published configurations built on torch's meta device, which the tests
do again: CLIP ViT-L/14's text model, the encoder of T5 v1.1 XXL, and FLUX's VAE.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_FLUX: Mapping[str, Any] = {
    "patch_size": 1,
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "axes_dims_rope": (16, 56, 56),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """What a pipeline is made of."""

    transformer: str
    """Class of diffusers."""
    config: Mapping[str, Any]
    encoders: Mapping[str, int]
    """Parameters of what only ``encode`` needs, by the part's name."""
    vae: int
    """Parameters."""
    vae_channels: tuple[int, ...]
    """Of its levels, the finest first."""


def _flux(guidance: bool) -> KnownModel:
    return KnownModel(
        transformer="FluxTransformer2DModel",
        config={**_FLUX, "guidance_embeds": guidance},
        encoders={"text_encoder": 123_060_480, "text_encoder_2": 4_762_310_656},
        vae=83_819_683,
        vae_channels=(128, 256, 512, 512),
    )


MODELS: Mapping[str, KnownModel] = {
    "black-forest-labs/FLUX.1-dev": _flux(True),
    "black-forest-labs/FLUX.1-Kontext-dev": _flux(True),
    "black-forest-labs/FLUX.1-Krea-dev": _flux(True),
    "black-forest-labs/FLUX.1-schnell": _flux(False),
}

REWARD_BYTES: Mapping[str, int] = {
    "facebook/dinov2-base": 86_580_480 * 4,
    "openai/clip-vit-large-patch14": 427_616_513 * 4,
    "openai/clip-vit-base-patch32": 151_277_313 * 4,
}
"""Weights of rewards' models as these rewards hold them (float32), by hub id."""

UNO_LORA = 956_301_312
"""Values of UNO's released LoRA (rank 512), as its keys and FLUX.1's widths give them."""
