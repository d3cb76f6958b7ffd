"""Base class of policies: four methods over a diffusers model. Rollout and replay share one ``velocity()``.

Dimensions: n batch, S latent tokens, C latent channels, H x W pixels. sigma is float32 in [0, 1], 1 is pure noise;
velocity v = noise - data.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, ClassVar, Final, Literal, Self

import torch
from jaxtyping import Float, UInt8
from PIL.Image import Image
from torch import Tensor, nn

from customized_grpo import registry
from customized_grpo.devices import open_device
from customized_grpo.policies import acceleration
from customized_grpo.policies.balance import BALANCE, Gate
from customized_grpo.recipe.config import EvaluateRecipe, Recipe
from customized_grpo.recipe.sections import FullSettings as FullSettings
from customized_grpo.recipe.sections import LoraSettings as LoraSettings
from customized_grpo.recipe.sections import PolicySpec as PolicyConfig
from customized_grpo.types import Conditioning

__all__ = [
    "FullSettings",
    "LoraSettings",
    "Policy",
    "PolicyConfig",
    "dtype_of",
    "load_policy",
    "stack",
]


NO_LORA: Final = "none"
"""``Policy.base_lora`` of a base without one."""


class Policy(ABC):
    """A reference-conditioned flow model. Concrete policies are final; to vary one, wrap it.

    Attributes:
        Config: the pydantic model that reads this policy's section of a recipe.
        pipeline_class: the diffusers pipeline whose LoRA format the adapter is saved in and loaded by.
        pipeline_forms: names of further pipelines of diffusers whose models it reads, in the same LoRA format.
        lora_targets: default ``LoraSettings.targets``.
        encoders: parts of the pipeline that only ``encode`` needs. Where there are any, ``load`` takes ``absent``,
            names of parts to leave out: these, or the transformer's weights.
        lora_presets: further lists of targets, by the name that stands for them in a recipe.
        batch_wide: conditioning tensors that hold for a whole batch (position ids): only prompts that agree in
            them, and in the shapes of all others, can be stacked into one batch.
        transformer: the only trained and wrapped module. The trainer replaces it by its prepared (DDP, FSDP) form.
        latent_shape: (S, C) of one sample in the recipe's output size.
        device, dtype: where the model runs, and the dtype of its weights and of stored states.
        base_hash: hash of the untrained weights, set by ``tuning.attach``; see ``hashes.base_hash``.
        base_lora: hash of a LoRA that is part of them, set by ``load``; see ``hashes.update_hash``.
        base_weights: initial values of the trained parameters, by name, in full fine-tuning with a KL.
        gate: of a balanced adapter (``policies.balance``); None: there is none.
    """

    Config: ClassVar[type[PolicyConfig]]
    pipeline_class: ClassVar[Any]
    pipeline_forms: ClassVar[tuple[str, ...]] = ()
    lora_targets: ClassVar[tuple[str, ...]]
    encoders: ClassVar[tuple[str, ...]] = ()
    lora_presets: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    batch_wide: ClassVar[tuple[str, ...]] = ()

    transformer: nn.Module
    latent_shape: tuple[int, int]
    device: torch.device
    dtype: torch.dtype
    base_hash: str = ""
    base_lora: str = NO_LORA
    base_weights: Mapping[str, Tensor] | None = None
    gate: Gate | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        """Put a balanced adapter's b in place wherever a policy computes, so that none has to think of it."""
        super().__init_subclass__(**options)
        conditioning = dict.fromkeys(("prefill", "on_grid"), _gated_conditioning)
        gated: dict[str, Callable[..., Any]] = {"velocity": _gated_velocity, **conditioning}
        for name in gated.keys() & cls.__dict__.keys():
            setattr(cls, name, gated[name](cls.__dict__[name]))

    @classmethod
    @abstractmethod
    def load(cls, config: Any, *, device: torch.device, dtype: torch.dtype) -> Self:
        """Load frozen weights; an adapter is attached, or weights unfrozen, afterwards (``adapters.tuning.attach``)."""

    @classmethod
    def idle(cls, transformer: Any) -> tuple[str, ...]:
        """Parameters without gradient, in the form of ``FullSettings.targets``; full fine-tuning leaves them frozen."""
        return ()

    def resized(self, section: Any) -> Self:
        """The same model, drawing images of another size: a view that shares all weights with this policy.

        A policy that can has ``resizes`` in its section, and then: what the view encodes, draws and decodes is what a
        policy does that was loaded with that section. The view has the transformer of now, so it is made anew after the
        trainer has replaced that.

        Args:
            section: this policy's, of which only ``height`` and ``width`` differ.

        Raises:
            ValueError: the policy doesn't say how.
        """
        raise ValueError(
            f"policy {type(self).__name__} has no method resized(section), and its Config.resizes is true; write it, "
            "or leave that out"
        )

    @abstractmethod
    def encode(self, prompt: str, references: Sequence[Image]) -> Conditioning:
        """Text and references of one prompt, each tensor with leading dimension 1. No gradient."""

    def on_grid(self, cond: Conditioning, sigmas: Float[Tensor, " t_plus_1"]) -> Conditioning:
        """The conditioning of a rollout over these noise levels, and of its replay.

        Only a flow map, which takes the level that a step goes to, needs it: without, it gives the velocity of an
        infinitely small step. All others return what they are given.
        """
        return cond

    def prefill(self, cond: Conditioning) -> Conditioning:
        """The conditioning, with what is the same at all noise levels computed once, by the weights as they are.

        A rollout gives it to ``velocity`` in place of ``cond``, and gets the same bits. It carries no gradient and
        belongs to these weights, so replays are given ``cond`` itself. Most policies have nothing to keep.
        """
        return cond

    @abstractmethod
    def velocity(
        self, x: Float[Tensor, "n s c"], sigma: Float[Tensor, ""] | Float[Tensor, " n"], cond: Conditioning
    ) -> Float[Tensor, "n s c"]:
        """float32 velocity of n samples, all at one sigma or each at its own.

        Guidance and autocast happen inside, so that rollout and replay can't differ. ``cond`` belongs to one prompt, or
        is a stack of n (see ``stack``).
        """

    def latents(self, images: Sequence[Image]) -> Float[Tensor, "n s c"]:
        """float32 latents of RGB pictures in the output size, what ``decode`` undoes: the mode of the VAE's posterior.

        Only supervised objectives ask for them. No gradient.

        Raises:
            ValueError: the policy doesn't say how pictures become latents.
        """
        raise ValueError(
            f"policy {type(self).__name__} has no method latents(images), by which a supervised objective (sft, dpo) "
            "learns from pictures; add it beside decode, which it is the inverse of"
        )

    @abstractmethod
    def decode(self, x: Float[Tensor, "n s c"]) -> UInt8[Tensor, "n h w 3"]:
        """Final latents to uint8 RGB on the CPU. No gradient."""


def _gated_velocity(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @wraps(method)
    def velocity(self: Policy, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        if self.gate is not None:
            self.gate.put(cond)
        return method(self, x, sigma, cond)

    return velocity


def _gated_conditioning(method: Callable[..., Conditioning]) -> Callable[..., Conditioning]:
    """Wrapper of ``prefill`` and ``on_grid``: b is in what they give, whether they think of it or not."""

    @wraps(method)
    def made(self: Policy, cond: Conditioning, *further: Tensor) -> Conditioning:
        if self.gate is not None:
            self.gate.put(cond)
        kept = method(self, cond, *further)
        return Conditioning({**kept.tensors, BALANCE: cond.tensors[BALANCE]}) if BALANCE in cond.tensors else kept

    return made


def stack(policy: Policy, conds: Sequence[Conditioning], repeats: int) -> Conditioning | None:
    """Several prompts as one conditioning with ``repeats`` rows each, or None if they can't share a batch."""
    first = conds[0].tensors
    wide = [name for name in policy.batch_wide if name in first]
    for cond in conds[1:]:
        same = cond.tensors.keys() == first.keys()
        fits = same and all(tensor.shape == first[name].shape for name, tensor in cond.tensors.items())
        if not fits or not all(torch.equal(cond.tensors[name], first[name]) for name in wide):
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
    spec: Recipe | EvaluateRecipe | PolicyConfig,
    *,
    device: torch.device | None = None,
    precision: Literal["no", "bf16"] | None = None,
    parts: Literal["all", "encoders", "all but encoders"] = "all",
) -> Policy:
    """Load the frozen policy of a recipe, with its attention backend set and its blocks compiled.

    It computes as the base does; ``adapters.tuning.load_tuned`` puts on it what a run trained.

    Args:
        spec: a recipe, or its section ``policy``.
        device: where it runs; None: ``run.device`` of the recipe, or the GPU where there is one.
        precision: of its weights and stored states; None: ``run.precision`` of the recipe, or bf16.
        parts: ``encoders`` if only ``encode`` will be called, ``all but encoders`` if it never is. A policy that can't
            be loaded in parts is loaded whole.

    Raises:
        ValueError: the model is missing, not one of the policy's, or can't run as configured.
    """
    asked, key = ("auto", "device") if device is None else (str(device), "device")
    if isinstance(spec, Recipe | EvaluateRecipe):
        asked, key = (spec.run.device, "run.device") if device is None else (asked, key)
        if spec.policy.compile:
            acceleration.keep_compiled(spec.run.cache)
        precision, spec = precision or spec.run.precision, spec.policy
    device = open_device(asked, key)
    kind: Any = registry.resolve("policies", registry.type_of(spec))
    absent = {"all": (), "encoders": ("transformer",), "all but encoders": kind.encoders}[parts]
    missing = {"absent": absent} if kind.encoders and absent else {}
    policy: Policy = kind.load(spec, device=device, dtype=dtype_of(precision or "bf16"), **missing)
    if parts != "encoders":
        acceleration.apply(
            policy.transformer,
            device,
            quantization=spec.quantization,
            attention=spec.attention,
            norms=spec.norms,
            compile_blocks=spec.compile,
        )
    return policy


def dtype_of(precision: Literal["no", "bf16"]) -> torch.dtype:
    """The dtype of ``run.precision``."""
    return {"bf16": torch.bfloat16, "no": torch.float32}[precision]
