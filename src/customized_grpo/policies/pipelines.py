"""Shared parts of policies over a diffusers pipeline: opening it, exact time embeddings, pixels in and out.

Dimensions: n batch, S latent tokens, C channels of a token, H x W pixels. sigma in [0, 1], 1 is noise.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Self, final

import torch
from jaxtyping import Float
from pydantic import Field, PositiveInt, field_validator, model_validator
from safetensors import SafetensorError
from torch import Tensor, nn

from customized_grpo.paths import INDICES
from customized_grpo.policies.acceleration import place_and_freeze, transformer_options
from customized_grpo.policies.adapters.base_lora import BaseLora
from customized_grpo.policies.base import Policy, PolicyConfig
from customized_grpo.policies.flux_tokens import PIXELS_PER_TOKEN
from customized_grpo.policies.pipeline_parts import read_models
from customized_grpo.policies.single_file import check_no_file
from customized_grpo.types import Conditioning
from customized_grpo.web.hub import hub_problem
from customized_grpo.weights import check_finite, check_whole


@final
class FromLibrary:
    """A class of a heavy library as an attribute of a policy's class, imported on access."""

    def __init__(self, library: str, name: str) -> None:
        self._library, self._name = library, name

    def __get__(self, instance: object, owner: type) -> Any:
        """The class itself."""
        return getattr(import_module(self._library), self._name)


class PipelineConfig(PolicyConfig):
    """Fields of every policy that is a diffusers pipeline with references."""

    not_encoded: ClassVar[frozenset[str]] = PolicyConfig.not_encoded | {"max_references", "base_lora"}

    of_model: ClassVar[frozenset[str]] = PolicyConfig.of_model | {"revision", "variant"}
    resizes: ClassVar[bool] = True
    least_references: ClassVar[int] = 0
    distilled_forms: ClassVar[frozenset[str]] = frozenset()
    """Names of the pipelines of step-distilled models."""
    channels: ClassVar[int] = 64
    """C of a token: of 2 x 2 latents of the VAE."""
    side_of: ClassVar[int] = PIXELS_PER_TOKEN
    """Pixels that a side is a multiple of."""
    vae_shrinks: ClassVar[int] = 8
    """Factor of a side, of pixels to latents."""
    one_file_goes: ClassVar[str] = "give a hub id, or a folder in diffusers' layout (made by its from_single_file)"
    """What to do with a single file of weights."""

    model: str = Field(description="a folder in diffusers' layout, or a hub id")
    revision: str | None = Field(default=None, description="branch, tag or commit of a hub id")
    variant: str | None = Field(default=None, description="weights variant, such as 'fp16'")
    max_references: PositiveInt = 4
    channels_last: bool = Field(
        default=False, description="lay out the VAE's convolutions as a GPU's kernels read them; rounding differs"
    )
    base_lora: BaseLora | None = Field(default=None, description="a released LoRA that is part of the base")

    @model_validator(mode="after")
    def _takes_its_base_lora(self) -> Self:
        if self.base_lora is not None:
            self.base_lora.check_training(self.quantization, full=self.full is not None)
        return self

    @field_validator("height", "width")
    @classmethod
    def _whole_tokens(cls, pixels: int) -> int:
        if pixels % cls.side_of:
            low = pixels // cls.side_of * cls.side_of
            near = f"{low} or {low + cls.side_of}" if low else str(cls.side_of)
            raise ValueError(f"given {pixels}; this model needs a multiple of {cls.side_of}: use {near}")
        return pixels

    def source(self) -> str:
        """The folder or hub id that the weights are read from; one file of weights is refused."""
        check_no_file(self.model, self.one_file_goes)
        return super().source()

    def step_distilled(self) -> bool:
        """By its hub id or a folder's index; nothing is fetched."""
        index = self.known_index()
        named = index.get("_class_name") in self.distilled_forms
        return super().step_distilled() or named or index.get("is_distilled") is True

    def known_index(self) -> Mapping[str, Any]:
        """What the index of a folder says; empty of a hub id, and of an index that opening the model refuses."""
        for file in (Path(self.model) / name for name in INDICES):
            if file.is_file():
                with suppress(ValueError):
                    found = json.loads(file.read_text(encoding="utf-8"))
                    return found if isinstance(found, dict) else {}
        return {}

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of an image in tokens."""
        return self.height // PIXELS_PER_TOKEN, self.width // PIXELS_PER_TOKEN

    def latent_shape(self) -> tuple[int, int]:
        """(S, C)."""
        return self.grid[0] * self.grid[1], self.channels

    def reference_counts(self) -> tuple[int, int]:
        """``least_references`` to ``max_references``."""
        return self.least_references, self.max_references

    def count_keys(self) -> Mapping[str, int]:
        """Its ``max_references``."""
        return {"max_references": self.max_references}


@final
class ExactInputs:
    """Replaces the first positional arguments of a module by float32 values, for one forward.

    diffusers casts sigma and guidance to the hidden dtype before their embedding multiplies them by 1000: under bf16
    sigma 0.986 becomes 984, and neighbouring steps become one. A hook keeps parameter names and survives DDP.
    """

    def __init__(self, module: nn.Module) -> None:
        self._values: tuple[Tensor, ...] = ()
        self._turns: list[Tensor] = []
        module.register_forward_pre_hook(self._replace)

    @contextmanager
    def at(self, *values: Tensor) -> Iterator[None]:
        """Inside, the module's first arguments are ``values``."""
        self._values = values
        try:
            yield
        finally:
            self._values = ()

    @contextmanager
    def in_turn(self, *values: Tensor) -> Iterator[None]:
        """Inside, the module's first argument is the next of ``values`` at each call."""
        self._turns = list(values)
        try:
            yield
        finally:
            self._turns = []

    def _replace(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if self._turns:
            return (self._turns.pop(0), *args[1:])
        return (*self._values, *args[len(self._values) :])


def open_pipeline(
    pipeline_class: Any,
    config: PipelineConfig,
    source: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
    absent: Sequence[str],
    own: Mapping[str, Any],
    offline: bool = False,
) -> Any:
    """A frozen pipeline from a folder or the hub, safetensors only. The VAE is float32: rewards see its images.

    Args:
        pipeline_class: what to open.
        config: the recipe's section ``policy``.
        source: the folder or hub id.
        device: where it runs.
        dtype: of everything but the VAE.
        absent: parts to leave out; a transformer that is left out has its shapes, without weights.
        own: parts that are made elsewhere, or None for one that will be.
        offline: don't ask the hub.

    Raises:
        ValueError: no such model, a gated one, one of another pipeline, or weights that aren't whole or no numbers.
    """
    parts = dict.fromkeys(absent) | dict(own)
    # A class may look at its blocks, and what depends on its configuration still works.
    empty = empty_transformer(config, offline=offline) if "transformer" in absent else None
    if empty is not None:
        parts["transformer"] = empty
    dtypes = {"default": dtype, "vae": torch.float32}
    options = {"transformer": {} if "transformer" in parts else transformer_options(config.quantization, dtype, device)}
    with explained(config):
        folder, models = read_models(
            pipeline_class, config, source, given=parts.keys(), dtypes=dtypes, options=options, offline=offline
        )
    for name, (model, report) in models.items():
        check_whole(model, report, f"policy.model: the {name} of {config.model!r}")
    parts |= {name: model for name, (model, _) in models.items()}
    with explained(config):
        pipeline = pipeline_class.from_pretrained(
            folder, dtype=dtypes, use_safetensors=True, variant=config.variant, local_files_only=offline, **parts
        )
    pipeline.register_to_config(_name_or_path=source)
    if pipeline.vae_scale_factor != config.vae_shrinks:
        raise ValueError(
            f"policy.model: the VAE of {config.model!r} shrinks by {pipeline.vae_scale_factor}; "
            f"policy.type {config.type} needs one that shrinks by {config.vae_shrinks}"
        )
    if empty is not None:  # it has nothing to place
        pipeline.transformer = None
    place_and_freeze(pipeline, config, device)
    for name, part in pipeline.components.items():
        if isinstance(part, nn.Module):
            check_finite(part.state_dict(), f"policy.model: the {name} of {config.model!r}")
    if empty is not None:
        pipeline.transformer = empty.requires_grad_(False).eval()
    return pipeline


def empty_transformer(config: PipelineConfig, *, offline: bool = False) -> Any:
    """The transformer of ``model``'s configuration on the meta device: names and shapes without weights.

    Raises:
        ValueError: the configuration can't be loaded.
    """
    from diffusers import AutoModel

    with explained(config), torch.device("meta"):
        return AutoModel.from_config(
            config.source(), subfolder="transformer", revision=config.revision, local_files_only=offline
        )


@contextmanager
def explained(config: PipelineConfig) -> Iterator[None]:
    """Turn errors of the folder or the hub into a message about ``policy.model``."""
    from httpx2 import HTTPError

    try:
        yield
    except (OSError, ValueError, KeyError, SafetensorError, HTTPError) as error:
        raise ValueError(
            f"policy.model: {config.model!r} can't be loaded: {hub_problem(error, config.model)} - it must be in "
            f"diffusers' layout, and of a kind that policy.type {config.type} reads"
        ) from error


def run_tokens(
    policy: Policy,
    exact: AbstractContextManager[None],
    x: Float[Tensor, "n s c"],
    text: Float[Tensor, "m l d"],
    cond: Conditioning,
    inputs: Mapping[str, Any],
) -> Float[Tensor, "n s c"]:
    """float32 output of a transformer for the image's own tokens; those of its references follow them in the input.

    Args:
        policy: whose transformer it is.
        exact: ``ExactInputs.at`` of this forward.
        x: the image's tokens.
        text: of one prompt, or of each sample.
        cond: holds ``references``.
        inputs: what else the transformer takes.
    """
    n, s, _ = x.shape
    references = cond.tensors["references"].expand(n, -1, -1)
    with exact, autocast(policy.device, policy.dtype):
        output = policy.transformer(
            hidden_states=torch.cat([x.to(policy.dtype), references], dim=1),
            encoder_hidden_states=text.expand(n, -1, -1),
            return_dict=False,
            **inputs,
        )[0]
    velocity: Tensor = output[:, :s].float()
    return velocity


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Autocast to the weights' dtype where that is half: what a float32 time embedding needs."""
    half = dtype in (torch.bfloat16, torch.float16)
    return torch.autocast(device.type, dtype=dtype if half else torch.bfloat16, enabled=half)
