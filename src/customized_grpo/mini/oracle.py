"""The attribute oracle of the miniature world: a classifier of a picture's subject and prompt attributes.

A small convolutional network with supervised heads, trained on rendered pictures and on pictures decoded by the
miniature's autoencoder. It is never used as a reward. n = number of pictures.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from pydantic import Field
from safetensors.torch import load_file
from torch import Tensor, nn

from customized_grpo.evaluation.metrics import Metric
from customized_grpo.mini.world import CLASSES, EARS, FACES, HATS, PATTERNS, PLACES, POSITIONS, SIZES
from customized_grpo.paths import model_path
from customized_grpo.recipe.scorers import HeldModel, MetricSpec
from customized_grpo.types import Example

CHOICES: Final = {
    "cls": len(CLASSES),
    "pattern": len(PATTERNS),
    "ears": len(EARS),
    "face": len(FACES),
    "place": len(PLACES),
    "position": len(POSITIONS),
    "size": len(SIZES) + 1,
    "hat": len(HATS),
}
"""Categorical attributes and their number of values; the third size occurs only in references."""

HUES: Final = ("hue", "pattern_hue")
IDENTITY: Final = ("pattern", "ears", "face", "hue", "pattern_hue", "value")
PROMPT: Final = ("cls", "place", "position", "size", "hat")
HUE_TOLERANCE: Final = 0.08
VALUE_TOLERANCE: Final = 0.12


@final
class Oracle(nn.Module):
    """Network that predicts the attributes of 64 x 64 pictures."""

    def __init__(self, widths: tuple[int, ...] = (32, 64, 96, 128)) -> None:
        super().__init__()
        self.widths = widths
        layers: list[nn.Module] = []
        channels = 5
        for width in widths:
            layers += [nn.Conv2d(channels, width, 3, 2, 1), nn.GroupNorm(8, width), nn.SiLU()]
            layers += [nn.Conv2d(width, width, 3, 1, 1), nn.GroupNorm(8, width), nn.SiLU()] if channels > 5 else []
            channels = width
        self.trunk = nn.Sequential(*layers)
        side = 64 // 2 ** len(widths)
        outputs = sum(CHOICES.values()) + 2 * len(HUES) + 1
        self.head = nn.Sequential(nn.Linear(channels * side * side, 160), nn.SiLU(), nn.Linear(160, outputs))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The oracle saved in `folder` (config.json and model.safetensors), frozen.

        Raises:
            FileNotFoundError: there is no oracle.
        """
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        oracle = cls(tuple(config["widths"]))
        oracle.load_state_dict({k: v.float() for k, v in load_file(folder / "model.safetensors").items()})
        return oracle.eval().requires_grad_(False)

    def outputs(self, x: Float[Tensor, "n 3 64 64"]) -> dict[str, Float[Tensor, "n m"]]:
        """Raw outputs per attribute for pictures in [-1, 1]: logits, (sin, cos) of hues, and the value itself."""
        axis = torch.linspace(-1, 1, x.shape[-1], device=x.device)
        rows, columns = torch.meshgrid(axis, axis, indexing="ij")
        where = torch.stack([rows, columns]).expand(len(x), 2, -1, -1)
        flat = self.head(self.trunk(torch.cat([x, where], dim=1)).flatten(1))
        sizes = [*CHOICES.values(), *(2 for _ in HUES), 1]
        return dict(zip((*CHOICES, *HUES, "value"), flat.split(sizes, dim=1), strict=True))

    @torch.no_grad()
    def forward(self, images: UInt8[Tensor, "n h w 3"]) -> dict[str, Tensor]:
        """Predicted attributes (n,): indices for choices, hues in [0, 1), value in about [0.55, 0.95].

        Raises:
            ValueError: the images are not uint8 of shape (n, h, w, 3).
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"the oracle reads uint8 images (n, h, w, 3), not {images.dtype} {tuple(images.shape)}")
        x = images.permute(0, 3, 1, 2).float() / 127.5 - 1
        if x.shape[-2:] != (64, 64):
            x = F.interpolate(x, size=(64, 64), mode="area")
        found: dict[str, Tensor] = {}
        for name, value in self.outputs(x).items():
            if name in CHOICES:
                found[name] = value.argmax(1)
            elif name in HUES:
                found[name] = torch.atan2(value[:, 0], value[:, 1]) / (2 * torch.pi) % 1.0
            else:
                found[name] = value[:, 0]
        return found


def correct(found: Mapping[str, Tensor], truth: Mapping[str, Any]) -> dict[str, Float[Tensor, "n"]]:
    """1 if an attribute is right, else 0. `truth` holds one value for all pictures, or tensors (n,)."""
    right: dict[str, Tensor] = {}
    for name in (*IDENTITY, *PROMPT):
        if name in HUES:
            apart = (found[name] - truth[name]).abs() % 1.0
            right[name] = (torch.minimum(apart, 1 - apart) <= HUE_TOLERANCE).float()
        elif name == "value":
            right[name] = ((found[name] - truth[name]).abs() <= VALUE_TOLERANCE).float()
        else:
            right[name] = (found[name] == truth[name]).float()
    return right


def judge(found: Mapping[str, Tensor], truth: Mapping[str, Any]) -> dict[str, Float[Tensor, "n"]]:
    """The metrics of each picture against an example's truth (`Example.extra["truth"]`).

    Returns:
        identity_accuracy, prompt_accuracy: share of the 6 identity and of the 5 prompt attributes that are right.
        identity_all, prompt_all: 1 if all of them are right. both: 1 if both are 1.
        copy: 1 if the place is the reference's, which the prompt never names.
    """
    right = correct(found, truth)
    identity = torch.stack([right[name] for name in IDENTITY])
    asked = torch.stack([right[name] for name in PROMPT])
    identity_all, prompt_all = identity.min(0).values, asked.min(0).values
    return {
        "identity_accuracy": identity.mean(0),
        "prompt_accuracy": asked.mean(0),
        "identity_all": identity_all,
        "prompt_all": prompt_all,
        "both": identity_all * prompt_all,
        "copy": (found["place"] == truth["reference_place"]).float(),
    }


@final
class MiniOracle(Metric):
    """Identity and prompt accuracy in the miniature world, by its held-out attribute oracle."""

    @final
    class Config(MetricSpec):
        """A metric's section with ``type: mini_oracle``."""

        type: str = "mini_oracle"
        model: str = Field(default="mini", description="a folder with an oracle, or 'mini'")

        def model_name(self) -> str | None:
            """Its ``model``."""
            return self.model

        def held_models(self) -> Sequence[HeldModel]:
            """Its ``model``."""
            return (HeldModel(self.model, "oracle"),)

    def __init__(self, config: Config, *, device: torch.device) -> None:
        self._oracle = Oracle.load(Path(model_path(config.model, "oracle"))).to(device)
        self._device = device

    def __call__(self, example: Example, images: UInt8[Tensor, "g h w 3"]) -> Mapping[str, Float[Tensor, "g"]]:
        """identity_accuracy, prompt_accuracy, identity_all, prompt_all, both and copy of each image.

        Raises:
            ValueError: the example is not of the miniature world.
        """
        truth = example.extra.get("truth")
        if truth is None:
            raise ValueError(
                f"example {example.key!r} has no truth to compare with: mini_oracle judges data of `type: mini` only"
            )
        found = {name: value.cpu() for name, value in self._oracle(images.to(self._device)).items()}
        return judge(found, truth)
