"""Tiny DINOv2, DINO and CLIP folders whose every weight is a function of its name: what golden scores were recorded on.

Weights are seeded noise and not a library's initialisation, which may change, and large enough that all of them matter.
"""

from pathlib import Path

import torch
from torch import nn
from transformers import (
    BitImageProcessorPil,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
    Dinov2Config,
    Dinov2Model,
    ViTConfig,
    ViTModel,
)

SIDE, PATCH = 56, 14
WORDS = ("a", "red", "dog", "in", "the", "snow")
CONTEXT = 16
VOCABULARY = sorted({letter for word in WORDS for letter in word})


def refill(model: nn.Module) -> None:
    """Overwrite every parameter with noise seeded by its place among the sorted names."""
    for at, (name, parameter) in enumerate(sorted(model.named_parameters())):
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5000 + at))
        with torch.no_grad():
            if parameter.ndim > 1:
                parameter.copy_(noise * 1.2 / noise[0].numel() ** 0.5)
            elif name.endswith("weight") or "lambda" in name:
                parameter.copy_(1.0 + 0.2 * noise)
            elif parameter.ndim == 1:
                parameter.copy_(0.2 * noise)


def save_golden_dinov2(folder: Path) -> Path:
    """DINOv2's architecture, with its preprocessing at a quarter of its size."""
    model = Dinov2Model(
        Dinov2Config(hidden_size=48, num_hidden_layers=3, num_attention_heads=3, image_size=SIDE, patch_size=PATCH)
    )
    refill(model)
    model.save_pretrained(folder)
    BitImageProcessorPil(
        size={"shortest_edge": 64},
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    ).save_pretrained(folder)
    return folder


def save_golden_dino(folder: Path) -> Path:
    """The original DINO's architecture."""
    config = ViTConfig(
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=192,
        image_size=SIDE,
        patch_size=PATCH,
        layer_norm_eps=1e-6,
    )
    model = ViTModel(config, add_pooling_layer=False)
    refill(model)
    model.save_pretrained(folder)
    return folder


def save_golden_clip(folder: Path) -> Path:
    """CLIP's architecture; the end token has the highest number, as in the real vocabulary."""
    text = {
        "hidden_size": 32,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 2 * len(VOCABULARY) + 2,
        "max_position_embeddings": CONTEXT,
        "bos_token_id": 2 * len(VOCABULARY),
        "eos_token_id": 2 * len(VOCABULARY) + 1,
    }
    vision = {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": PATCH,
    }
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
    refill(model)
    with torch.no_grad():
        model.logit_scale.fill_(4.6)
    model.save_pretrained(folder)
    symbols = [*VOCABULARY, *(f"{letter}</w>" for letter in VOCABULARY), "<|startoftext|>", "<|endoftext|>"]
    CLIPTokenizer(vocab={token: at for at, token in enumerate(symbols)}, merges=[]).save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=size).save_pretrained(folder)
    return folder
