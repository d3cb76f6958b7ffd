"""What a policy is: four methods over a diffusers model. Rollout and replay both call the one ``velocity()``.

Dimensions: n batch, S latent tokens, C latent channels, H x W pixels. sigma is float32 in [0, 1], 1 is pure noise;
velocity v = noise - data.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import torch
from jaxtyping import Float, UInt8
from PIL.Image import Image
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from customized_grpo import registry
from customized_grpo.types import Conditioning


class LoraSettings(BaseModel):
    """The trained adapter: peft's LoRA, by way of diffusers' ``add_adapter``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: PositiveInt = 64
    alpha: PositiveFloat | None = Field(
        default=None, description="scale is alpha / rank; null means alpha = rank"
    )
    init: Literal["gaussian", "kaiming"] = "gaussian"
    targets: tuple[str, ...] | None = Field(
        default=None,
        description="module name suffixes, regular expressions, or names of the policy's presets (FLUX: uno); null: "
        "the policy's own default",
    )
    qkv: Literal["separate", "shared"] = Field(
        default="separate",
        description="shared: q, k and v of a layer have one A, as in UNO's LoRA, which it is exported to without loss",
    )
    path: str | None = Field(
        default=None, description="start from this adapter (folder or .safetensors file)"
    )


class PolicyConfig(BaseModel):
    """What every policy's ``Config`` holds; each policy adds its own fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: str
    model: str
    height: PositiveInt = 512
    width: PositiveInt = 512
    lora: LoraSettings = LoraSettings()
    gradient_checkpointing: bool = False

    def latent_shape(self) -> tuple[int, int] | None:
        """(S, C) of one sample where it is known without loading the model, for ``validate``; else None."""
        return None


class Policy(ABC):
    """A reference-conditioned flow model. Concrete policies are final; to vary one, wrap it.

    Attributes:
        Config: the pydantic model that reads this policy's section of a recipe.
        pipeline_class: the diffusers pipeline whose LoRA format the adapter is saved in and loaded by.
        lora_targets: default ``LoraSettings.targets``.
        lora_presets: further lists of targets, by the name that stands for them in a recipe.
        batch_wide: conditioning tensors that hold for a whole batch (position ids): only prompts that agree in
            them, and in the shapes of all others, can be stacked into one batch.
        transformer: the only trained and wrapped module. The trainer replaces it by its prepared (DDP, FSDP) form.
        latent_shape: (S, C) of one sample in the recipe's output size.
        device, dtype: where the model runs, and the dtype of its weights and of stored states.
        base_hash: of the frozen weights, from ``lora.attach`` on; see ``hashes.base_hash``.
    """

    Config: ClassVar[type[PolicyConfig]]
    pipeline_class: ClassVar[Any]
    lora_targets: ClassVar[tuple[str, ...]]
    lora_presets: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    batch_wide: ClassVar[tuple[str, ...]] = ()

    transformer: nn.Module
    latent_shape: tuple[int, int]
    device: torch.device
    dtype: torch.dtype
    base_hash: str = ""

    @classmethod
    @abstractmethod
    def load(cls, config: Any, *, device: torch.device, dtype: torch.dtype) -> Self:
        """Load frozen weights; the adapter is attached afterwards by ``policies.lora.attach``."""

    @abstractmethod
    def encode(self, prompt: str, references: Sequence[Image]) -> Conditioning:
        """Text and references of one prompt, each tensor with leading dimension 1. No gradient."""

    @abstractmethod
    def velocity(
        self, x: Float[Tensor, "n s c"], sigma: Float[Tensor, ""] | Float[Tensor, " n"], cond: Conditioning
    ) -> Float[Tensor, "n s c"]:
        """float32 velocity of n samples, all at one sigma or each at its own.

        Guidance and autocast happen inside, so that nothing can differ between rollout and replay. ``cond`` is one
        prompt's, or a stack of n (see ``stack``).
        """

    @abstractmethod
    def decode(self, x: Float[Tensor, "n s c"]) -> UInt8[Tensor, "n h w 3"]:
        """Final latents to uint8 RGB on the CPU. No gradient."""


def stack(policy: Policy, conds: Sequence[Conditioning], repeats: int) -> Conditioning | None:
    """Several prompts as one conditioning with ``repeats`` rows each, or None where they can't share a batch."""
    first = conds[0].tensors
    for cond in conds[1:]:
        fits = all(tensor.shape == first[name].shape for name, tensor in cond.tensors.items())
        if not fits or not all(torch.equal(cond.tensors[name], first[name]) for name in policy.batch_wide):
            return None
    return Conditioning(
        {
            name: tensor
            if name in policy.batch_wide
            else torch.cat([cond.tensors[name] for cond in conds]).repeat_interleave(repeats, 0)
            for name, tensor in first.items()
        }
    )


def load_policy(spec: Any, *, device: torch.device, precision: Literal["no", "bf16"]) -> Policy:
    """The frozen policy of a recipe's ``policy`` section.

    Raises:
        ValueError: the model is not there, or not one that the policy can read.
    """
    dtype = {"bf16": torch.bfloat16, "no": torch.float32}[precision]
    policy: Policy = registry.resolve("policies", registry.type_of(spec)).load(
        spec, device=device, dtype=dtype
    )
    return policy


def runs_on_cpu(device: str) -> bool:
    """Whether accelerate must be told to use the CPU, for a recipe's ``run.device``.

    Without it, several processes on a machine without a GPU (torchrun, WORLD_SIZE) are not joined: each trains alone.
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return device == "cpu" or (device == "auto" and several and not torch.cuda.is_available())
