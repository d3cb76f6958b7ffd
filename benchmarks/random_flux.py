"""A FluxPipeline of FLUX.1-dev's shapes with random weights that are drawn where they stay."""

from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from customized_grpo.paths import ASSETS

T5_XXL = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}


def random_flux(device: torch.device) -> Any:
    """The pipeline, its weights drawn where they stay; the tokenizers are the miniature's."""
    assets = ASSETS / "flux"
    clip_tokenizer = CLIPTokenizer.from_pretrained(assets / "tokenizer", model_max_length=77)
    t5_tokenizer = T5Tokenizer.from_pretrained(assets / "tokenizer_2", model_max_length=512)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            transformer = FluxTransformer2DModel(guidance_embeds=True)  # all else is FLUX.1's by default
            t5 = T5EncoderModel(T5Config(vocab_size=32128, feed_forward_proj="gated-gelu", **T5_XXL))
            clip = CLIPTextModel(
                CLIPTextConfig(
                    eos_token_id=clip_tokenizer.eos_token_id,
                    bos_token_id=clip_tokenizer.bos_token_id,
                    **CLIP_L,
                )
            )
            torch.set_default_dtype(torch.float32)
            vae = AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                block_out_channels=(128, 256, 512, 512),
                layers_per_block=2,
                latent_channels=16,
                norm_num_groups=32,
                scaling_factor=0.3611,
                shift_factor=0.1159,
                use_quant_conv=False,
                use_post_quant_conv=False,
            )
    finally:
        torch.set_default_dtype(before)
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=clip,
        tokenizer=clip_tokenizer,
        text_encoder_2=t5,
        tokenizer_2=t5_tokenizer,
        transformer=transformer,
    )
