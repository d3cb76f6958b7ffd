"""A tiny Qwen-Image-Edit-Plus of random weights in diffusers' folder layout, with a real tokenizer.

Qwen2VLProcessor can't be made without torchvision, so its part of the folder is written by hand.
"""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImageEditPlusPipeline,
    QwenImageTransformer2DModel,
)
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
)

from customized_grpo.policies.qwen_image import QwenImageEditPlus, QwenImageEditPlusConfig
from tiny_hpsv3 import byte_symbols

WIDTH = 16
SCHEDULER = {
    "base_image_seq_len": 256, "base_shift": 0.5, "max_image_seq_len": 8192, "max_shift": 0.9, "shift": 1.0,
    "shift_terminal": 0.02, "time_shift_type": "exponential", "use_dynamic_shifting": True,
}  # fmt: skip
"""Of Qwen/Qwen-Image-Edit-2509, as public training code repeats it."""
_SPECIAL = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>",
    # Most of the template as one token, because all other tokens are bytes; of what is left 64 are dropped.
    "Generate a new image that meets the user's requirements while maintaining consistency",
    "with the original input where appropriate.",
    "then explain how the user's text instruction should alter or modify the image.",
]  # fmt: skip


def _tokenizer() -> Qwen2Tokenizer:
    return Qwen2Tokenizer(
        vocab={symbol: byte for byte, symbol in enumerate(byte_symbols())},
        merges=[],
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=_SPECIAL[1:],
    )


def _text_encoder(tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLForConditionalGeneration:
    text = {
        "vocab_size": len(tokenizer), "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "bos_token_id": None, "eos_token_id": None,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0},
    }  # fmt: skip
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": WIDTH,
        "fullatt_block_indexes": [0],
    }  # fmt: skip
    ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>")
        for name, token in {
            "image": "image_pad", "video": "video_pad", "vision_start": "vision_start", "vision_end": "vision_end",
        }.items()
    }  # fmt: skip
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(text_config=text, vision_config=vision, bos_token_id=None, eos_token_id=None, **ids)
    )


def make_tiny_qwen(folder: Path, *, zero_cond_t: bool = False, num_layers: int = 2) -> Path:
    """Write such a folder: 2 blocks of width 32; ``zero_cond_t`` is what 2511 has and 2509 hasn't."""
    tokenizer = _tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        text_encoder = _text_encoder(tokenizer)
        transformer = QwenImageTransformer2DModel(
            num_layers=num_layers,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            axes_dims_rope=(4, 6, 6),
            zero_cond_t=zero_cond_t,
        )
        vae = AutoencoderKLQwenImage(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    pipeline = QwenImageEditPlusPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**SCHEDULER),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        processor=None,
        transformer=transformer,
    )
    pipeline.save_pretrained(folder)
    Qwen2VLImageProcessorPil().save_pretrained(folder / "processor")
    tokenizer.save_pretrained(folder / "processor")
    index = json.loads((folder / "model_index.json").read_text())
    index["processor"] = ["transformers", "Qwen2VLProcessor"]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def tiny_qwen(folder: Path, dtype: torch.dtype = torch.float32, **changes: Any) -> QwenImageEditPlus:
    """The policy of such a folder: 64 x 48 pixels (12 tokens), references of about 64 x 64."""
    settings = {"model": str(folder), "height": 64, "width": 48, "reference_size": 64, **changes}
    config = QwenImageEditPlusConfig.model_validate(settings)
    return QwenImageEditPlus.load(config, device=torch.device("cpu"), dtype=dtype)


def stock_pipeline(folder: Path, *, told: bool = True) -> QwenImageEditPlusPipeline:
    """diffusers' pipeline of such a folder, with transformers' own processor.

    Args:
        folder: see ``make_tiny_qwen``.
        told: whether Qwen2.5-VL is told which tokens are of images, as transformers 5 needs and diffusers forgets.
    """
    pipeline = QwenImageEditPlusPipeline.from_pretrained(folder, processor=None)
    processor: Any = Qwen2VLProcessor.__new__(Qwen2VLProcessor)  # its __init__ wants torchvision, for videos
    processor.tokenizer = pipeline.tokenizer
    processor.image_processor = Qwen2VLImageProcessorPil.from_pretrained(folder, subfolder="processor")
    processor.chat_template = None
    for kind in ("image", "video"):
        setattr(processor, f"{kind}_token", f"<|{kind}_pad|>")
        setattr(processor, f"{kind}_token_id", pipeline.tokenizer.convert_tokens_to_ids(f"<|{kind}_pad|>"))
    pipeline.processor = processor

    def tell(_: Any, args: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**given, "mm_token_type_ids": (given["input_ids"] == processor.image_token_id).int()}

    if told:
        pipeline.text_encoder.register_forward_pre_hook(tell, with_kwargs=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
