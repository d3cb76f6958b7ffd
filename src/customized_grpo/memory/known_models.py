"""Table of shapes of large or gated models, so that an estimate needs no access to the hub.

The transformers' configurations are the published ones: of FLUX.1 black-forest-labs/flux, ``flux/util.py``; of FLUX.2
black-forest-labs/flux2 and huggingface/diffusers' ``scripts/convert_flux2_to_diffusers.py``; of Qwen-Image-Edit its
``transformer/config.json``; of FLUX.3 [klein] the defaults of diffusers 0.42.1's class. Parameters are those of the
published configurations built on torch's meta device, which the tests do again, and which the headers of the published
weights count: CLIP ViT-L/14's text model, the encoder of T5 v1.1 XXL, Mistral Small 3.2 24B, Qwen 3 4B and 8B,
Qwen 3 VL 4B, Qwen 2.5 VL 7B, and the VAEs of FLUX.1, FLUX.2 (of FLUX.3, too) and Qwen-Image.
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
    """Parts of a pipeline."""

    transformer: str
    """Name of its class in diffusers."""
    config: Mapping[str, Any]
    encoders: Mapping[str, int]
    """Parameters of the parts that only ``encode`` needs, by name."""
    vae: int
    """Parameters."""
    vae_channels: tuple[int, ...]
    """Channels of its levels, the finest first."""


def _flux(guidance: bool) -> KnownModel:
    return KnownModel(
        transformer="FluxTransformer2DModel",
        config={**_FLUX, "guidance_embeds": guidance},
        encoders={"text_encoder": 123_060_480, "text_encoder_2": 4_762_310_656},
        vae=83_819_683,
        vae_channels=(128, 256, 512, 512),
    )


def _flux2(double: int, single: int, heads: int, text: int, encoder: int, *, guidance: bool = False) -> KnownModel:
    return KnownModel(
        transformer="Flux2Transformer2DModel",
        config={
            "num_layers": double,
            "num_single_layers": single,
            "num_attention_heads": heads,
            "joint_attention_dim": text,
            "guidance_embeds": guidance,
        },
        encoders={"text_encoder": encoder},
        vae=84_046_115,
        vae_channels=(128, 256, 512, 512),
    )


def _qwen_image21() -> KnownModel:
    return KnownModel(
        transformer="QwenImage21Transformer2DModel",
        config={},
        encoders={"text_encoder": 8_767_123_696},
        vae=337_740_404,
        vae_channels=(144, 288, 576, 1152, 1152),
    )


def _flux3(*, flow_map: bool) -> KnownModel:
    return KnownModel(
        transformer="Flux3Transformer2DModel",
        config={"flow_map": flow_map},
        encoders={"text_encoder": 4_437_815_808},
        vae=84_046_115,
        vae_channels=(128, 256, 512, 512),
    )


def _qwen_image(**more: bool) -> KnownModel:
    return KnownModel(
        transformer="QwenImageTransformer2DModel",
        config={"num_layers": 60, "num_attention_heads": 24, "joint_attention_dim": 3584, **more},
        encoders={"text_encoder": 8_292_166_656},
        vae=126_892_531,
        vae_channels=(96, 192, 384, 384),
    )


_MISTRAL, _QWEN_4B, _QWEN_8B = 24_011_361_280, 4_022_468_096, 8_190_735_360
_KLEIN_4B, _KLEIN_9B = _flux2(5, 20, 24, 7680, _QWEN_4B), _flux2(8, 24, 32, 12288, _QWEN_8B)

MODELS: Mapping[str, KnownModel] = {
    "black-forest-labs/FLUX.1-dev": _flux(True),
    "black-forest-labs/FLUX.1-Kontext-dev": _flux(True),
    "black-forest-labs/FLUX.1-Krea-dev": _flux(True),
    "black-forest-labs/FLUX.1-schnell": _flux(False),
    "black-forest-labs/FLUX.2-dev": _flux2(8, 48, 48, 15360, _MISTRAL, guidance=True),
    "black-forest-labs/FLUX.2-klein-4B": _KLEIN_4B,
    "black-forest-labs/FLUX.2-klein-base-4B": _KLEIN_4B,
    "black-forest-labs/FLUX.2-klein-9B": _KLEIN_9B,
    "black-forest-labs/FLUX.2-klein-base-9B": _KLEIN_9B,
    "black-forest-labs/FLUX.2-klein-9b-kv": _KLEIN_9B,
    "black-forest-labs/flux-3-image-klein-base": _flux3(flow_map=False),
    "black-forest-labs/flux-3-image-klein": _flux3(flow_map=True),
    "Qwen/Qwen-Image-Edit-2509": _qwen_image(),
    "Qwen/Qwen-Image-Edit-2511": _qwen_image(zero_cond_t=True),
    "Qwen/Qwen-Image-2.1": _qwen_image21(),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownScorer:
    """A model that scores images."""

    parameters: int
    working: int
    """Number of values that a forward of one image holds beside them, roughly; see ``memory.scorers``."""


def _scorer(parameters: int, tokens: int, widest: int, *, maps: int = 0) -> KnownScorer:
    """``maps``: values of attention maps that are held whole."""
    return KnownScorer(parameters=parameters, working=5 * tokens * widest + maps)


_SAM_MAPS = 2 * 4096**2
"""Per head: SAM adds relative positions to a global attention's map of 64 x 64 tokens."""

SCORERS: Mapping[str, KnownScorer] = {
    "MizzenAI/HPSv3": _scorer(7_748_610_610, 900, 18944),
    "facebook/dinov2-small": _scorer(22_056_576, 257, 1536),
    "facebook/dinov2-base": _scorer(86_580_480, 257, 3072),
    "facebook/dinov2-large": _scorer(304_368_640, 257, 4096),
    "facebook/dinov2-giant": _scorer(1_136_480_768, 257, 8192),
    "facebook/dino-vits16": _scorer(21_665_664, 197, 1536),
    "facebook/dino-vits8": _scorer(21_670_272, 785, 1536),
    "facebook/dino-vitb16": _scorer(85_798_656, 197, 3072),
    "facebook/dino-vitb8": _scorer(85_807_872, 785, 3072),
    "openai/clip-vit-base-patch32": _scorer(151_277_313, 50, 3072),
    "openai/clip-vit-base-patch16": _scorer(149_620_737, 197, 3072),
    "openai/clip-vit-large-patch14": _scorer(427_616_513, 257, 4096),
    "openai/clip-vit-large-patch14-336": _scorer(427_944_193, 577, 4096),
    "yuvalkirstain/PickScore_v1": _scorer(986_109_441, 257, 5120),
    "google/siglip2-base-patch16-224": _scorer(375_187_970, 196, 3072),
    "IDEA-Research/grounding-dino-base": _scorer(232_315_264, 40_000, 512),
    "facebook/sam-vit-base": _scorer(93_735_728, 4096, 3072, maps=12 * _SAM_MAPS),
    "facebook/sam-vit-large": _scorer(312_343_088, 4096, 4096, maps=16 * _SAM_MAPS),
    "facebook/sam-vit-huge": _scorer(641_090_864, 4096, 5120, maps=16 * _SAM_MAPS),
}
"""Models of rewards and metrics by hub id: those that our defaults and documents name. HPSv3 is without the head of its
language model, which is not loaded."""

UNO_LORA = 956_301_312
"""Number of parameters of UNO's released LoRA (rank 512), from its keys and FLUX.1's widths."""
