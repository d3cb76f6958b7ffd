"""DINOv2 identity reward: 100 x the cosine of the CLS features of image and reference, mean over references.

Dimensions: G group size, n batch, D features, H x W pixels. Source: Customized-GRPO (arXiv 2510.18263), whose
identity reward is DINOv2-base by transformers; features are ``last_hidden_state[:, 0]``.
"""

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float, UInt8
from PIL.Image import Image
from pydantic import Field, PositiveInt
from torch import Tensor

# The PIL processor by name: with torchvision installed the default would be another one, and so the reward.
from transformers import BitImageProcessorPil, Dinov2Model

from customized_grpo.paths import model_path
from customized_grpo.rewards.base import Reward, RewardConfig
from customized_grpo.rewards.features import (
    DtypeName,
    FeatureCache,
    in_batches,
    load_frozen,
    mean_cosine,
    to_pil,
)
from customized_grpo.types import Example


@final
class Dino(Reward):
    """DINOv2 similarity to the references, in [-100, 100]."""

    @final
    class Config(RewardConfig):
        """A reward's section with ``type: dino``."""

        model: str = Field(
            default="facebook/dinov2-base", description="hub id, folder, 'mini' or 'mini-judge'"
        )
        batch_size: PositiveInt = Field(default=32, description="images in one forward")
        dtype: DtypeName = "float32"

    def __init__(self, config: Config, *, device: torch.device) -> None:
        self._device = device
        self._batch_size = config.batch_size
        self._model = load_frozen(
            Dinov2Model, config.model, "dino", model_type="dinov2", dtype=config.dtype, device=device
        )
        self._processor = BitImageProcessorPil.from_pretrained(model_path(config.model, "dino"))
        self._references = FeatureCache(self._encode)

    def __call__(self, example: Example, images: UInt8[Tensor, "g h w 3"]) -> Float[Tensor, " g"]:
        """Mean similarity of each image to the example's references.

        Raises:
            ValueError: the example has no reference.
        """
        if not example.references:
            raise ValueError(f"example {example.key!r} has no reference to compare with")
        features = in_batches(self._encode, to_pil(images), self._batch_size)
        references = self._references(example.references)
        return mean_cosine(features, references).cpu()

    @torch.no_grad()
    def _encode(self, images: Sequence[Image]) -> Float[Tensor, "n d"]:
        pixels: Tensor = self._processor(images=list(images), return_tensors="pt")["pixel_values"]
        states: Tensor = self._model(
            pixel_values=pixels.to(self._device, self._model.dtype)
        ).last_hidden_state
        return states[:, 0].float()
