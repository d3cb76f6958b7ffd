"""Names and shapes of a transformer without its weights, the input of a memory estimate.

diffusers builds the model on torch's meta device, which takes seconds to import. ``skeletons.json`` holds the results
for the known models and the embedded miniature; ``make skeletons`` writes it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from types import SimpleNamespace
from typing import Any

_FILE = resources.files("customized_grpo.memory") / "skeletons.json"


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


def of_config(transformer: str, config: Mapping[str, Any]) -> Skeleton:
    """The skeleton of a transformer of diffusers.

    Args:
        transformer: name of its class.
        config: its configuration; what it leaves out is diffusers' default.
    """
    if (known := known_skeleton(transformer, config)) is not None:
        return known
    # A model that is not in the file, with all that a new release of diffusers may know.
    import diffusers
    import torch

    with torch.device("meta"):
        return of_module(getattr(diffusers, transformer).from_config(dict(config)))


def known_skeleton(transformer: str, config: Mapping[str, Any]) -> Skeleton | None:
    """What ``skeletons.json`` holds of a class and a configuration; None where it holds nothing."""
    own = {key: list(one) if isinstance(one, tuple) else one for key, one in config.items() if key[0] != "_"}
    for entry in json.loads(_FILE.read_text(encoding="utf-8")):
        whole = entry["defaults"] | own
        if entry["transformer"] == transformer and whole in entry["configurations"]:
            return of_parts(entry["parts"], whole)
    return None


def of_parts(parts: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> Skeleton:
    """The skeleton whose parts, in order, have a name and layers, and a count where they are repeated blocks."""
    named, blocks = list[tuple[str, Layers]](), list[tuple[str, Layers]]()
    for part in parts:
        layers = Layers(
            parameters=part["parameters"],
            linears=tuple(LinearShape(*one) for one in part["linears"]),
            layer_norms=tuple(part["layer_norms"]),
        )
        if "count" in part:
            blocks += (repeated := [(f"{part['name']}.{n}", layers) for n in range(part["count"])])
            named += repeated
        else:
            named.append((part["name"], layers))
    whole = Layers(
        parameters={f"{name}.{key}": n for name, part in named for key, n in part.parameters.items()},
        linears=tuple(
            LinearShape(f"{name}.{one.name}".rstrip("."), one.inputs, one.outputs)  # a part may be a layer itself
            for name, part in named
            for one in part.linears
        ),
        layer_norms=tuple(f"{name}.{one}".rstrip(".") for name, part in named for one in part.layer_norms),
    )
    return Skeleton(whole=whole, blocks=tuple(blocks), config=SimpleNamespace(**config))


def of_module(transformer: Any) -> Skeleton:
    """The skeleton of a model of diffusers, on the meta device or any."""
    from customized_grpo.policies.checkpointing import repeated_blocks

    return Skeleton(
        whole=layers_of(transformer),
        blocks=tuple((name, layers_of(block)) for name, block in repeated_blocks(transformer)),
        config=transformer.config,
    )


def layers_of(module: Any) -> Layers:
    """The layers of a model or of a part of one."""
    from torch import nn

    named = list(module.named_modules())
    return Layers(
        parameters={name: one.numel() for name, one in module.named_parameters()},
        linears=tuple(
            LinearShape(name, one.in_features, one.out_features) for name, one in named if isinstance(one, nn.Linear)
        ),
        layer_norms=tuple(name for name, one in named if isinstance(one, nn.LayerNorm)),
    )
