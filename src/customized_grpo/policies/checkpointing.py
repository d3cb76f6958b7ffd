"""Selective activation checkpointing: a share of the transformer's blocks is computed again in the backward pass.

It is diffusers' own gradient checkpointing with another function for the blocks. The first blocks of the forward are
the ones: the backward pass begins with the last, so what those kept is free again by the time a block is computed anew.
"""

import math
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


def repeated_blocks(transformer: Any) -> list[tuple[str, nn.Module]]:
    """Name and module of every repeated block in the order of the forward, as diffusers lists their classes."""
    classes = set(transformer._repeated_blocks)
    return [(name, block) for name, block in transformer.named_modules() if type(block).__name__ in classes]


def num_checkpointed(share: float, num_blocks: int) -> int:
    """How many of the blocks a share is: at least as much as was asked for."""
    return math.ceil(share * num_blocks - 1e-9)


def checkpoint_blocks(transformer: nn.Module, share: float) -> None:
    """Keep of the first ``share`` of the blocks nothing but their inputs, and of the others all that autograd wants.

    Args:
        transformer: of diffusers.
        share: 0 to 1.

    Raises:
        ValueError: the model doesn't support it, or names no blocks to take a part of.
    """
    model: Any = transformer
    if share == 1:
        model.enable_gradient_checkpointing()
        return
    if not model._repeated_blocks:
        raise ValueError(
            f"policy.gradient_checkpointing: given {share:g}, but {type(model).__name__} names no repeated blocks to "
            "take a share of; use true or false"
        )
    blocks = [block for _, block in repeated_blocks(model)]
    chosen = frozenset(blocks[: num_checkpointed(share, len(blocks))])

    def run(block: nn.Module, *given: Any) -> Any:
        if block in chosen:
            return checkpoint(block, *given, use_reentrant=False)
        return block(*given)

    model.enable_gradient_checkpointing(run)
