"""Exact bytes of frozen weights, trained parameters and optimizer moments, from shapes.

b is the number of bytes per value.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from customized_grpo.memory.skeleton import LinearShape, Skeleton
from customized_grpo.policies.acceleration import NOT_QUANTIZED, Quantization

Optimizer = Literal["adamw", "adamw_fused", "adamw_8bit"]
_QKV = re.compile(r"((^|\.)(to|add)_)[qkv](_proj)?$")
_SMALLEST_8BIT = 4096
"""Size of a parameter below which bitsandbytes keeps 32-bit moments."""


def adapted(transformer: Skeleton, targets: Sequence[str]) -> list[LinearShape]:
    """Layers that match an adapter's targets, by full name or by its end after a dot."""
    pattern = re.compile(rf"(.*\.)?({'|'.join(targets)})")
    return [layer for layer in transformer.whole.linears if pattern.fullmatch(layer.name)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """Trained parameters: adapters on some layers, or weights of the transformer itself."""

    layers: Sequence[LinearShape]
    """Layers whose inputs the backward pass needs."""
    rank: int
    """Rank of the adapters; 0 without adapters."""
    sizes: Sequence[int]
    """Number of values of each trained parameter."""
    own: frozenset[str] = frozenset()
    """Names of the transformer's own parameters among them."""


def weight_bytes(
    transformer: Skeleton, quantization: Quantization, b: int, without: frozenset[str] = frozenset()
) -> int:
    """Bytes of the frozen transformer, except for the parameters named by ``without``.

    bitsandbytes' NF4 takes half a byte per value, one byte per 64 values, one float32 per 256 of those, and a few
    constants per layer; LLM.int8 takes one byte per value and a float32 per row. Biases and ``NOT_QUANTIZED`` layers
    are not quantized.
    """
    held = {
        f"{layer.name}.weight": layer
        for layer in transformer.whole.linears
        if not {*layer.name.split("."), layer.name} & set(NOT_QUANTIZED)
    }
    total = 0
    for name, n in transformer.whole.parameters.items():
        if name in without:
            continue
        if quantization == "none" or name not in held:
            total += n * b
        elif quantization == "8bit":
            total += n + 4 * held[name].outputs
        else:
            blocks = -(-n // 64)
            total += -(-n // 2) + blocks + 4 * -(-blocks // 256) + 4 * (16 + 256 + 1)
    return total


def adapter_parameters(layers: Iterable[LinearShape], rank: int, *, shared: bool = False) -> list[int]:
    """Sizes of every A (rank, in) and B (out, rank); with ``shared`` an attention's q, k and v share one A."""
    sizes, seen = [], set[str]()
    for layer in layers:
        one = _QKV.sub(r"\1", layer.name)
        if not (shared and one != layer.name and one in seen):
            sizes.append(rank * layer.inputs)
        seen.add(one)
        sizes.append(rank * layer.outputs)
    return sizes


def optimizer_bytes(sizes: Iterable[int], optimizer: Optimizer) -> int:
    """Two moments per value, float32, or 8 bits with a float32 scale per 256 and two tables of 256 per parameter."""
    total = 0
    for n in sizes:
        if optimizer != "adamw_8bit" or n < _SMALLEST_8BIT:
            total += 2 * 4 * n
        else:
            total += 2 * (n + 4 * -(-n // 256) + 4 * 256)
    return total
