"""Tiny FLUX.2 models of random weights in diffusers' folder layout, with real tokenizers, for the policy tests."""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinKVPipeline,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
)
from transformers import (
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from customized_grpo.policies.base import PolicyConfig
from customized_grpo.policies.flux2 import Flux2, Flux2Config, Flux2Klein, Flux2KleinConfig
from tiny_hpsv3 import byte_symbols

WIDTH = 8
"""Of the text encoders; the transformer reads three of their layers side by side."""
_SPECIAL = ["<pad>", "<s>", "</s>", "[IMG]"]
# Of the system's long message only the beginning, so that few byte tokens are enough.
_TEMPLATE = (
    "<s>{% for message in messages %}[{{ message['role'][:3] }}]{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{{ part['text'][:4] if message['role'] == 'system' else part['text'] }}{% endfor %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}[ass]{% endif %}"
)


def make_tokenizer() -> Qwen2Tokenizer:
    """Bytes, and a chat template that takes what FLUX.2's pipelines give it."""
    vocab = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
    made = Qwen2Tokenizer(
        vocab=vocab, merges=[], pad_token="<pad>", eos_token="</s>", additional_special_tokens=_SPECIAL
    )
    made.chat_template = _TEMPLATE
    return made


def _mistral(rows: int) -> Mistral3ForConditionalGeneration:
    text = {
        "model_type": "mistral", "vocab_size": rows, "hidden_size": WIDTH, "intermediate_size": WIDTH,
        "num_hidden_layers": 30, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4,
        "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    vision = {
        "model_type": "pixtral", "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 1,
        "num_attention_heads": 2, "head_dim": 4, "patch_size": 14, "image_size": 28,
    }  # fmt: skip
    return Mistral3ForConditionalGeneration(
        Mistral3Config(text_config=text, vision_config=vision, image_token_index=rows - 1)
    )


def _qwen3(rows: int) -> Qwen3ForCausalLM:
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=rows,
            hidden_size=WIDTH,
            intermediate_size=WIDTH,
            num_hidden_layers=27,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=4,
            bos_token_id=None,
            eos_token_id=None,
        )
    )


def make_tiny_flux2(
    folder: Path, *, klein: bool = False, distilled: bool = False, keys_kept: bool = False, layers: int = 1
) -> Path:
    """Write a folder of ``Flux2Pipeline`` or one of [klein]'s: ``layers`` blocks of each kind, width 32."""
    tokenizer = make_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        text_encoder: Any = _qwen3(len(tokenizer)) if klein else _mistral(len(tokenizer))
        transformer = Flux2Transformer2DModel(
            in_channels=128,
            num_layers=layers,
            num_single_layers=layers,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=3 * WIDTH,
            timestep_guidance_channels=16,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=not klein,
        )
        vae = AutoencoderKLFlux2(
            block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8),
            layers_per_block=1,
            latent_channels=32,
            norm_num_groups=4,
            sample_size=64,
        )
        vae.bn.running_mean.normal_()
        vae.bn.running_var.uniform_(0.5, 2.0)
    parts = {
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type="exponential"),
        "vae": vae,
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
        "transformer": transformer,
    }
    kind = Flux2KleinKVPipeline if keys_kept else Flux2KleinPipeline
    made: Any = kind(**parts, is_distilled=distilled) if klein else Flux2Pipeline(**parts)
    made.save_pretrained(folder)
    return folder


def tiny_flux2(folder: Path, dtype: torch.dtype = torch.float32, **changes: Any) -> Flux2 | Flux2Klein:
    """The policy of such a folder: 64 x 48 pixels (12 tokens) and 512 text tokens cut to 40."""
    klein = "Klein" in (folder / "model_index.json").read_text()
    settings = {"model": str(folder), "height": 64, "width": 48, "max_sequence_length": 40, **changes}
    config: PolicyConfig = (Flux2KleinConfig if klein else Flux2Config).model_validate(settings)
    policy: type[Any] = Flux2Klein if klein else Flux2
    loaded: Flux2 | Flux2Klein = policy.load(config, device=torch.device("cpu"), dtype=dtype)
    return loaded
