"""A tiny FLUX.1 of random weights in diffusers' folder layout, with real tokenizers, for the policy tests."""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxKontextPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from customized_grpo.policies.flux import UNO, Kontext, KontextConfig, UNOConfig

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def _tokenizers() -> tuple[CLIPTokenizer, T5Tokenizer]:
    clip = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    t5 = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0), *((letter, -4.0) for letter in LETTERS)]
    return (
        CLIPTokenizer(vocab={piece: index for index, piece in enumerate(clip)}, merges=[], model_max_length=24),
        T5Tokenizer(vocab=t5, extra_ids=0, model_max_length=64),
    )


def make_tiny_flux(
    folder: Path,
    *,
    seed: int = 0,
    guidance_embeds: bool = True,
    kontext: bool = False,
    transformer: FluxTransformer2DModel | None = None,
) -> Path:
    """Write a folder that ``FluxPipeline.from_pretrained`` opens: 1 + 1 blocks, width 64, VAE factor 8.

    With ``kontext`` it is a ``FluxKontextPipeline``'s.
    """
    clip_tokenizer, t5_tokenizer = _tokenizers()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(clip_tokenizer),
                hidden_size=32,
                intermediate_size=32,
                projection_dim=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=24,
                bos_token_id=clip_tokenizer.bos_token_id,
                eos_token_id=clip_tokenizer.eos_token_id,
                pad_token_id=clip_tokenizer.pad_token_id,
            )
        )
        text_encoder_2 = T5EncoderModel(
            T5Config(
                vocab_size=len(t5_tokenizer),
                d_model=32,
                d_kv=8,
                d_ff=32,
                num_layers=1,
                num_heads=4,
                feed_forward_proj="gated-gelu",
            )
        )
        transformer = transformer or FluxTransformer2DModel(
            in_channels=64,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=4,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            guidance_embeds=guidance_embeds,
            axes_dims_rope=(4, 6, 6),
        )
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(8, 8, 8, 8),
            layers_per_block=1,
            latent_channels=16,
            norm_num_groups=4,
            use_quant_conv=False,
            use_post_quant_conv=False,
            scaling_factor=0.3611,
            shift_factor=0.1159,
        )
    (FluxKontextPipeline if kontext else FluxPipeline)(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=clip_tokenizer,
        text_encoder_2=text_encoder_2,
        tokenizer_2=t5_tokenizer,
        transformer=transformer,
    ).save_pretrained(folder)
    return folder


def tiny_policy(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    *,
    gradient_checkpointing: bool = False,
    guidance: float = 3.5,
) -> UNO:
    """``uno`` on ``make_tiny_flux``'s folder: 64 x 48 pixels (12 tokens), references of a long side of 64."""
    config = UNOConfig(
        model=str(folder),
        height=64,
        width=48,
        guidance=guidance,
        max_sequence_length=16,
        reference_size=64,
        min_references=0,
        gradient_checkpointing=gradient_checkpointing,
    )
    return UNO.load(config, device=torch.device("cpu"), dtype=dtype)


def tiny_kontext(folder: Path, dtype: torch.dtype = torch.float32, **changes: Any) -> Kontext:
    """``flux-kontext`` on a folder of ``make_tiny_flux(kontext=True)``: 64 x 48 pixels, references of about 64 x 64."""
    settings = {
        "height": 64,
        "width": 48,
        "max_sequence_length": 16,
        "reference_size": 64,
        "min_references": 0,
    }
    config = KontextConfig.model_validate({"model": str(folder), **settings, **changes})
    return Kontext.load(config, device=torch.device("cpu"), dtype=dtype)
