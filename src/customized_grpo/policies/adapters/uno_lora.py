"""UNO's LoRA format, ``dit_lora.safetensors``: its names of layers, which are XLabs' too, and writing it.

Its keys are those of attention processors of the original FLUX, without a scale: one A for q, k and v together, and
B's rows in that order. 1 is the image's stream and 2 the text's. r rank.
"""

import re
from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from customized_grpo.policies.adapters.low_rank import Factors, Update, shown

REPOSITORY: Final = "bytedance-research/UNO"
FILE_NAME: Final = "dit_lora.safetensors"
"""File name in UNO's repository on the hub."""

_LAYERS: Final[Mapping[tuple[str, str], Mapping[str, tuple[str, ...]]]] = {
    ("double_blocks", "transformer_blocks"): {
        "qkv_lora1": ("attn.to_q", "attn.to_k", "attn.to_v"),
        "proj_lora1": ("attn.to_out.0",),
        "qkv_lora2": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        "proj_lora2": ("attn.to_add_out",),
    },
    ("single_blocks", "single_transformer_blocks"): {
        "qkv_lora": ("attn.to_q", "attn.to_k", "attn.to_v"),
        "proj_lora": ("proj_out",),
    },
}


def layers(num_double: int, num_single: int) -> dict[str, tuple[str, ...]]:
    """UNO's ``<block>.processor.<layer>`` -> the modules whose update it holds, for a model of so many blocks."""
    counts = {"double_blocks": num_double, "single_blocks": num_single}
    return {
        f"{theirs}.{i}.processor.{layer}": tuple(f"{ours}.{i}.{one}" for one in modules)
        for (theirs, ours), block in _LAYERS.items()
        for i in range(counts[theirs])
        for layer, modules in block.items()
    }


def to_uno(update: Update) -> dict[str, Tensor]:
    """The file of an update, exact. UNO's code reads one rank for all layers, so smaller ones are filled with zeros.

    Where q, k and v of a layer share one A, the rank stays as it is. Else it becomes the sum of theirs: their A stand
    one above another, and B is block-diagonal.

    Raises:
        ValueError: the update has layers that UNO's format has no place for, or lacks some that its code needs.
    """
    places = layers(*(_count(update, ours) for _, ours in _LAYERS))
    wanted = {module for modules in places.values() for module in modules}
    surplus, missing = sorted(update.keys() - wanted), sorted(wanted - update.keys())
    if surplus:
        raise ValueError(
            f"UNO's format holds attention and output projections only, and this adapter has {shown(surplus)}; train "
            "with policy.lora.targets=[uno], or export it in diffusers' format"
        )
    if missing or not update:
        raise ValueError(
            f"UNO's code needs a LoRA of every block's projections, and this adapter lacks {shown(missing) or 'all'}; "
            "train with policy.lora.targets=[uno], or export it in diffusers' format"
        )
    merged = {place: _stacked([update[module].folded() for module in modules]) for place, modules in places.items()}
    rank = max(one.rank for one in merged.values())
    tensors: dict[str, Tensor] = {}
    for place, one in merged.items():
        fill = rank - one.rank
        tensors[f"{place}.down.weight"] = torch.nn.functional.pad(one.a, (0, 0, 0, fill)).contiguous()
        tensors[f"{place}.up.weight"] = torch.nn.functional.pad(one.b, (0, fill)).contiguous()
    return tensors


def _count(update: Update, blocks: str) -> int:
    numbers = [int(found[1]) for name in update if (found := re.match(rf"{blocks}\.(\d+)\.", name))]
    return max(numbers, default=-1) + 1


def _stacked(parts: list[Factors]) -> Factors:
    """One pair of factors for layers that lie one above another."""
    if all(torch.equal(one.a, parts[0].a) for one in parts):
        return Factors(parts[0].a, torch.cat([one.b for one in parts]))
    return Factors(torch.cat([one.a for one in parts]), torch.block_diag(*(one.b for one in parts)))
