"""A tiny Qwen-Image-2.1 of random weights in diffusers' folder layout, of the libraries' real classes.

Qwen3VLProcessor can't be made without torchvision, so its part of the folder is written by hand.
"""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLQwenImage21,
    FlowMatchEulerDiscreteScheduler,
    QwenImage21Pipeline,
    QwenImage21Transformer2DModel,
)
from transformers import (
    Qwen2Tokenizer,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
)

from customized_grpo.policies.qwen_image21 import QwenImage21, QwenImage21Config
from tiny_hpsv3 import byte_symbols
from tiny_qwen_image import SCHEDULER

WIDTH = 16
_SPECIAL = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>",
]  # fmt: skip
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}"
)


def _tokenizer() -> Qwen2Tokenizer:
    made = Qwen2Tokenizer(
        vocab={symbol: byte for byte, symbol in enumerate(byte_symbols())},
        merges=[],
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=_SPECIAL[1:],
    )
    made.chat_template = _TEMPLATE
    return made


def _text_encoder(tokenizer: Qwen2Tokenizer) -> Qwen3VLForConditionalGeneration:
    text = {
        "vocab_size": len(tokenizer), "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "bos_token_id": None, "eos_token_id": None,
        "rope_parameters": {
            "rope_type": "default", "mrope_section": [2, 1, 1], "mrope_interleaved": True, "rope_theta": 10000.0,
        },
    }  # fmt: skip
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": WIDTH,
        "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
    }  # fmt: skip
    ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>")
        for name, token in {
            "image": "image_pad", "video": "video_pad", "vision_start": "vision_start", "vision_end": "vision_end",
        }.items()
    }  # fmt: skip
    return Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision, **ids))


def _processor(tokenizer: Any, pictures: Any) -> Any:
    """transformers' own, whose __init__ wants torchvision, for videos."""
    processor: Any = Qwen3VLProcessor.__new__(Qwen3VLProcessor)
    processor.tokenizer, processor.image_processor, processor.chat_template = tokenizer, pictures, _TEMPLATE
    for kind in ("image", "video"):
        setattr(processor, f"{kind}_token", f"<|{kind}_pad|>")
        setattr(processor, f"{kind}_token_id", tokenizer.convert_tokens_to_ids(f"<|{kind}_pad|>"))
    return processor


def make_tiny_qwen21(folder: Path, *, num_layers: int = 2, **changes: Any) -> Path:
    """Write such a folder: blocks of width 32; ``changes`` are of the transformer's configuration."""
    tokenizer = _tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        text_encoder = _text_encoder(tokenizer)
        transformer = QwenImage21Transformer2DModel(
            num_layers=num_layers,
            attention_head_dim=16,
            num_attention_heads=2,
            context_in_dim=WIDTH,
            axes_dims_rope=(4, 6, 6),
            **changes,
        )
        vae = AutoencoderKLQwenImage21(base_dim=4, decoder_base_dim=4, dim_mult=[1, 1, 1, 1, 1], num_res_blocks=1)
    # Of the real processor's size, so that references of few pixels are its own size in Qwen3-VL, too.
    pictures = Qwen2VLImageProcessorPil(patch_size=16, size={"shortest_edge": 32 * 32, "longest_edge": 4096 * 4096})
    parts: dict[str, Any] = {"vae": vae, "text_encoder": text_encoder, "transformer": transformer}
    scheduler = FlowMatchEulerDiscreteScheduler(**SCHEDULER)
    pipeline = QwenImage21Pipeline(scheduler=scheduler, processor=_processor(tokenizer, pictures), **parts)
    pipeline.register_modules(processor=None)
    pipeline.save_pretrained(folder)
    pictures.save_pretrained(folder / "processor")
    tokenizer.save_pretrained(folder / "processor")
    index = json.loads((folder / "model_index.json").read_text())
    index["processor"] = ["transformers", "Qwen3VLProcessor"]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def tiny_qwen21(folder: Path, dtype: torch.dtype = torch.float32, **changes: Any) -> QwenImage21:
    """The policy of such a folder: 64 x 96 pixels (24 tokens), references of about 64 x 64."""
    settings = {"model": str(folder), "height": 64, "width": 96, "reference_size": 64, **changes}
    config = QwenImage21Config.model_validate(settings)
    return QwenImage21.load(config, device=torch.device("cpu"), dtype=dtype)


def processor_of(folder: Path) -> Any:
    """transformers' own processor of text and pictures, of such a folder."""
    tokenizer = Qwen2Tokenizer.from_pretrained(folder, subfolder="processor")
    return _processor(tokenizer, Qwen2VLImageProcessorPil.from_pretrained(folder, subfolder="processor"))


def stock_qwen21(folder: Path) -> QwenImage21Pipeline:
    """diffusers' pipeline of such a folder."""
    pipeline = QwenImage21Pipeline.from_pretrained(folder, processor=processor_of(folder))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
