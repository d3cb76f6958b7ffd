"""A folder like that of Qwen2-VL-7B-Instruct and a file like HPSv3's, a few hundred kilobytes, the same every time.

The names of the weights are those of the released checkpoint, written out here: a wrong renaming can't hide.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

WIDTH, LAYERS, HEADS, KEY_HEADS, INNER = 32, 2, 4, 2, 48
VISION, BLOCKS = 32, 2
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
ROWS = 256 + len(SPECIAL) + 1
"""Bytes, special tokens, and the reward token that HPSv3 adds."""


def save_base(folder: Path) -> Path:
    """Configuration, tokenizer and image processor, in the form of the hub's Qwen2-VL-7B-Instruct."""
    config = {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        "bos_token_id": 256,
        "eos_token_id": 258,
        "vision_start_token_id": 259,
        "vision_end_token_id": 260,
        "vision_token_id": 261,
        "image_token_id": 262,
        "video_token_id": 263,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "hidden_size": WIDTH,
        "initializer_range": 0.02,
        "intermediate_size": INNER,
        "max_position_embeddings": 32768,
        "max_window_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KEY_HEADS,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "use_cache": True,
        "use_sliding_window": False,
        "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
        # As in the hub's file, it is larger than the tokenizer, and training cut it to ROWS.
        "vocab_size": 320,
        "vision_config": {
            "depth": BLOCKS,
            "embed_dim": VISION,
            "mlp_ratio": 2,
            "num_heads": 2,
            "in_chans": 3,
            "hidden_size": WIDTH,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
        },
    }
    processor = {
        "min_pixels": 3136,
        "max_pixels": 12845056,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2VLProcessor",
    }
    added = {
        str(256 + at): {
            "content": token, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
            "special": True,
        }
        for at, token in enumerate(SPECIAL)
    }  # fmt: skip
    tokenizer = {
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": list(SPECIAL[1:]),
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "errors": "replace",
        "model_max_length": 32768,
        "padding_side": "left",
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    files = {"config": config, "preprocessor_config": processor, "tokenizer_config": tokenizer}
    files["vocab"] = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder


def save_checkpoint(file: Path) -> Path:
    """``HPSv3.safetensors`` with random weights."""
    save_file(weights(), file)
    return file


def weights() -> dict[str, Tensor]:
    """All weights, each from a generator seeded by its place in the sorted names; large enough that all matter."""
    made = {}
    for at, (name, shape) in enumerate(sorted(_shapes().items())):
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(1000 + at))
        if len(shape) > 1:
            made[name] = noise * 1.5 / (noise[0].numel() ** 0.5)
        else:
            is_norm = name.endswith("norm.weight") or ".ln_q.weight" in name or ".norm" in name
            made[name] = noise * 0.1 + (1.0 if is_norm and name.endswith("weight") else 0.0)
    made["model.embed_tokens.weight"] = made["model.embed_tokens.weight"] * 3.0
    return made


def _shapes() -> dict[str, tuple[int, ...]]:
    head = WIDTH // HEADS
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (ROWS, WIDTH),
        "model.norm.weight": (WIDTH,),
        "lm_head.weight": (ROWS, WIDTH),
        "visual.patch_embed.proj.weight": (VISION, 3, 2, 14, 14),
        "rm_head.0.weight": (1024, WIDTH),
        "rm_head.0.bias": (1024,),
        "rm_head.3.weight": (16, 1024),
        "rm_head.3.bias": (16,),
        "rm_head.5.weight": (2, 16),
        "rm_head.5.bias": (2,),
    }
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        for name, out in {"q": WIDTH, "k": KEY_HEADS * head, "v": KEY_HEADS * head}.items():
            shapes |= {
                f"{at}self_attn.{name}_proj.weight": (out, WIDTH),
                f"{at}self_attn.{name}_proj.bias": (out,),
            }
        shapes |= {
            f"{at}self_attn.o_proj.weight": (WIDTH, WIDTH),
            f"{at}mlp.gate_proj.weight": (INNER, WIDTH),
            f"{at}mlp.up_proj.weight": (INNER, WIDTH),
            f"{at}mlp.down_proj.weight": (WIDTH, INNER),
            f"{at}input_layernorm.weight": (WIDTH,),
            f"{at}post_attention_layernorm.weight": (WIDTH,),
        }
    linear: dict[str, tuple[int, int]] = {
        "merger.mlp.0": (4 * VISION, 4 * VISION),
        "merger.mlp.2": (WIDTH, 4 * VISION),
    }
    norms = ["merger.ln_q"]
    for block in range(BLOCKS):
        at = f"blocks.{block}."
        linear |= {
            f"{at}attn.qkv": (3 * VISION, VISION),
            f"{at}attn.proj": (VISION, VISION),
            f"{at}mlp.fc1": (2 * VISION, VISION),
            f"{at}mlp.fc2": (VISION, 2 * VISION),
        }
        norms += [f"{at}norm1", f"{at}norm2"]
    for name, (out, into) in linear.items():
        shapes |= {f"visual.{name}.weight": (out, into), f"visual.{name}.bias": (out,)}
    for name in norms:
        shapes |= {f"visual.{name}.weight": (VISION,), f"visual.{name}.bias": (VISION,)}
    return shapes


def byte_symbols() -> list[str]:
    """The printable stand-in of each byte in byte-level BPE (GPT-2's table)."""
    plain = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    symbols, free = [], 256
    for byte in range(256):
        symbols.append(chr(byte if byte in plain else free))
        free += byte not in plain
    return symbols
