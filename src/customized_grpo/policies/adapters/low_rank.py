"""Low-rank updates as plain tensors: the common form of all LoRA formats, to be joined or fused into weights.

An update is one pair of factors per module: delta W = (alpha / r) B A. Dimensions: r rank.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Factors:
    """delta W = (alpha / r) b @ a of one linear layer."""

    a: Float[Tensor, "r d_in"]
    b: Float[Tensor, "d_out r"]
    given_alpha: float | None = None
    """None: as much as the rank, so that the scale is 1."""

    @property
    def rank(self) -> int:
        """r."""
        return self.a.shape[0]

    @property
    def alpha(self) -> float:
        """alpha."""
        return float(self.rank) if self.given_alpha is None else self.given_alpha

    @property
    def scale(self) -> float:
        """alpha / r."""
        return self.alpha / self.rank

    def folded(self) -> "Factors":
        """The same update of scale 1: the scale goes into b, in float32; itself where it is 1 already."""
        return self if self.scale == 1 else Factors(self.a, self.b.float() * self.scale)


Update = Mapping[str, Factors]
"""Factors by the module's name in diffusers' transformer."""


def scaled(update: Update, scale: float) -> dict[str, Factors]:
    """The update times ``scale``; exactly as it was where the scale is 1."""
    if scale == 1:
        return dict(update)
    return {name: Factors(one.a, one.b, one.alpha * scale) for name, one in update.items()}


def joined(first: Update, second: Update) -> dict[str, Factors]:
    """The sum of two updates, exact: where both have a module their ranks stand one after another."""
    joint = {**first, **second}
    for name in first.keys() & second.keys():
        one, two = first[name].folded(), second[name].folded()
        joint[name] = Factors(
            torch.cat([one.a.float(), two.a.float()]), torch.cat([one.b.float(), two.b.float()], dim=1)
        )
    return dict(sorted(joint.items()))


def linear_shapes(transformer: nn.Module) -> dict[str, tuple[int, int]]:
    """(d_out, d_in) of every linear layer by its name, whether or not an adapter wraps it."""
    return {
        name.removesuffix(".base_layer"): (module.out_features, module.in_features)
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear) and ".lora_" not in name
    }


def check_fits(update: Update, transformer: nn.Module) -> None:
    """Every factor must find a linear layer of its shape.

    Raises:
        ValueError: names modules that the transformer lacks, or whose shape is another.
    """
    shapes = linear_shapes(transformer)
    surplus = sorted(update.keys() - shapes.keys())
    if surplus:
        raise ValueError(f"the model has no layer {shown(surplus)}; is it a LoRA of another model?")
    wrong = [n for n, one in update.items() if (one.b.shape[0], one.a.shape[1]) != shapes[n]]
    if wrong:
        one = update[wrong[0]]
        raise ValueError(
            f"it is of a model of another width: {shown(wrong)} would be {one.b.shape[0]} x {one.a.shape[1]}, the "
            f"model's is {shapes[wrong[0]][0]} x {shapes[wrong[0]][1]}"
        )


@torch.no_grad()
def fuse(transformer: nn.Module, update: Update) -> None:
    """Add the update to the weights, computed in float32 and rounded once to the weights' dtype.

    Raises:
        ValueError: it does not fit, or the weights are quantised.
    """
    check_fits(update, transformer)
    for name, given in update.items():
        factors = given.folded()
        layer: Any = transformer.get_submodule(name)
        weight = (layer if isinstance(layer, nn.Linear) else layer.base_layer).weight
        if not weight.is_floating_point() or weight.shape != (factors.b.shape[0], factors.a.shape[1]):
            raise ValueError(f"{name} is quantised, so nothing can be fused into it; use mode: adapter")
        delta = factors.b.to(weight.device, torch.float32) @ factors.a.to(weight.device, torch.float32)
        weight.copy_((weight.float() + delta).to(weight.dtype))


def mismatch(given: Set[str], expected: Set[str]) -> str:
    """Message on missing and surplus keys, with some names; empty if all match."""
    return "; ".join(
        f"{word}: {shown(sorted(names))}"
        for word, names in (("missing", expected - given), ("surplus", given - expected))
        if names
    )


def shown(names: list[str]) -> str:
    """The first three names and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
