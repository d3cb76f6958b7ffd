"""Memory of a training step, computed from shapes: no weights are loaded, nothing is downloaded or measured.

Resident tensors (weights, adapter, optimizer, trajectories) are counted exactly. Temporary ones are estimated:
a linear layer keeps its input for its adapter and its output for the next operation, and attention keeps queries, keys,
values and its result. Dimensions: n samples in a forward, G group size, K trained steps, P ranks, D a block's width,
b bytes.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from customized_grpo.memory.skeleton import Layers, LinearShape, Skeleton
from customized_grpo.policies.checkpointing import num_checkpointed
from customized_grpo.recipe.keys import Cache

_TEXT_PART = re.compile(r"(^|\.)(add_|to_add|ff_context|txt_)")
"""Layers of a two-stream block that process text tokens."""
_QUERY_OR_KEY = re.compile(r"(^|\.)(to|add)_[qk](_proj)?$")
_VALUE = re.compile(r"(^|\.)(to|add)_v(_proj)?$")
_TEXT_NORM = re.compile(r"context|txt_")
_GATE = re.compile(r"(^|\.)gate(_layer|_proj)?$")
"""The layer of a gated MLP whose activation multiplies the other's output, so that both are kept."""
_TEXT_BLOCK = re.compile(r"txt_mode_blocks\.")
_IMAGE_BLOCK = re.compile(r"mode_blocks\.image\.")
_REFERENCE_BLOCK = re.compile(r"mode_blocks\.image_cond\.")
"""FLUX.3's blocks of one kind of tokens."""
_MODULATION = re.compile(r"norm|(^|\.)(img|txt)_mod\b|modulation")
"""Layers that process one vector per sample, not its tokens."""
_OF_TIME = re.compile(r"time|guidance|text_embedder")
"""Further such layers outside the blocks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Number of tokens per sample: of the image with its references, and of the text; and per forward."""

    image: int
    text: int
    once: int = 0
    """Those of text and references that pass once for all samples, and are in neither of the others."""
    references: int = 0
    """Tokens of ``image`` that are of references; only a model needs it that has blocks of their own."""

    def of_block(self, name: str) -> "Tokens":
        """Tokens that a block processes: in most models, all."""
        if _TEXT_BLOCK.match(name):
            return Tokens(image=0, text=self.text)
        if _REFERENCE_BLOCK.match(name):
            return Tokens(image=self.references, text=0)
        if _IMAGE_BLOCK.match(name):
            return Tokens(image=self.image - self.references, text=0)
        return self


def block_activations(
    block: Layers,
    tuned: frozenset[str],
    rank: int,
    tokens: Tokens,
    n: int,
    b: int,
    *,
    modulated: bool = False,
    normed: int = 4,
) -> int:
    """Bytes that autograd stores for one transformer block.

    Args:
        block: a block; one without layers for text processes image and text tokens together.
        tuned: names, inside the block, of the layers with an adapter.
        rank: rank of the adapters.
        tokens: tokens per sample.
        n: number of samples.
        b: bytes of the compute dtype.
        modulated: whether the scales of the norms' outputs are trained, so that these outputs are stored too.
        normed: bytes of a value that a norm reads or writes.
    """
    joint = tokens.image + tokens.text
    width, shared = width_of(block), 0
    if tokens.once:  # beside its own pass, attention keeps its keys and values with those of each sample
        alone = Tokens(image=tokens.once, text=0)
        shared = block_activations(block, tuned, rank, alone, 1, b, modulated=modulated, normed=normed)
        shared += 2 * n * tokens.once * width * b
        # It is modulated at another time than the image, for which two scales and two gates are held for each token.
        shared += 4 * (n * (tokens.image + tokens.text) + tokens.once) * width * b
    total, seen = 0, set[tuple[str, int, int]]()
    for layer, here in passing(block, tokens):
        source = (layer.name.rpartition(".")[0], layer.inputs, here)
        if layer.name in tuned:
            if source not in seen:  # those that read the same tensor share its copy
                total += here * layer.inputs * b
            total += here * rank * b
        seen.add(source)
        if _VALUE.search(layer.name):
            continue  # counted with all values, below
        feeds_norm = bool(_QUERY_OR_KEY.search(layer.name)) or layer.outputs == width
        total += here * layer.outputs * (normed if feeds_norm else b) * (2 if _GATE.search(layer.name) else 1)
        if modulated and _QUERY_OR_KEY.search(layer.name):
            total += here * layer.outputs * normed  # once more, normalised, for the norm's own weight
    two_streams = _has_two_streams(block)
    for name in block.layer_norms if modulated else ():
        of_text = bool(_TEXT_NORM.search(name))
        total += ((tokens.text if of_text else tokens.image) if two_streams else joint) * width * normed
    return n * (total + 4 * joint * width * b) + shared


def products_stored(block: Layers, tuned: frozenset[str], rank: int, tokens: Tokens, n: int, b: int) -> int:
    """Bytes of the outputs of a block's products and attention, which a checkpoint of cheap operators stores."""
    outputs = sum(
        here * (layer.outputs + (rank if layer.name in tuned else 0)) for layer, here in passing(block, tokens)
    )
    return n * b * (outputs + (tokens.image + tokens.text) * width_of(block))


def passing(block: Layers, tokens: Tokens) -> list[tuple[LinearShape, int]]:
    """Layers of a block that process tokens, and how many tokens of a sample each does."""
    two_streams, joint = _has_two_streams(block), tokens.image + tokens.text
    return [
        (layer, (tokens.text if _TEXT_PART.search(layer.name) else tokens.image) if two_streams else joint)
        for layer in _of_tokens(block)
    ]


def outside(transformer: Skeleton, tokens: Tokens) -> list[tuple[LinearShape, int]]:
    """Layers outside the blocks that process tokens, and how many tokens of a sample each does."""
    inside = tuple(f"{name}." for name, _ in transformer.blocks)
    return [
        (layer, tokens.text if _TEXT_NORM.search(layer.name) else tokens.image)
        for layer in _of_tokens(transformer.whole)
        if not layer.name.startswith(inside) and not _OF_TIME.search(layer.name)
    ]


def _of_tokens(block: Layers) -> list[LinearShape]:
    return [layer for layer in block.linears if not _MODULATION.search(layer.name)]


def _has_two_streams(block: Layers) -> bool:
    return any(_TEXT_PART.search(layer.name) for layer in _of_tokens(block))


def width_of(block: Layers) -> int:
    """D of a block: the features of its attention."""
    layers = _of_tokens(block)
    return next((layer.outputs for layer in layers if _QUERY_OR_KEY.search(layer.name)), layers[0].inputs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Activations:
    """Bytes of one forward with gradient."""

    stored: int
    """Bytes kept until the backward pass."""
    working: int
    """Additional bytes during a block's backward pass."""


def activations(
    transformer: Skeleton,
    layers: Sequence[LinearShape],
    rank: int,
    tokens: Tokens,
    *,
    n: int,
    b: int,
    checkpointing: float,
    cheap: bool = False,
    half_norms: bool = False,
) -> Activations:
    """Bytes that a forward of n samples stores, and that its backward pass needs in addition.

    With gradient checkpointing, the first blocks (a share of all) store only inputs and are recomputed one at a time,
    after the others' activations are freed; if only what is ``cheap`` is recomputed, they store the outputs of products
    and attention, too. The backward pass is assumed to need as much as one block stores, for
    gradients of activations.
    """
    names = {layer.name for layer in layers}
    modulated, normed = any(_MODULATION.search(name) for name in names), b if half_norms else 4
    sizes, inputs = [], list[int]()
    for name, block in transformer.blocks:
        tuned = frozenset(one.removeprefix(f"{name}.") for one in names if one.startswith(f"{name}."))
        here = tokens.of_block(name)
        if here is not tokens and not tuned:  # nothing before it is trained either: it stores nothing
            sizes.append(0)
            inputs.append(0)
            continue
        sizes.append(block_activations(block, tuned, rank, here, n, b, modulated=modulated, normed=normed))
        stored = products_stored(block, tuned, rank, here, n, b) if cheap else 0
        inputs.append((n * (here.image + here.text) + here.once) * block.linears[0].inputs * b + stored)
    outside = inputs[-1]  # the final norm's input
    inside = tuple(f"{name}." for name, _ in transformer.blocks)
    for layer in layers:
        if not layer.name.startswith(inside) and not _OF_TIME.search(layer.name):
            of_norm = bool(_MODULATION.search(layer.name))  # it scales the final norm's float32 output
            length = tokens.text if _TEXT_NORM.search(layer.name) else tokens.image
            outside += n * length * (4 * layer.inputs if of_norm else b * layer.inputs)
    again = num_checkpointed(checkpointing, len(sizes))
    kept = sum(sizes[again:])
    held = inputs if cheap else [0] * again  # what a block has stored by itself isn't made again
    working = max([2 * size - here - kept for size, here in zip(sizes[:again], held, strict=False)] + sizes[again:])
    return Activations(stored=sum(inputs[:again]) + kept + outside, working=working)


def decode_bytes(n: int, height: int, width: int, channels: Sequence[int]) -> int:
    """The VAE's decoder in float32: three maps at full resolution of the second-finest level's channels."""
    return 3 * n * height * width * channels[min(1, len(channels) - 1)] * 4


def prefix_bytes(blocks: Sequence[tuple[str, Layers]], tokens: int, *, n: int, b: int) -> int:
    """Keys and values that a rollout keeps of the tokens that pass once.

    Args:
        blocks: name and layers of each block.
        tokens: number of these tokens.
        n: forwards of a velocity.
        b: bytes of the compute dtype.
    """
    return sum(2 * n * tokens * width_of(block) * b for _, block in blocks)


def cache_bytes(cache: Cache, tokens: Tokens, *, width: int, channels: int, n: int, b: int) -> int:
    """What ``sampling.cache`` keeps of n samples between the steps of a rollout.

    Of ``first_block``: the first block's output and the others' residual, of image and text, and the first block's
    residual of the image. Of ``taylorseer``: the float32 terms of the series, as large as the transformer's output.

    Args:
        cache: the section.
        tokens: tokens per sample.
        width: D.
        channels: of the transformer's output.
        n: samples of a group, times the forwards of a velocity.
        b: bytes of the compute dtype.
    """
    if cache.type == "first_block":
        return n * (3 * tokens.image + 2 * tokens.text) * width * b
    return n * (cache.order + 1) * tokens.image * channels * 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One entry of an estimate."""

    name: str
    bytes: int
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Estimated device memory of one process."""

    resident: tuple[Line, ...]
    peaks: tuple[Line, ...]
    """Temporary memory of phases that never coincide: the largest counts."""
    unknown: tuple[str, ...] = ()
    """Names of parts on the device that are not counted."""
    elsewhere: tuple[str, ...] = ()
    """Names of rewards and metrics that are computed elsewhere."""
    on_cpu: tuple[str, ...] = ()
    """Names of rewards and metrics that the CPU computes."""

    @property
    def total(self) -> int:
        """Bytes."""
        return sum(line.bytes for line in self.resident) + max((line.bytes for line in self.peaks), default=0)
