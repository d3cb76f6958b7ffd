"""A LoRA in UNO's own format for the tiny FLUX.1 of ``tiny``."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from customized_grpo.policies.adapters.uno_lora import layers


def uno_file(folder: Path, rank: int = 3, seed: int = 5) -> Path:
    """A LoRA in UNO's format for the tiny model of 1 + 1 blocks and width 64."""
    draw = torch.Generator().manual_seed(seed)
    state = {}
    for place, modules in layers(1, 1).items():
        inner = 5 * 64 if place.endswith(".proj_lora") else 64
        state[f"{place}.down.weight"] = torch.randn(rank, inner, generator=draw) * inner**-0.5
        state[f"{place}.up.weight"] = torch.randn(64 * len(modules), rank, generator=draw) * 0.3
    path = folder / "dit_lora.safetensors"
    save_file(state, path)
    return path
