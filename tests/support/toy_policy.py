"""A policy of one small matrix: what tests of sampling and replay run on when a FLUX would say no more."""

from collections.abc import Sequence
from typing import Any, ClassVar, Self, final

import torch
from PIL.Image import Image
from torch import Tensor, nn

from customized_grpo.objectives.forward import ForwardConfig
from customized_grpo.policies.base import Policy, PolicyConfig
from customized_grpo.types import Conditioning


@final
class ToyPolicy(Policy):
    """Velocity tanh(x W) + sigma + condition; notes the batch size of every forward."""

    Config: ClassVar[type[PolicyConfig]] = PolicyConfig
    pipeline_class: ClassVar[Any] = None
    lora_targets: ClassVar[tuple[str, ...]] = ()

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.device, self.dtype = torch.device("cpu"), dtype
        self.latent_shape = (3, 4)
        self.transformer = nn.Linear(4, 4, bias=False)
        draw = torch.Generator().manual_seed(0)
        self.transformer.weight.data = torch.randn(4, 4, generator=draw)
        self.batches: list[int] = []

    @classmethod
    def load(cls, config: Any, *, device: torch.device, dtype: torch.dtype) -> Self:
        return cls(dtype)

    def encode(self, prompt: str, references: Sequence[Image]) -> Conditioning:
        return Conditioning({"shift": torch.full((1, 1, 1), float(len(prompt)))})

    def velocity(self, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        self.batches.append(len(x))
        # a sum, not a matrix product, so that a sample's result can't depend on its neighbours
        mixed = (x.float()[..., None] * self.transformer.weight.T).sum(-2)
        return torch.tanh(mixed) + sigma.expand(len(x))[:, None, None] + cond.tensors["shift"] * 0.1

    def decode(self, x: Tensor) -> Tensor:
        return (x.float().mean((1, 2)) * 20 + 128).clamp(0, 255).to(torch.uint8)[:, None, None, None].repeat(1, 2, 2, 3)


class Strict:
    """The section of an objective on final images whose rollouts must be computed as its loss computes."""

    class Config(ForwardConfig):
        lossy = False
