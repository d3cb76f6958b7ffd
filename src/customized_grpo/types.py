"""Data types of a GRPO step: an example, its conditioning, and the trajectory of a group.

Dimensions: G group size, T sampler steps, K trained steps, S latent tokens, C latent channels, H x W pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from PIL.Image import Image
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One prompt with its subject's references: input of the policy and of the rewards.

    Example:
        ``Example(key="backpack-03", prompt="a backpack in the snow", references=(image,), subject="backpack")``
    """

    key: str
    """Stable id, used in cache keys and file names."""
    prompt: str
    references: tuple[Image, ...]
    """RGB images, with EXIF orientation applied and transparency on white."""
    subject: str = ""
    """Class word ("backpack"), for judge prompts and segmentation."""
    masks: tuple[Image | None, ...] = ()
    """One mask per reference (mode L, white for the subject), or empty."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further data of the data set, such as the ground truth of the miniature world."""

    def __post_init__(self) -> None:
        for picture in self.references:
            if picture.mode != "RGB":
                raise ValueError(
                    f"example {self.key!r}: a reference has Pillow's mode {picture.mode}; allowed: RGB, because models "
                    "would read the colours that transparency hides; customized_grpo.load_image makes RGB of any file"
                )

    def copy(self) -> "Example":
        """A copy with pictures of its own: what changes them in place, as ``thumbnail`` does, changes no other's."""
        return replace(
            self,
            references=tuple(picture.copy() for picture in self.references),
            masks=tuple(None if mask is None else mask.copy() for mask in self.masks),
            extra=dict(self.extra),
        )


@dataclass(frozen=True, slots=True)
class Conditioning:
    """One prompt and its references as tensors with a leading dimension of 1, which ``Policy.velocity`` expands.

    ``policies.base.stack`` combines several prompts, one row per sample.
    """

    tensors: Mapping[str, Tensor]

    def to(self, device: torch.device) -> "Conditioning":
        """The same conditioning on another device."""
        return Conditioning({name: tensor.to(device) for name, tensor in self.tensors.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """One group: G samples of one prompt, with the data to replay their trained steps."""

    example: Example
    cond: Conditioning
    sigmas: Float[Tensor, " t_plus_1"]
    """Noise levels, float32, from 1 (noise) to 0 (data)."""
    steps: Int[Tensor, " k"]
    """Indices of the trained steps in ``sigmas``, stored with the states so that time weights can't be misaligned."""
    x: Float[Tensor, "g k s c"]
    """State before each trained step, in the storage dtype."""
    x_next: Float[Tensor, "g k s c"]
    """Sampled next state, rounded to the storage dtype *before* its log-probability is computed."""
    log_prob: Float[Tensor, "g k"]
    """Log-probability of each trained step, float32, mean over (s, c)."""
    images: UInt8[Tensor, "g h w 3"]
    """Decoded images, for rewards and logs."""
