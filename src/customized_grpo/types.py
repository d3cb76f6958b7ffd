"""The data that flows through a GRPO step: an example, its conditioning, and the group sampled from it.

Dimensions: G group size, T sampler steps, K trained steps, S latent tokens, C latent channels, H x W pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from PIL.Image import Image
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One prompt of one subject: what a policy is asked to draw and what a reward judges against.

    Example:
        ``Example(key="backpack-03", prompt="a backpack in the snow", references=(image,), subject="backpack")``
    """

    key: str
    """Stable id: cache key and file name."""
    prompt: str
    references: tuple[Image, ...]
    """RGB, EXIF orientation applied, transparency on white."""
    subject: str = ""
    """Class word ("backpack"), for judges and segmentation."""
    masks: tuple[Image | None, ...] = ()
    """One mask a reference (mode L, white is the subject), or empty."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What the data set knows beyond the above (ground truth of the miniature world, for instance)."""


@dataclass(frozen=True, slots=True)
class Conditioning:
    """One prompt and its references as tensors with a leading dimension of 1, which ``Policy.velocity`` expands.

    ``policies.base.stack`` makes one of several prompts, a row a sample.
    """

    tensors: Mapping[str, Tensor]

    def to(self, device: torch.device) -> "Conditioning":
        """The same conditioning on another device."""
        return Conditioning({name: tensor.to(device) for name, tensor in self.tensors.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """One group: G samples of one prompt, with what a replay of their trained steps needs."""

    example: Example
    cond: Conditioning
    sigmas: Float[Tensor, " t_plus_1"]
    """float32, from 1 (noise) to 0 (data)."""
    steps: Int[Tensor, " k"]
    """Trained indices into ``sigmas``. They travel with the states, so a time weight can't be looked up elsewhere."""
    x: Float[Tensor, "g k s c"]
    """State before each trained step, storage dtype."""
    x_next: Float[Tensor, "g k s c"]
    """Sampled next state, rounded to the storage dtype *before* it was scored."""
    log_prob: Float[Tensor, "g k"]
    """float32, mean over (s, c)."""
    images: UInt8[Tensor, "g h w 3"]
    """What every reward sees and what is logged."""
