"""Memory estimate of a recipe and its models; formulas are in ``memory.estimate``, advice in ``memory.fitting``."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from customized_grpo import registry
from customized_grpo.memory.estimate import Estimate, Tokens, decode_bytes, estimate
from customized_grpo.memory.geometry import step_geometry
from customized_grpo.memory.known_models import MODELS, REWARD_BYTES, UNO_LORA
from customized_grpo.memory.parameters import Trained, adapted, adapter_parameters
from customized_grpo.memory.skeleton import Skeleton, of_config
from customized_grpo.policies.adapters.full import trained_names
from customized_grpo.policies.base import Policy
from customized_grpo.policies.flux_loading import FluxConfig
from customized_grpo.recipe.config import Recipe
from customized_grpo.recipe.sections import MetricSpec, PolicySpec

GIB = 2**30
_RESERVE = GIB
"""CUDA's context is 0.3 to 0.6 GiB, and the allocator loses some: an assumption, not a measurement."""
_DECODE_CHUNK = 4
"""Number of images that a policy decodes at a time."""
_LONG_SIDE = 512
"""Long side of a reference, if the policy's section doesn't say."""
_TEXT_TOKENS = 512


class UnknownModelError(ValueError):
    """A model's shapes are neither in a local folder nor in the table, so its memory can't be estimated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shapes:
    """Shapes of a pipeline, without its weights."""

    transformer: Skeleton
    encoders: Mapping[str, int]
    """Parameters."""
    vae: int
    """Number of parameters, kept in float32."""
    vae_channels: tuple[int, ...]


@lru_cache(maxsize=4)
def shapes(source: str, encoders: tuple[str, ...]) -> Shapes:
    """The shapes of a model.

    Args:
        source: a folder in diffusers' layout, or a hub id.
        encoders: names of the parts that only ``encode`` needs.

    Raises:
        UnknownModelError: a hub id that is not in the table, or a folder of another layout.
    """
    folder = Path(source)
    if not folder.is_dir():
        if source not in MODELS:
            raise UnknownModelError(
                f"the shapes of {source!r} are not known offline; give its folder, or one of: {', '.join(MODELS)}"
            )
        known = MODELS[source]
        return Shapes(
            transformer=of_config(known.transformer, known.config),
            encoders=known.encoders,
            vae=known.vae,
            vae_channels=known.vae_channels,
        )
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        config = json.loads((folder / "transformer" / "config.json").read_text(encoding="utf-8"))
        vae = json.loads((folder / "vae" / "config.json").read_text(encoding="utf-8"))
        return Shapes(
            transformer=of_config(index["transformer"][1], config),
            encoders={name: _parameters_in(folder / name) for name in encoders},
            vae=_parameters_in(folder / "vae"),
            vae_channels=_channels(vae),
        )
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UnknownModelError(f"{folder} is not a pipeline in diffusers' layout ({error})") from error


def _channels(vae: Mapping[str, Any]) -> tuple[int, ...]:
    """Channels of a VAE's levels; Qwen-Image's config has a base and factors."""
    if "dim_mult" in vae:
        return tuple(vae["base_dim"] * factor for factor in vae["dim_mult"])
    return tuple(vae["block_out_channels"])


def _parameters_in(folder: Path) -> int:
    """Number of parameters in a folder's safetensors files, from their headers."""
    return sum(
        prod(entry["shape"])
        for file in folder.glob("*.safetensors")
        for name, entry in _header(file).items()
        if name != "__metadata__"
    )


def _header(file: Path) -> dict[str, Any]:
    with file.open("rb") as opened:
        header: dict[str, Any] = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    return header


def of_recipe(recipe: Recipe, *, world: int = 1, num_references: int = 1) -> Estimate:
    """Estimated memory of one training process.

    Args:
        recipe: a whole recipe.
        world: P.
        num_references: number of references per example.

    Raises:
        UnknownModelError: see ``shapes``.
    """
    policy, train = recipe.policy, recipe.train
    kind: type[Policy] = registry.resolve("policies", policy.type)
    latent_shape = policy.latent_shape()
    if latent_shape is None:
        raise UnknownModelError(f"the policy {policy.type!r} doesn't say its latent shape")
    model = shapes(policy.source(), kind.encoders)
    b = 2 if recipe.run.precision == "bf16" else 4
    geometry = step_geometry(recipe, world=world, latent_shape=latent_shape)
    parts = {"VAE": model.vae * 4}
    if recipe.run.cache is None:
        parts["text encoders"] = sum(model.encoders.values()) * b
    if isinstance(policy, FluxConfig) and policy.base_lora is not None and policy.base_lora.mode == "adapter":
        parts["base_lora"] = _values_of_lora(policy.base_lora.path) * b
    rewards, unknown = _rewards(recipe)
    decoded = min(_DECODE_CHUNK, train.group_size)
    return estimate(
        model.transformer,
        trained=_trained(policy, kind, model.transformer),
        reference=recipe.objective.kl > 0,
        num_forwards=policy.num_forwards(),
        tokens=_tokens(policy, latent_shape[0], num_references),
        b=b,
        quantization=policy.quantization,
        optimizer=train.optimizer,
        ema=train.ema is not None,
        checkpointing=float(policy.gradient_checkpointing),
        microbatch=min(train.pairs_per_backward, train.samples_per_update * len(geometry.trained)),
        group_size=_rollout_batch(recipe),
        world=world,
        trajectories=geometry.trajectory_bytes or 0,
        parts=parts | rewards,
        peaks={"decode": decode_bytes(decoded, policy.height, policy.width, model.vae_channels)},
        reserve=_RESERVE,
        unknown=unknown,
    )


def _trained(policy: PolicySpec, kind: type[Policy], transformer: Skeleton) -> Trained:
    if policy.full is not None:
        parameters = transformer.whole.parameters
        own = trained_names(list(parameters), policy.full, kind.idle(transformer))
        return Trained(
            layers=[layer for layer in transformer.whole.linears if f"{layer.name}.weight" in own],
            rank=0,
            sizes=[n for name, n in parameters.items() if name in own],
            own=frozenset(own),
        )
    settings = policy.lora
    assert settings is not None
    targets = settings.targets or kind.lora_targets
    patterns = [pattern for target in targets for pattern in kind.lora_presets.get(target, (target,))]
    layers = adapted(transformer, patterns)
    sizes = adapter_parameters(layers, settings.rank, shared=settings.qkv == "shared")
    return Trained(layers=layers, rank=settings.rank, sizes=sizes)


def _values_of_lora(path: str) -> int:
    """Parameters of a separate released LoRA; if it isn't local or in the table, UNO's number."""
    file = Path(path)
    return _parameters_in(file if file.is_dir() else file.parent) if file.exists() else UNO_LORA


def _rollout_batch(recipe: Recipe) -> int:
    """Samples per rollout forward; ``auto`` counts as 1, to which it can fall."""
    batch = recipe.sampling.batch
    return 1 if batch == "auto" else min(batch or recipe.train.group_size, recipe.train.group_size)


def _tokens(policy: PolicySpec, of_image: int, num_references: int) -> Tokens:
    """Tokens of a sample with square references; FLUX's defaults if the policy's section doesn't say."""
    pixels = policy.height * policy.width // of_image
    side = policy.reference_side() or _LONG_SIDE
    return Tokens(
        image=of_image + num_references * side * side // pixels,
        text=policy.prompt_tokens() or _TEXT_TOKENS,
    )


def _rewards(recipe: Recipe) -> tuple[dict[str, int], list[str]]:
    """Bytes of the models of rewards and held-out metrics, each counted once, and the names of unknown ones."""
    specs: dict[str, BaseModel] = {f"rewards.{name}": spec for name, spec in recipe.rewards.items()}
    if recipe.evaluate is not None and recipe.train.evaluate_every:
        specs |= {f"evaluate.metrics.{name}": spec for name, spec in recipe.evaluate.metrics.items()}
    sizes, unknown = {}, []
    for name, spec in specs.items():
        model = spec.model_name() if isinstance(spec, MetricSpec) else None
        if model is None:
            unknown.append(name)
        elif model in REWARD_BYTES:
            sizes[name] = REWARD_BYTES[model]
        elif Path(model).is_dir() and (found := _parameters_in(Path(model))):
            sizes[name] = found * 4
        elif not model.startswith("mini"):  # the embedded models have a few megabytes
            unknown.append(f"{name} ({model})")
    return sizes, unknown
