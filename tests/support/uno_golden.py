"""Tiny FLUX.1 weights and a LoRA under UNO's own names, and inputs, all made from seeds: what golden outputs are of.

The outputs in ``uno_golden.json`` are those of the public code (bytedance/UNO at d305981) on these weights and inputs,
in float32: for each case the mean, the standard deviation and 16 values at even distances.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import save_file
from torch import Tensor

from customized_grpo.policies.adapters.flux_keys import key_map
from customized_grpo.policies.adapters.uno_lora import layers

HIDDEN, HEADS, TEXT, POOLED, AXES = 32, 2, 24, 20, (4, 6, 6)
DOUBLE = SINGLE = 2
GRID = (3, 4)
"""Of the image, in tokens."""
CASES: dict[str, tuple[tuple[int, int], ...]] = {
    "one": ((4, 4),),
    "two": ((2, 5), (3, 1)),
    "three": ((4, 2), (1, 1), (2, 6)),
}
"""Grids of the references."""
SIGMA, GUIDANCE, RANK = 0.7, 3.5, 4


def transformer() -> FluxTransformer2DModel:
    """diffusers' model of these sizes; its own weights are not used."""
    return FluxTransformer2DModel(
        in_channels=64,
        num_layers=DOUBLE,
        num_single_layers=SINGLE,
        attention_head_dim=HIDDEN // HEADS,
        num_attention_heads=HEADS,
        joint_attention_dim=TEXT,
        pooled_projection_dim=POOLED,
        guidance_embeds=True,
        axes_dims_rope=AXES,
    )


def _noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def original_state() -> dict[str, Tensor]:
    """Every weight under Black Forest Labs' names; norms near 1, all others noise of the usual size."""
    shapes = {name: tuple(tensor.shape) for name, tensor in transformer().state_dict().items()}
    state = {}
    for at, (name, parts) in enumerate(sorted(key_map(DOUBLE, SINGLE, guidance=True).items())):
        shape = (sum(shapes[part][0] for part in parts), *shapes[parts[0]][1:])
        noise = _noise(9000 + at, *shape)
        if name.endswith(".scale"):
            state[name] = 1 + 0.2 * noise
        else:
            state[name] = noise * (shape[1] ** -0.5 if len(shape) == 2 else 0.2)
    return state


def uno_lora_state() -> dict[str, Tensor]:
    """A LoRA in UNO's format, large enough to matter."""
    state = {}
    for at, (place, modules) in enumerate(layers(DOUBLE, SINGLE).items()):
        inner = 5 * HIDDEN if place.endswith(".proj_lora") else HIDDEN
        state[f"{place}.down.weight"] = _noise(7000 + at, RANK, inner) * inner**-0.5
        state[f"{place}.up.weight"] = _noise(8000 + at, len(modules) * HIDDEN, RANK) * 0.4
    return state


def inputs(grids: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """x of 2 samples, text, pooled text, and the latents of the references."""
    x = _noise(1, 2, GRID[0] * GRID[1], 64)
    references = [_noise(10 + k, 1, 16, 2 * h, 2 * w) for k, (h, w) in enumerate(grids)]
    return x, _noise(2, 1, 5, TEXT), _noise(3, 1, POOLED), references


def write_files(folder: Path) -> tuple[Path, Path]:
    """The weights and the LoRA as safetensors files."""
    model, lora = folder / "original.safetensors", folder / "dit_lora.safetensors"
    save_file(original_state(), model)
    save_file(uno_lora_state(), lora)
    return model, lora
