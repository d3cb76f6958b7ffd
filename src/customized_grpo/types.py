"""Data types of a GRPO step: an example, its conditioning, and the trajectory of a group.

Dimensions: G group size, T sampler steps, K trained steps, S latent tokens, C latent channels, H x W pixels.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

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
    targets: tuple[Image, ...] = ()
    """RGB pictures of the prompt that a supervised objective learns from: the target, or the chosen and the rejected.
    Empty where nothing asks for them, as in reinforcement learning."""
    size: tuple[int, int] | None = None
    """Height and width in pixels that an image of the prompt should have, of which training in buckets takes the
    nearest; None: those of the picture to learn from, or the policy's own."""
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
            targets=tuple(picture.copy() for picture in self.targets),
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
class Rollout(ABC):
    """One group: G samples of one prompt, and K noise levels at which each of them is trained."""

    example: Example
    cond: Conditioning
    sigmas: Float[Tensor, " t_plus_1"]
    """Noise levels of the sampler, float32, from 1 (noise) to 0 (data)."""
    images: UInt8[Tensor, "g h w 3"]
    """Decoded images, for rewards and logs."""

    @property
    @abstractmethod
    def progress(self) -> Float[Tensor, " k"] | Int[Tensor, " k"]:
        """Place of each trained level on the sampler's grid, in steps; between two steps it is a fraction."""

    @abstractmethod
    def pairs(
        self, g: Int[Tensor, " n"], k: Int[Tensor, " n"], advantage: Float[Tensor, " n"], weight: Float[Tensor, " n"]
    ) -> Any:
        """The pairs of samples ``g`` and levels ``k``, the input of one forward with gradient, and their weights."""

    @abstractmethod
    def select(self, samples: Int[Tensor, " n"]) -> Self:
        """The same rollout of some of its samples alone; before ``with_old``."""

    @abstractmethod
    def with_old(self, samples: range, old: Float[Tensor, "n k *values"]) -> Self:
        """The same rollout with what the old policy gives for some of its samples, as a loss compares with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """n transitions of one group, the input of one replay forward."""

    cond: Conditioning
    x: Float[Tensor, "n s c"]
    x_next: Float[Tensor, "n s c"]
    sigma: Float[Tensor, " n"]
    sigma_next: Float[Tensor, " n"]
    sigma_max: Float[Tensor, ""]
    log_prob: Float[Tensor, " n"]
    """Log-probability in the rollout."""
    advantage: Float[Tensor, " n"]
    """Advantage, clamped and multiplied by the step's loss weight."""
    old_mean: Float[Tensor, "n s c"] | None = None
    """Mean of each transition under the old policy, where it was recorded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory(Rollout):
    """A group with the data to replay its trained transitions."""

    steps: Int[Tensor, " k"]
    """Indices of the trained steps in ``sigmas``, stored with the states so that time weights can't be misaligned."""
    x: Float[Tensor, "g k s c"]
    """State before each trained step, in the storage dtype."""
    x_next: Float[Tensor, "g k s c"]
    """Sampled next state, rounded to the storage dtype *before* its log-probability is computed."""
    log_prob: Float[Tensor, "g k"]
    """Log-probability of each trained step, float32, mean over (s, c)."""
    mean: Float[Tensor, "g k s c"] | None = None
    """Mean of each trained transition, float32, where the objective compares it."""

    @property
    def progress(self) -> Int[Tensor, " k"]:
        """The trained steps."""
        return self.steps

    def pairs(
        self, g: Int[Tensor, " n"], k: Int[Tensor, " n"], advantage: Float[Tensor, " n"], weight: Float[Tensor, " n"]
    ) -> Pairs:
        """The transitions of samples ``g`` at the trained steps number ``k``."""
        steps = self.steps[k]
        return Pairs(
            cond=self.cond,
            x=self.x[g, k],
            x_next=self.x_next[g, k],
            sigma=self.sigmas[steps],
            sigma_next=self.sigmas[steps + 1],
            sigma_max=self.sigmas[1],
            log_prob=self.log_prob[g, k],
            advantage=advantage * weight,  # the surrogate is linear in it
            old_mean=None if self.mean is None else self.mean[g, k],
        )

    def select(self, samples: Int[Tensor, " n"]) -> Self:
        """See ``Rollout.select``."""
        return replace(
            self,
            images=self.images[samples],
            x=self.x[samples],
            x_next=self.x_next[samples],
            log_prob=self.log_prob[samples],
            mean=None if self.mean is None else self.mean[samples],
        )

    def with_old(self, samples: range, old: Float[Tensor, "n k *values"]) -> Self:
        """The same trajectory with other log-probabilities (n, k), or other means (n, k, s, c), of some samples."""
        recorded = self.log_prob if old.ndim == 2 else self.mean
        assert recorded is not None, "only recorded means are replaced"
        recorded = recorded.clone()
        recorded[samples.start : samples.stop] = old
        return replace(self, log_prob=recorded) if old.ndim == 2 else replace(self, mean=recorded)


@dataclass(frozen=True, slots=True, kw_only=True)
class NoisedPairs:
    """n noised samples of one group: x_t = (1 - sigma) x0 + sigma noise, whose flow has the velocity noise - x0."""

    cond: Conditioning
    x_t: Float[Tensor, "n s c"]
    """float32; the policy is given it in the storage dtype."""
    x0: Float[Tensor, "n s c"]
    noise: Float[Tensor, "n s c"]
    sigma: Float[Tensor, " n"]
    old_velocity: Float[Tensor, "n s c"] | None
    """Velocity of the old policy; None where it is that of the weights as they are."""
    average_velocity: Float[Tensor, "n s c"] | None
    """Velocity of a running average of the weights, where the loss holds on to one."""
    advantage: Float[Tensor, " n"]
    """Advantage, clamped."""
    weight: Float[Tensor, " n"]
    """Weight of the level in the loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Noised(Rollout):
    """A group's final latents, noised anew to K levels (the forward process): how they were sampled doesn't matter."""

    places: Float[Tensor, " k"]
    """Places of the levels on the sampler's grid, in steps."""
    levels: Float[Tensor, " k"]
    """Their sigmas."""
    x0: Float[Tensor, "g s c"]
    """Final latents, float32."""
    noise: Float[Tensor, "g k s c"]
    """Fresh noise of every sample at every level, float32."""
    old_velocity: Float[Tensor, "g k s c"] | None = None
    """Velocity of the old policy at the noised latents, where it is not that of the weights as they are."""
    average_velocity: Float[Tensor, "g k s c"] | None = None
    """Velocity of a running average of the weights, where the loss holds on to one."""

    @property
    def progress(self) -> Float[Tensor, " k"]:
        """See ``places``."""
        return self.places

    def pairs(
        self, g: Int[Tensor, " n"], k: Int[Tensor, " n"], advantage: Float[Tensor, " n"], weight: Float[Tensor, " n"]
    ) -> NoisedPairs:
        """Samples ``g`` at the levels number ``k``."""
        x0, noise, sigma = self.x0[g], self.noise[g, k], self.levels[k]
        at = sigma[:, None, None]
        return NoisedPairs(
            cond=self.cond,
            x_t=(1 - at) * x0 + at * noise,
            x0=x0,
            noise=noise,
            sigma=sigma,
            old_velocity=None if self.old_velocity is None else self.old_velocity[g, k],
            average_velocity=None if self.average_velocity is None else self.average_velocity[g, k],
            advantage=advantage,
            weight=weight,
        )

    def select(self, samples: Int[Tensor, " n"]) -> Self:
        """See ``Rollout.select``."""
        assert self.old_velocity is None, "velocities to compare with are of samples that are already chosen"
        assert self.average_velocity is None, "velocities to compare with are of samples that are already chosen"
        return replace(self, images=self.images[samples], x0=self.x0[samples], noise=self.noise[samples])

    def with_old(self, samples: range, old: Float[Tensor, "n k s c"]) -> Self:
        """The same group with the old policy's velocity for some samples; NaN for the others."""
        return replace(self, old_velocity=self._filled(samples, old))

    def with_average(self, samples: range, velocity: Float[Tensor, "n k s c"]) -> Self:
        """The same group with the velocity of a running average of the weights for some samples."""
        return replace(self, average_velocity=self._filled(samples, velocity))

    def _filled(self, samples: range, given: Tensor) -> Tensor:
        whole = torch.full_like(self.noise, torch.nan)
        whole[samples.start : samples.stop] = given
        return whole
