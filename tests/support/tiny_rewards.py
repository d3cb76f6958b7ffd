"""Random DINOv2 and CLIP folders of a few kilobytes, and random groups: what reward tests run on."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import (
    BitImageProcessorPil,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
    Dinov2Config,
    Dinov2Model,
)

from customized_grpo.rewards.base import Reward
from customized_grpo.types import Example

SIDE = 28
WORDS = ("a", "red", "blue", "dog", "cat", "in", "the", "snow", "on", "beach")
MAX_TOKENS = 8


def save_dino(folder: Path) -> Path:
    """A random ``Dinov2Model`` with its processor."""
    config = Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, mlp_ratio=2, image_size=SIDE, patch_size=7
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Dinov2Model(config).save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    BitImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=size).save_pretrained(folder)
    return folder


def save_clip(folder: Path) -> Path:
    """A random ``CLIPModel`` with its processor and a tokenizer of ten words."""
    symbols = ["<|startoftext|>", "<|endoftext|>"]
    letters = sorted({letter for word in WORDS for letter in word})
    vocabulary = [*symbols, *letters, *(f"{letter}</w>" for letter in letters)]
    tokenizer = CLIPTokenizer(vocab={token: at for at, token in enumerate(vocabulary)}, merges=[])
    text = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": len(vocabulary),
        "max_position_embeddings": MAX_TOKENS,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": 7,
    }
    with torch.random.fork_rng():
        torch.manual_seed(1)
        CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=size).save_pretrained(folder)
    return folder


def pictures(count: int, seed: int = 0, height: int = 32, width: int = 40) -> torch.Tensor:
    """Random smooth images, uint8 (count, height, width, 3)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    return (fine * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def example(num_references: int = 2, *, prompt: str = "a red dog", key: str = "dog-1") -> Example:
    """An example with random references."""
    references: Any = pictures(num_references, seed=100, height=36, width=30).numpy() if num_references else []
    return Example(key=key, prompt=prompt, references=tuple(Image.fromarray(one) for one in references))


def check_batch(reward: Reward, one: Example, images: torch.Tensor) -> None:
    """Each image scores in a batch of all what it scores alone, up to rounding far below what tells images apart."""
    batch = reward(one, images)
    alone = torch.cat([reward(one, image[None]) for image in images])
    assert batch.isfinite().all()
    assert batch.std() > 1e-3
    assert float((batch - alone).abs().max()) < 1e-3 * float(batch.std())
