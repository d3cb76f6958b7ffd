"""Loading FLUX.1 from the hub, a folder, or a single file of the transformer's weights: safetensors only."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, model_validator

from customized_grpo.console import err, say
from customized_grpo.policies import shifts
from customized_grpo.policies.adapters.flux_keys import from_original, in_diffusers, key_map
from customized_grpo.policies.adapters.tensor_files import is_part, read_metadata, read_tensors
from customized_grpo.policies.hub_files import weights_file
from customized_grpo.policies.pipeline_index import check_folder
from customized_grpo.policies.pipelines import PipelineConfig, empty_transformer, open_pipeline
from customized_grpo.policies.single_file import other_model, plain, said, transformer_of
from customized_grpo.recipe.limits import PromptTokenizer
from customized_grpo.recipe.sections import ShiftRule


class FluxConfig(PipelineConfig):
    """Base of the recipe's section ``policy`` for every policy on FLUX.1."""

    not_encoded: ClassVar[frozenset[str]] = PipelineConfig.not_encoded | {
        "guidance",
        "min_references",
        "offline",
        "transformer",
        "transformer_revision",
    }

    shift_rules: ClassVar[Mapping[str, ShiftRule]] = {"dynamic": shifts.flux}
    caches: ClassVar[tuple[str, ...]] = ("first_block", "taylorseer")
    of_model: ClassVar[frozenset[str]] = PipelineConfig.of_model | {"transformer", "transformer_revision"}
    distilled: ClassVar[frozenset[str]] = frozenset({"black-forest-labs/FLUX.1-schnell"})
    distilled_steps: ClassVar[int | None] = 4
    one_file_goes: ClassVar[str] = (
        "give it as policy.transformer, and as policy.model the rest: black-forest-labs/FLUX.1-dev, or a folder in "
        "diffusers' layout"
    )

    model: str = Field(description="a folder in diffusers' layout, a hub id, or the shipped 'mini'")
    offline: bool = Field(default=False, description="use what is in the hub's cache and never ask the hub")
    transformer: str | None = Field(
        default=None,
        description="a single .safetensors file of FLUX.1's transformer, in Black Forest Labs' names or diffusers', "
        "alone or in ComfyUI's all-in-one checkpoint, float8 too; by path or as organisation/name/file on the hub; all "
        "else comes from model",
    )
    transformer_revision: str | None = Field(default=None, description="branch, tag or commit of that file's hub id")
    guidance: NonNegativeFloat = Field(default=3.5, description="distilled guidance; without effect on FLUX.1-schnell")
    max_sequence_length: int = Field(default=512, ge=1, le=512, description="T5 tokens of a prompt")
    min_references: NonNegativeInt = Field(default=1, description="0 also draws from a prompt alone")

    @model_validator(mode="after")
    def _some_number_fits(self) -> "FluxConfig":
        if self.min_references > self.max_references:
            raise ValueError(
                f"min_references: {self.min_references} is more than max_references {self.max_references}; lower it"
            )
        return self

    @model_validator(mode="after")
    def _model_can_be_quantised(self) -> "FluxConfig":
        if self.quantization != "none" and self.transformer is not None:
            raise ValueError(
                f"quantization: {self.quantization} is done while model is read, not a single file; set it to none, or "
                "leave transformer out"
            )
        return self

    def reference_counts(self) -> tuple[int, int]:
        """``min_references`` to ``max_references``."""
        return self.min_references, self.max_references

    def count_keys(self) -> Mapping[str, int]:
        """Both."""
        return {"min_references": self.min_references, "max_references": self.max_references}

    def prompt_tokenizers(self) -> tuple[PromptTokenizer, ...]:
        """CLIP's, whose 77 tokens make one vector, and T5's."""
        limits = {"tokenizer": 77, "tokenizer_2": self.max_sequence_length}
        return tuple(PromptTokenizer(self.source, name, most, self.revision) for name, most in limits.items())

    def prompt_tokens(self) -> int:
        """Its ``max_sequence_length``."""
        return self.max_sequence_length


def load_flux(
    config: FluxConfig,
    pipeline_class: Any,
    *,
    device: torch.device,
    dtype: torch.dtype,
    absent: Sequence[str] = (),
) -> Any:
    """A frozen pipeline on ``device``.

    The VAE stays in float32: rewards see its images.

    Args:
        config: the recipe's section ``policy``.
        pipeline_class: of diffusers.
        device: where it runs.
        dtype: of everything but the VAE.
        absent: parts to leave out; a transformer that is left out has its shapes, without weights.

    Raises:
        ValueError: no such model, a gated one, one that is not FLUX.1, or a file whose keys don't match the model.
    """
    source = config.source()
    others = "a hub id such as black-forest-labs/FLUX.1-dev, or 'mini'. A single file of weights goes into "
    check_folder(pipeline_class, source, others + "policy.transformer")
    single_file = "transformer" not in absent and config.transformer is not None
    return open_pipeline(
        pipeline_class,
        config,
        source,
        device=device,
        dtype=dtype,
        absent=absent,
        own={"transformer": _single_file_transformer(config, dtype)} if single_file else {},
        offline=config.offline,
    )


def _single_file_transformer(config: FluxConfig, dtype: torch.dtype) -> Any:
    """The model of ``model``'s configuration with the weights of ``transformer``."""
    assert config.transformer is not None
    transformer = empty_transformer(config, offline=config.offline)
    file = weights_file(
        config.transformer, "policy.transformer",
        default=None, revision=config.transformer_revision, offline=config.offline,
    )  # fmt: skip
    if is_part(file):
        raise ValueError(
            f"policy.transformer: {config.transformer!r} is one part of a model that was saved in several files; give "
            "the folder of the whole pipeline as policy.model, or its transformer's folder as policy.full.path"
        )
    tensors = read_tensors(file, "policy.transformer:")
    shapes = {name: tensor.shape for name, tensor in transformer.state_dict().items()}
    try:
        part, aside = transformer_of(tensors)
        weights = plain(part, read_metadata(file, "policy.transformer:"), dtype)
        state = weights if in_diffusers(weights, shapes) else from_original(weights, original_keys(transformer), shapes)
    except ValueError as error:
        raise ValueError(
            f"policy.transformer: {config.transformer!r} does not fit {config.model!r}: {error}. {_kind(tensors)}"
        ) from error
    if aside:
        say(f"policy.transformer: {str(file)!r}: left aside, as {config.model!r} has its own: {said(aside)}", on=err)
    transformer.load_state_dict(state, strict=True, assign=True)
    return transformer


def _kind(names: Iterable[str]) -> str:
    other = other_model(names)
    return f"It looks like {other}" if other else "Is it FLUX.1 in Black Forest Labs' or diffusers' names, and whole?"


def original_keys(transformer: Any) -> dict[str, tuple[str, ...]]:
    """``key_map`` of a diffusers transformer."""
    settings = transformer.config
    return key_map(settings.num_layers, settings.num_single_layers, guidance=settings.guidance_embeds)
