"""Memory of a training step, from shapes alone: no weight is loaded, nothing is fetched, nothing is measured.

What is resident (weights, adapter, optimizer, trajectories) is counted exactly. What is alive for a moment is
estimated: a linear layer keeps its input for its adapter and its output for what follows, and attention keeps queries,
keys, values and its result. Dimensions: n samples in a forward, G group size, K trained steps, P ranks, D a block's
width, b bytes.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from customized_grpo.policies.acceleration import NOT_QUANTIZED
from customized_grpo.policies.checkpointing import num_checkpointed, repeated_blocks

Quantization = Literal["none", "8bit", "4bit"]
Optimizer = Literal["adamw", "adamw_8bit"]

_TEXT_PART = re.compile(r"(^|\.)(add_|to_add|ff_context|txt_)")
"""Layers of a two-stream block that see the text tokens."""
_QUERY_OR_KEY = re.compile(r"(^|\.)(to|add)_[qk](_proj)?$")
_VALUE = re.compile(r"(^|\.)(to|add)_v(_proj)?$")
_QKV = re.compile(r"((^|\.)(to|add)_)[qkv](_proj)?$")
_MODULATION = re.compile(r"norm|(^|\.)(img|txt)_mod\b|modulation")
"""Layers that see one vector a sample, not its tokens."""
_SMALLEST_8BIT = 4096
"""Values of a parameter below which bitsandbytes keeps 32 bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Tokens of one sample: of the image with its references, and of the text."""

    image: int
    text: int


@dataclass(frozen=True, slots=True)
class LinearShape:
    """A linear layer: its name, and features in and out."""

    name: str
    inputs: int
    outputs: int


def linears(module: nn.Module) -> Iterator[LinearShape]:
    """Every linear layer of a model."""
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear):
            yield LinearShape(name, layer.in_features, layer.out_features)


def adapted(module: nn.Module, targets: Sequence[str]) -> list[LinearShape]:
    """The layers that an adapter's targets match, each against a name or its end after a dot."""
    pattern = re.compile(rf"(.*\.)?({'|'.join(targets)})")
    return [layer for layer in linears(module) if pattern.fullmatch(layer.name)]


def weight_bytes(transformer: nn.Module, quantization: Quantization, b: int) -> int:
    """Bytes of the frozen transformer.

    bitsandbytes' NF4 takes half a byte a value, one byte for 64 of them and one float32 for 256 of those, and a few
    constants a layer; LLM.int8 takes a byte a value and a float32 a row. Biases and ``NOT_QUANTIZED`` layers stay.
    """
    held = {
        f"{layer.name}.weight": layer
        for layer in linears(transformer)
        if not {*layer.name.split("."), layer.name} & set(NOT_QUANTIZED)
    }
    total = 0
    for name, parameter in transformer.named_parameters():
        n = parameter.numel()
        if quantization == "none" or name not in held:
            total += n * b
        elif quantization == "8bit":
            total += n + 4 * held[name].outputs
        else:
            blocks = -(-n // 64)
            total += -(-n // 2) + blocks + 4 * -(-blocks // 256) + 4 * (16 + 256 + 1)
    return total


def adapter_parameters(layers: Iterable[LinearShape], rank: int, *, shared: bool = False) -> list[int]:
    """Values of every A (rank, in) and B (out, rank); with ``shared`` an attention's q, k and v have one A."""
    sizes, seen = [], set[str]()
    for layer in layers:
        one = _QKV.sub(r"\1", layer.name)
        if not (shared and one != layer.name and one in seen):
            sizes.append(rank * layer.inputs)
        seen.add(one)
        sizes.append(rank * layer.outputs)
    return sizes


def optimizer_bytes(sizes: Iterable[int], optimizer: Optimizer) -> int:
    """Two moments a value: float32, or 8 bits with a float32 scale for 256 values and two tables of 256 a parameter."""
    total = 0
    for n in sizes:
        if optimizer == "adamw" or n < _SMALLEST_8BIT:
            total += 2 * 4 * n
        else:
            total += 2 * (n + 4 * -(-n // 256) + 4 * 256)
    return total


def block_activations(
    block: nn.Module, tuned: frozenset[str], rank: int, tokens: Tokens, n: int, b: int
) -> int:
    """Bytes that autograd keeps of one transformer block.

    Args:
        block: a block; one without layers for text sees image and text tokens together.
        tuned: names, inside the block, of the layers with an adapter.
        rank: of the adapters.
        tokens: of a sample.
        n: samples.
        b: bytes of the compute dtype. At 2 bytes each adapter casts its own copy of its input, and what norms see is
            kept in float32.
    """
    layers = [layer for layer in linears(block) if not _MODULATION.search(layer.name)]
    two_streams = any(_TEXT_PART.search(layer.name) for layer in layers)
    joint = tokens.image + tokens.text
    total, seen = 0, set[tuple[str, int, int]]()
    width = next((layer.outputs for layer in layers if _QUERY_OR_KEY.search(layer.name)), layers[0].inputs)
    for layer in layers:
        of_text = bool(_TEXT_PART.search(layer.name))
        here = (tokens.text if of_text else tokens.image) if two_streams else joint
        source = (layer.name.rpartition(".")[0], layer.inputs, here)
        if layer.name in tuned:
            if b < 4 or source not in seen:
                total += here * layer.inputs * b
            total += here * rank * b
        seen.add(source)
        if _VALUE.search(layer.name):
            continue  # only as part of all values, below
        feeds_norm = bool(_QUERY_OR_KEY.search(layer.name)) or layer.outputs == width
        total += here * layer.outputs * (4 if feeds_norm else b)
    return n * (total + 4 * joint * width * b)


@dataclass(frozen=True, slots=True, kw_only=True)
class Activations:
    """Bytes of one forward with gradient."""

    stored: int
    """Kept until the backward pass."""
    working: int
    """More, while a block's backward pass is computed."""


def activations(
    transformer: nn.Module,
    layers: Sequence[LinearShape],
    rank: int,
    tokens: Tokens,
    *,
    n: int,
    b: int,
    checkpointing: float,
) -> Activations:
    """What a forward of n samples stores, and what its backward pass needs besides.

    A share of the blocks, the first ones, keeps inputs alone, and is computed again one at a time, when what the others
    kept is free. The backward pass is taken to need as much as one block stores, for gradients of activations.
    """
    names = {layer.name for layer in layers}
    sizes, inputs = [], list[int]()
    for name, block in repeated_blocks(transformer):
        tuned = frozenset(one.removeprefix(f"{name}.") for one in names if one.startswith(f"{name}."))
        sizes.append(block_activations(block, tuned, rank, tokens, n, b))
        inputs.append(n * (tokens.image + tokens.text) * next(linears(block)).inputs * b)
    again = num_checkpointed(checkpointing, len(sizes))
    last = sum(inputs) // len(sizes)  # the final norm's input
    kept = sum(sizes[again:])
    working = max([2 * size - kept for size in sizes[:again]] + sizes[again:])
    return Activations(stored=sum(inputs[:again]) + kept + last, working=working)


def decode_bytes(n: int, height: int, width: int, channels: Sequence[int]) -> int:
    """The VAE's decoder in float32: three maps at full resolution of the second-finest level's channels."""
    return 3 * n * height * width * channels[min(1, len(channels) - 1)] * 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One entry of an estimate."""

    name: str
    bytes: int
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What one process needs on its device."""

    resident: tuple[Line, ...]
    moments: tuple[Line, ...]
    """Never at the same time: the largest counts."""
    unknown: tuple[str, ...] = ()
    """What is not counted."""

    @property
    def total(self) -> int:
        """Bytes."""
        return sum(line.bytes for line in self.resident) + max(
            (line.bytes for line in self.moments), default=0
        )


def estimate(
    transformer: nn.Module,
    *,
    targets: Sequence[str],
    rank: int,
    shared: bool,
    tokens: Tokens,
    b: int,
    quantization: Quantization,
    optimizer: Optimizer,
    ema: bool,
    checkpointing: float,
    microbatch: int,
    group_size: int,
    world: int,
    trajectories: int,
    parts: Mapping[str, int],
    moments: Mapping[str, int],
    reserve: int,
    unknown: Sequence[str] = (),
) -> Estimate:
    """All of it; see the functions above for each formula.

    Args:
        transformer: on the meta device, or any.
        targets, rank, shared: of the adapter; see ``adapter_parameters``.
        tokens: of a sample.
        b: bytes of ``run.precision``.
        parts: bytes of further resident parts (VAE, encoders, rewards) by name.
        moments: bytes of further moments (decoding) by name.
        reserve: CUDA's context and the allocator's loss.
    """
    layers = adapted(transformer, targets)
    sizes = adapter_parameters(layers, rank, shared=shared)
    trained = sum(sizes)
    acts = activations(transformer, layers, rank, tokens, n=microbatch, b=b, checkpointing=checkpointing)
    widest = activations(transformer, layers, rank, tokens, n=group_size, b=b, checkpointing=1.0).working // 2
    copies = [("weights", 4), ("gradients", 4)]
    copies += [("running average (ema)", 4)] if ema else []
    copies += [("autocast's copy", b)] if b < 4 else []
    copies += [("buckets of data-parallel", 4)] if world > 1 else []
    resident = [
        Line(name="transformer", bytes=weight_bytes(transformer, quantization, b), note=quantization),
        Line(
            name="adapter",
            bytes=sum(each for _, each in copies) * trained,
            note=f"{trained / 1e6:,.1f} M parameters: " + ", ".join(name for name, _ in copies),
        ),
        Line(name="optimizer", bytes=optimizer_bytes(sizes, optimizer), note=optimizer),
        *(Line(name=name, bytes=size) for name, size in parts.items()),
        Line(name="trajectories", bytes=trajectories),
        Line(name="reserve", bytes=reserve, note="context, workspaces, fragments: an assumption"),
    ]
    found = [
        Line(
            name="replay",
            bytes=acts.stored + acts.working,
            note=f"{microbatch} pairs, {_checkpointed(checkpointing)} gradient checkpointing",
        ),
        Line(name="rollout", bytes=widest, note=f"{group_size} samples"),
        *(Line(name=name, bytes=size) for name, size in moments.items()),
    ]
    return Estimate(resident=tuple(resident), moments=tuple(found), unknown=tuple(unknown))


def _checkpointed(share: float) -> str:
    return {0.0: "without", 1.0: "with"}.get(float(share), f"{share:.0%} of the blocks with")
