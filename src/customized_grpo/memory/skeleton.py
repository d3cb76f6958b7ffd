"""Names and shapes of a transformer without its weights, the input of a memory estimate."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class LinearShape:
    """Name and input and output features of a linear layer."""

    name: str
    inputs: int
    outputs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """Layers of a model or of one of its blocks, in the order in which torch lists its modules."""

    parameters: Mapping[str, int]
    """Number of values of each parameter, by name."""
    linears: tuple[LinearShape, ...]
    layer_norms: tuple[str, ...]
    """Names."""

    @property
    def num_values(self) -> int:
        """Number of values of all parameters."""
        return sum(self.parameters.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Skeleton:
    """A transformer of diffusers."""

    whole: Layers
    blocks: tuple[tuple[str, Layers], ...]
    """Name of each repeated block in the order of the forward, and its layers by their names inside it."""
    config: Any
    """Its configuration by attributes, as diffusers' models have it."""


def of_module(transformer: Any) -> Skeleton:
    """The skeleton of a model of diffusers, on the meta device or any."""
    from customized_grpo.policies.checkpointing import repeated_blocks

    return Skeleton(
        whole=_layers(transformer),
        blocks=tuple((name, _layers(block)) for name, block in repeated_blocks(transformer)),
        config=transformer.config,
    )


def _layers(module: Any) -> Layers:
    from torch import nn

    named = list(module.named_modules())
    return Layers(
        parameters={name: one.numel() for name, one in module.named_parameters()},
        linears=tuple(
            LinearShape(name, one.in_features, one.out_features)
            for name, one in named
            if isinstance(one, nn.Linear)
        ),
        layer_norms=tuple(name for name, one in named if isinstance(one, nn.LayerNorm)),
    )
