"""Selective activation checkpointing: a share of the transformer's blocks is recomputed in the backward pass.

It is diffusers' own gradient checkpointing with another function for the blocks. The first blocks of the forward are
recomputed: the backward pass begins with the last ones, whose activations are freed by then. A block recomputes all of
its operators, or only the cheap ones (torch's selective activation checkpointing).
"""

import math
from functools import partial
from typing import Any, Literal

from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

Recompute = Literal["all", "cheap"]

_PRODUCTS = frozenset({"mm", "addmm", "bmm", "baddbmm", "convolution", "_scaled_mm", "_int_mm", "lora_product"})
"""Operators with arithmetic to spare, by name; the others' outputs cost only traffic of memory to make again."""


def repeated_blocks(transformer: Any) -> list[tuple[str, nn.Module]]:
    """Name and module of every repeated block in the order of the forward, as diffusers lists their classes.

    FSDP2 gives each a class of its own, which derives from the block's.
    """
    classes = set(transformer._repeated_blocks)
    return [
        (name, block)
        for name, block in transformer.named_modules()
        if not classes.isdisjoint(one.__name__ for one in type(block).__mro__)
    ]


def num_checkpointed(share: float, num_blocks: int) -> int:
    """Number of blocks in a share, rounded up."""
    return math.ceil(share * num_blocks - 1e-9)


def checkpoint_blocks(transformer: nn.Module, share: float, recompute: Recompute = "all") -> None:
    """Store only the inputs of the first ``share`` of the blocks, and all activations of the others.

    Args:
        transformer: a model of diffusers.
        share: 0 to 1.
        recompute: what such a block computes again: ``all``, or all but products and attention, whose outputs are
            stored, too.

    Raises:
        ValueError: the model doesn't support it, or names no repeated blocks.
    """
    model: Any = transformer
    again = partial(_recomputed, cheap=recompute == "cheap")
    if share == 1:
        model.enable_gradient_checkpointing(again)
        return
    if not model._repeated_blocks:
        raise ValueError(
            f"policy.gradient_checkpointing: given {share:g}, but {type(model).__name__} names no repeated blocks to "
            "take a share of; use true or false"
        )
    blocks = [block for _, block in repeated_blocks(model)]
    chosen = frozenset(blocks[: num_checkpointed(share, len(blocks))])

    def run(block: nn.Module, *given: Any) -> Any:
        return again(block, *given) if block in chosen else block(*given)

    model.enable_gradient_checkpointing(run)


def _recomputed(block: nn.Module, *given: Any, cheap: bool) -> Any:
    """A block whose activations are recomputed, from what it was given.

    FLUX.2's model gives all blocks one dict and changes its entry ``kv_cache`` from block to block (diffusers 0.42.1):
    without a copy, a block would be recomputed with the keys of the last one.
    """
    own = [dict(one) if isinstance(one, dict) else one for one in given]
    stored: dict[str, Any] = {"context_fn": partial(create_selective_checkpoint_contexts, _stored)} if cheap else {}
    return checkpoint(block, *own, use_reentrant=False, **stored)


def _stored(context: Any, operator: Any, *_: Any, **__: Any) -> CheckpointPolicy:
    """Products and attention are stored; a kernel of the hub says in its name that it is attention."""
    name = getattr(operator, "_opname", None) or str(operator)
    dear = name in _PRODUCTS or "attention" in name or "flash" in str(operator)
    return CheckpointPolicy.MUST_SAVE if dear else CheckpointPolicy.PREFER_RECOMPUTE
