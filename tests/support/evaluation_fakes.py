"""A policy, a data set and metrics of a few numbers; found by ``type: evaluation_fakes:Name``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, final

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from customized_grpo.data.base import DatasetConfig
from customized_grpo.evaluation.metrics import Metric
from customized_grpo.policies.base import Policy, PolicyConfig
from customized_grpo.rewards.base import AsyncReward, Reward, RewardConfig
from customized_grpo.types import Conditioning, Example


@final
class TinyPolicy(Policy):
    """4 tokens of 3 channels are an image of 2 x 2 pixels."""

    Config = PolicyConfig
    pipeline_class: ClassVar[Any] = None
    lora_targets: ClassVar[tuple[str, ...]] = ("linear",)

    def __init__(self, gain: float = 1.0) -> None:
        self.transformer = nn.Sequential(nn.Linear(3, 3))
        nn.init.constant_(self.transformer[0].weight, 0.1 * gain)
        nn.init.zeros_(self.transformer[0].bias)
        self.latent_shape = (4, 3)
        self.device = torch.device("cpu")
        self.dtype = torch.float32
        self.velocities = 0

    @classmethod
    def load(cls, config: Any, *, device: torch.device, dtype: torch.dtype) -> Self:
        return cls()

    def encode(self, prompt: str, references: Sequence[Image.Image]) -> Conditioning:
        return Conditioning({"length": torch.tensor([[[len(prompt) / 50.0]]])})

    def velocity(
        self, x: Float[Tensor, "n s c"], sigma: Float[Tensor, ""] | Float[Tensor, " n"], cond: Conditioning
    ) -> Float[Tensor, "n s c"]:
        self.velocities += 1
        velocity: Tensor = self.transformer(x) * sigma + cond.tensors["length"] - 0.3
        return velocity

    def decode(self, x: Float[Tensor, "n s c"]) -> UInt8[Tensor, "n h w 3"]:
        return ((x.tanh() + 1) * 127.5).round().to(torch.uint8).reshape(len(x), 2, 2, 3).cpu()


@final
class TinyData:
    """Seven prompts; one key is no file name."""

    Config = DatasetConfig

    def __init__(self, config: DatasetConfig | None, device: torch.device | None = None) -> None:
        self.config = config

    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> Example:
        key = "../../up here" if index == 3 else f"example-{index}"
        reference = Image.new("RGB", (4, 2), (30 * index, 80, 160))
        return Example(
            key=key,
            prompt="a ball " + "very " * index,
            references=(reference, reference.rotate(90, expand=True)),
        )


class PlainConfig(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    type: str


@final
class Channels(Metric):
    """Two columns; blue can't be measured where it is dark."""

    Config = PlainConfig
    calls: ClassVar[list[str]] = []
    killed_at: ClassVar[str] = ""

    def __init__(self, config: Any, *, device: torch.device) -> None:
        self.device = device

    def __call__(self, example: Example, images: UInt8[Tensor, "g h w 3"]) -> Mapping[str, Float[Tensor, " g"]]:
        Channels.calls.append(example.key)
        if example.key == Channels.killed_at:
            raise KeyboardInterrupt
        red, _, blue = (images.float() / 255.0).mean((1, 2)).unbind(1)
        return {"red": red, "blue": torch.where(blue > 0.5, blue, torch.nan)}


@final
class Bright(Reward):
    Config = RewardConfig

    def __init__(self, config: Any, *, device: torch.device) -> None:
        self.device = device

    def __call__(self, example: Example, images: UInt8[Tensor, "g h w 3"]) -> Float[Tensor, " g"]:
        return images.float().mean((1, 2, 3)) / 255.0


@final
class Flaky(AsyncReward):
    Config = RewardConfig

    def __init__(self, config: Any, *, device: torch.device) -> None:
        self.device = device

    async def __call__(self, example: Example, image: Image.Image) -> float:
        if image.getpixel((0, 0)) == (0, 0, 0):
            raise TimeoutError
        return 0.5


@final
class Down(AsyncReward):
    """A judge that is away."""

    Config = RewardConfig

    def __init__(self, config: Any, *, device: torch.device) -> None:
        self.device = device

    async def __call__(self, example: Example, image: Image.Image) -> float:
        raise ConnectionError("refused")


@final
class Unsure(AsyncReward):
    """A judge that fails so often about some examples, and then answers 0.5."""

    @final
    class Config(RewardConfig):
        transport: ClassVar[frozenset[str]] = frozenset(("url", "patience_s"))
        url: str = ""
        patience_s: int = 0
        rubric: str = "likeness"

    asked: ClassVar[list[str]] = []
    failing: ClassVar[dict[str, int]] = {}

    def __init__(self, config: Any, *, device: torch.device) -> None:
        self.device = device

    async def __call__(self, example: Example, image: Image.Image) -> float:
        Unsure.asked.append(example.key)
        if Unsure.failing.get(example.key, 0) > 0:
            Unsure.failing[example.key] -= 1
            raise TimeoutError
        return 0.5


@final
class Moody(Metric):
    """A judge whose answer depends on the run, and which fails on red images in its second one."""

    Config = PlainConfig

    def __init__(self, config: Any, *, device: torch.device) -> None:
        self.device = device

    def __call__(self, example: Example, images: UInt8[Tensor, "g h w 3"]) -> Mapping[str, Float[Tensor, " g"]]:
        run = int(example.extra.get("run", 0))
        light = images.float().mean((1, 2, 3)) / 255.0
        fails = (images[:, 0, 0, 0] > 100) & (run == 1)
        return {"moody": torch.where(fails, torch.nan, light + run)}


@final
class Counted(Reward):
    """The sum of a weights file's bytes, the pixels of references and masks, and words: all that a metric may see."""

    @final
    class Config(RewardConfig):
        weights: str

    asked: ClassVar[list[str]] = []

    def __init__(self, config: Config, *, device: torch.device) -> None:
        self.weight = sum(Path(config.weights).read_bytes())

    def __call__(self, example: Example, images: UInt8[Tensor, "g h w 3"]) -> Float[Tensor, " g"]:
        Counted.asked.append(example.key)
        seen = [*example.references, *(mask for mask in example.masks if mask is not None)]
        pixels = sum(sum(picture.tobytes()) for picture in seen)
        words = len(example.subject) + len(example.extra)
        return images.float().mean((1, 2, 3)) + float(pixels + words + self.weight)
