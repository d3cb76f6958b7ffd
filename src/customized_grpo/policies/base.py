"""What a policy is: four methods over a diffusers model. Rollout and replay both call the one ``velocity()``.

Dimensions: n batch, S latent tokens, C latent channels, H x W pixels. sigma is float32 in [0, 1], 1 is pure noise;
velocity v = noise - data.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from jaxtyping import Float, UInt8
from PIL.Image import Image
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)
from torch import Tensor, nn

from customized_grpo import registry
from customized_grpo.paths import model_path
from customized_grpo.policies import acceleration
from customized_grpo.policies.shifts import Shift, ShiftRule
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


class FullSettings(BaseModel):
    """Full fine-tuning: the transformer's own weights are trained, in float32; see ``policies.adapters.full``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    targets: tuple[str, ...] | None = Field(
        default=None,
        description="modules (with all beneath them) or parameters, by regular expressions that match a full name or "
        "its end; null: all",
    )
    path: str | None = Field(
        default=None,
        description="start from this transformer: a run or checkpoint of full fine-tuning, or a folder of diffusers",
    )


class PolicyConfig(BaseModel):
    """What every policy's ``Config`` holds; each policy adds its own fields.

    Attributes:
        not_encoded: fields that ``Policy.encode`` doesn't depend on; all others are in a cached conditioning's key.
        embedded: which of the package's miniature models ``model: mini`` is.
        shift_rules: what names mean as ``sampling.shift``; ``dynamic`` is the model's own rule by the image's size.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    not_encoded: ClassVar[frozenset[str]] = frozenset(
        {"lora", "full", "gradient_checkpointing", "quantization", "attention", "compile"}
    )
    embedded: ClassVar[str] = "flux"
    shift_rules: ClassVar[Mapping[str, ShiftRule]] = {}

    type: str
    model: str
    height: PositiveInt = 512
    width: PositiveInt = 512
    lora: LoraSettings | None = Field(
        default=LoraSettings(), description="train an adapter; null where full is given"
    )
    full: FullSettings | None = Field(
        default=None, description="train the transformer itself instead of an adapter; {}: all of its weights"
    )
    gradient_checkpointing: bool | Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        default=False,
        description="compute activations again in the backward pass, to store less; of all blocks, or of a share",
    )
    quantization: Literal["none", "8bit", "4bit"] = Field(
        default="none",
        description="weights of the frozen transformer by bitsandbytes: LLM.int8 or NF4; needs a GPU",
    )
    attention: str | None = Field(
        default=None,
        description="diffusers' attention backend, such as flash or _native_cudnn; null: its own",
    )
    compile: bool = Field(default=False, description="torch.compile the transformer's repeated blocks")

    @field_validator("attention")
    @classmethod
    def _known_backend(cls, name: str | None) -> str | None:
        if name is not None:
            acceleration.check_backend_name(name)
        return name

    @model_validator(mode="before")
    @classmethod
    def _full_takes_the_place_of_lora(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("full") is not None:
            return {"lora": None, **given}
        return given

    @model_validator(mode="after")
    def _one_form_of_training(self) -> Self:
        if self.lora is None and self.full is None:
            raise ValueError(
                "lora: null leaves nothing to train; give full: {} to train the transformer itself"
            )
        if self.full is None:
            return self
        if self.lora is not None:
            raise ValueError(
                "full: it trains the transformer itself, and lora an adapter on it; leave one out (lora: null)"
            )
        if self.quantization != "none":
            raise ValueError(
                f"full: weights that are held in {self.quantization} can't be trained; use quantization: none, or lora"
            )
        return self

    def source(self) -> str:
        """The folder or hub id that the weights are read from."""
        return model_path(self.model, self.embedded)

    def shift(self, given: float | str, *, tokens: int, steps: int) -> Shift:
        """``sampling.shift`` of an image of so many tokens in so many steps.

        Raises:
            ValueError: the name of a rule that this policy doesn't have.
        """
        if not isinstance(given, str):
            return Shift(float(given))
        if given not in self.shift_rules:
            known = ", ".join(self.shift_rules) or "no rule"
            raise ValueError(
                f"sampling.shift: {given!r} is no rule of policy.type {self.type}, which has {known}; give a number "
                "or one that it has"
            )
        return self.shift_rules[given](tokens, steps)

    def num_forwards(self) -> int:
        """Forwards of the transformer in one velocity, at most: 2 with classifier-free guidance."""
        return 1

    def latent_shape(self) -> tuple[int, int] | None:
        """(S, C) of one sample where it is known without loading the model, for ``validate``; else None."""
        return None


class Policy(ABC):
    """A reference-conditioned flow model. Concrete policies are final; to vary one, wrap it.

    Attributes:
        Config: the pydantic model that reads this policy's section of a recipe.
        pipeline_class: the diffusers pipeline whose LoRA format the adapter is saved in and loaded by.
        lora_targets: default ``LoraSettings.targets``.
        encoders: parts of the pipeline that only ``encode`` needs. Where there are any, ``load`` takes ``absent``,
            names of parts to leave out: these, or the transformer's weights.
        lora_presets: further lists of targets, by the name that stands for them in a recipe.
        batch_wide: conditioning tensors that hold for a whole batch (position ids): only prompts that agree in
            them, and in the shapes of all others, can be stacked into one batch.
        transformer: the only trained and wrapped module. The trainer replaces it by its prepared (DDP, FSDP) form.
        latent_shape: (S, C) of one sample in the recipe's output size.
        device, dtype: where the model runs, and the dtype of its weights and of stored states.
        base_hash: of the weights without training, from ``tuning.attach`` on; see ``hashes.base_hash``.
        base_weights: of full fine-tuning for a KL: what the trained parameters were at first, by name.
    """

    Config: ClassVar[type[PolicyConfig]]
    pipeline_class: ClassVar[Any]
    lora_targets: ClassVar[tuple[str, ...]]
    encoders: ClassVar[tuple[str, ...]] = ()
    lora_presets: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    batch_wide: ClassVar[tuple[str, ...]] = ()

    transformer: nn.Module
    latent_shape: tuple[int, int]
    device: torch.device
    dtype: torch.dtype
    base_hash: str = ""
    base_weights: Mapping[str, Tensor] | None = None

    @classmethod
    @abstractmethod
    def load(cls, config: Any, *, device: torch.device, dtype: torch.dtype) -> Self:
        """Load frozen weights; what is trained is attached or unfrozen afterwards (``adapters.tuning.attach``)."""

    @classmethod
    def idle(cls, transformer: Any) -> tuple[str, ...]:
        """Parameters that no gradient reaches, as ``FullSettings.targets`` says them; full fine-tuning leaves them."""
        return ()

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


def load_policy(
    spec: Any,
    *,
    device: torch.device,
    precision: Literal["no", "bf16"],
    parts: Literal["all", "encoders", "all but encoders"] = "all",
) -> Policy:
    """The frozen policy of a recipe's ``policy`` section, with its attention backend set and its blocks compiled.

    Args:
        spec: the section.
        device: where it runs.
        precision: of its weights and stored states.
        parts: with ``encoders`` only ``encode`` will be called, with ``all but encoders`` it never is. A policy that
            can't be loaded in parts is loaded whole.

    Raises:
        ValueError: the model is not there, not one that the policy can read, or can't run as the section asks.
    """
    kind: Any = registry.resolve("policies", registry.type_of(spec))
    absent = {"all": (), "encoders": ("transformer",), "all but encoders": kind.encoders}[parts]
    missing = {"absent": absent} if kind.encoders and absent else {}
    policy: Policy = kind.load(spec, device=device, dtype=dtype_of(precision), **missing)
    if parts != "encoders":
        acceleration.apply(
            policy.transformer,
            device,
            quantization=spec.quantization,
            attention=spec.attention,
            compile_blocks=spec.compile,
        )
    return policy


def dtype_of(precision: Literal["no", "bf16"]) -> torch.dtype:
    """The dtype of ``run.precision``."""
    return {"bf16": torch.bfloat16, "no": torch.float32}[precision]
