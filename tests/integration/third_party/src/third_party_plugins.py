"""A reward, an aggregator and a policy of another package: all that customized-grpo asks of one."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self, final

import torch
from diffusers import FluxPipeline
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models import ModelMixin
from PIL.Image import Image
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from customized_grpo.policies.base import Policy, PolicyConfig
from customized_grpo.rewards.base import Reward, RewardConfig
from customized_grpo.types import Conditioning, Example

TOKEN = 2
"""Pixels of a token's side: a token is 2 x 2 pixels of 3 colours."""


@final
class Redness(Reward):
    """How much of one colour an image has, in [0, 1]."""

    @final
    class Config(RewardConfig):
        """Its section of a recipe."""

        colour: Literal["red", "green", "blue"] = "red"

    def __init__(self, config: Config, *, device: torch.device) -> None:
        self._channel = ("red", "green", "blue").index(config.colour)

    def __call__(self, example: Example, images: Tensor) -> Tensor:
        return images[..., self._channel].float().mean((1, 2)) / 255


class Cautious(BaseModel):
    """The weighted sum, with what is below zero made larger."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    type: Literal["cautious"] = "cautious"
    fear: float = Field(default=2.0, ge=1.0)

    def __call__(self, a: Tensor, w: Tensor) -> Tensor:
        total = (a[:, None] * w).sum(-1)
        return torch.where(total < 0, self.fear * total, total)


class Net(ModelMixin, ConfigMixin, PeftAdapterMixin):  # type: ignore[misc]
    """Two linear layers; diffusers' mixins give it the adapter."""

    @register_to_config
    def __init__(self, channels: int = 3 * TOKEN * TOKEN) -> None:
        super().__init__()
        self.into = nn.Linear(2 * channels + 1, 32)
        self.out = nn.Linear(32, channels)

    def forward(self, x: Tensor, sigma: Tensor, subject: Tensor) -> Tensor:
        n, s, _ = x.shape
        rest = [sigma[:, None, None].expand(n, s, 1), subject.expand(n, s, -1)]
        return self.out(nn.functional.silu(self.into(torch.cat([x, *rest], dim=-1))))


@final
class Linear(Policy):
    """Pixels for latents and random weights: the smallest policy that can be trained."""

    @final
    class Config(PolicyConfig):
        """Its section of a recipe."""

        type: Literal["linear"] = "linear"
        model: str = "none"

    pipeline_class: ClassVar[Any] = FluxPipeline
    lora_targets: ClassVar[tuple[str, ...]] = ("into", "out")

    def __init__(self, config: Config, device: torch.device, dtype: torch.dtype) -> None:
        self._grid = (config.height // TOKEN, config.width // TOKEN)
        self.latent_shape = (self._grid[0] * self._grid[1], 3 * TOKEN * TOKEN)
        self.device, self.dtype = device, dtype
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.transformer = Net().to(device, dtype).requires_grad_(False)

    @classmethod
    def load(cls, config: Config, *, device: torch.device, dtype: torch.dtype) -> Self:
        return cls(config, device, dtype)

    @torch.no_grad()
    def encode(self, prompt: str, references: Sequence[Image]) -> Conditioning:
        pixel = torch.tensor(references[0].resize((1, 1)).getpixel((0, 0)), dtype=self.dtype) / 255
        return Conditioning({"subject": pixel.repeat(TOKEN * TOKEN)[None, None].to(self.device)})

    def velocity(self, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        sigma = sigma.to(self.device, self.dtype).expand(len(x))
        output: Tensor = self.transformer(x.to(self.dtype), sigma, cond.tensors["subject"])
        return output.float()

    @torch.no_grad()
    def decode(self, x: Tensor) -> Tensor:
        (h, w), n = self._grid, len(x)
        pixels = x.float().reshape(n, h, w, TOKEN, TOKEN, 3).permute(0, 1, 3, 2, 4, 5)
        images = pixels.reshape(n, h * TOKEN, w * TOKEN, 3).mul(64).add(128).clamp(0, 255)
        return images.round().to(torch.uint8).cpu()
