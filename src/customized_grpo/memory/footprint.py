"""Memory estimate of a recipe and its models; formulas are in ``memory.estimate``, advice in ``memory.fitting``."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from customized_grpo import registry
from customized_grpo.memory.estimate import (
    Estimate,
    Line,
    Tokens,
    activations,
    cache_bytes,
    decode_bytes,
    prefix_bytes,
)
from customized_grpo.memory.geometry import step_geometry
from customized_grpo.memory.known_models import MODELS, UNO_LORA
from customized_grpo.memory.parameters import (
    Trained,
    adapted,
    adapter_parameters,
    optimizer_bytes,
    weight_bytes,
)
from customized_grpo.memory.scorers import memory_of_scorers, parameters_in
from customized_grpo.memory.skeleton import Skeleton, of_config
from customized_grpo.policies.adapters.full import trained_names
from customized_grpo.policies.adapters.lora_files import find_adapter
from customized_grpo.policies.base import Policy
from customized_grpo.policies.pipelines import PipelineConfig
from customized_grpo.recipe.config import Recipe
from customized_grpo.recipe.sections import PolicySpec

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
        config = json.loads((folder / "transformer" / "config.json").read_text(encoding="utf-8"))
        vae = json.loads((folder / "vae" / "config.json").read_text(encoding="utf-8"))
        return Shapes(
            transformer=of_config(config["_class_name"], config),
            encoders={name: parameters_in(folder / name) for name in encoders},
            vae=parameters_in(folder / "vae"),
            vae_channels=_channels(vae),
        )
    except (OSError, ValueError, KeyError, AttributeError, SafetensorError) as error:
        raise UnknownModelError(f"{folder} is not a pipeline in diffusers' layout ({error})") from error


def _channels(vae: Mapping[str, Any]) -> tuple[int, ...]:
    """Channels of the levels of a VAE's decoder; those of Qwen-Image have a base and factors."""
    if "dim_mult" in vae:
        return tuple((vae.get("decoder_base_dim") or vae["base_dim"]) * factor for factor in vae["dim_mult"])
    return tuple(vae["block_out_channels"])


def of_recipe(recipe: Recipe, *, world: int = 1) -> Estimate:
    """Estimated memory of one training process.

    Args:
        recipe: a whole recipe.
        world: P.

    Raises:
        UnknownModelError: see ``shapes``.
    """
    policy, train = recipe.buckets().largest, recipe.train
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
    if isinstance(policy, PipelineConfig) and policy.base_lora is not None and policy.base_lora.mode == "adapter":
        parts["base_lora"] = _values_of_lora(policy.base_lora.path) * b
    scorers = memory_of_scorers(recipe)
    trained = trained_of(policy, kind, model.transformer)
    share, batch = float(policy.gradient_checkpointing), _rollout_batch(recipe)
    pairs = min(recipe.pairs_per_backward, recipe.samples_per_update * len(geometry.trained))
    tokens = tokens_of(policy, latent_shape[0])
    half = policy.norms == "half"
    forward = partial(activations, model.transformer, trained.layers, trained.rank, tokens, b=b, half_norms=half)
    references, text = _prompt_tokens(policy, latent_shape[0])
    kept = prefix_bytes(model.transformer.blocks, policy.kept_tokens(references, text), n=policy.num_forwards(), b=b)
    said = [f"kept keys and values {kept / GIB:.1f} GiB"] if kept > GIB / 20 else []
    if (cache := recipe.sampling.cache) is not None:
        width = model.transformer.blocks[0][1].linears[0].inputs
        n = train.group_size * policy.num_forwards()
        of_cache = cache_bytes(cache, tokens, width=width, channels=latent_shape[1], n=n, b=b)
        said += [f"sampling.cache {of_cache / GIB:.1f} GiB"] if of_cache > GIB / 20 else []
        kept += of_cache
    replay = forward(n=pairs, checkpointing=share, cheap=policy.recompute == "cheap")
    again = {0.0: "without", 1.0: "with"}.get(share, f"{share:.0%} of the blocks with")
    decoded = min(_DECODE_CHUNK, train.group_size)
    samples = [f"{batch} samples", *said, *(["while rewards score the group before"] if scorers.working else [])]
    rollout = Line(
        name="rollout",
        bytes=forward(n=batch, checkpointing=1.0).working // 2 + kept + scorers.working,
        note=", ".join(samples),
    )
    layers = [layer for _, block in model.transformer.blocks for layer in block.linears]
    of_float8 = sum(one.inputs * one.outputs for one in layers) if recipe.sampling.float8 else 0
    resident = [
        *([Line(name="weights in float8, for rollouts", bytes=of_float8)] if of_float8 else []),
        *_weights(recipe, model.transformer, trained, b, world),
        *(Line(name=name, bytes=size) for name, size in {**parts, **scorers.weights}.items()),
        Line(name="trajectories", bytes=(geometry.trajectory_bytes or 0) * (1 + train.staleness)),
        Line(name="reserve", bytes=_RESERVE, note="context, workspaces, fragments: an assumption"),
    ]
    peaks = [
        Line(
            name="replay",
            bytes=policy.num_forwards() * replay.stored + replay.working,
            note=f"{pairs} pairs, {again} gradient checkpointing"
            + (" of cheap operators" if policy.recompute == "cheap" else ""),
        ),
        *([] if recipe.objective.targets else [rollout]),
        Line(
            name="update",
            bytes=4 * sum(trained.sizes) if train.optimizer == "adamw" else 0,  # a fused kernel makes none
            note="roots of the second moments",
        ),
        Line(name="decode", bytes=decode_bytes(decoded, policy.height, policy.width, model.vae_channels)),
        *_evaluation(recipe, latent_shape, model, trained, b),
    ]
    return Estimate(
        resident=tuple(resident),
        peaks=tuple(peaks),
        unknown=scorers.unknown,
        elsewhere=scorers.elsewhere,
        on_cpu=scorers.on_cpu,
    )


def _evaluation(recipe: Recipe, of_training: tuple[int, int], model: Shapes, trained: Trained, b: int) -> list[Line]:
    """Peaks of the held-out evaluation, where a rollout's don't cover them: of larger images, or alone."""
    policy, held = recipe.evaluated, recipe.evaluate
    shape = policy.latent_shape()
    if held is None or not recipe.train.evaluate_every or shape is None:
        return []
    if shape[0] <= of_training[0] and not recipe.objective.targets:
        return []
    # Images of several prompts share a forward, where each keeps keys and values of its own.
    prompts = max(1, held.batch // held.images_per_prompt)
    n = min(held.batch, prompts * held.images_per_prompt)
    forward = activations(
        model.transformer, trained.layers, trained.rank, tokens_of(policy, shape[0]), n=n, b=b, checkpointing=1.0
    )
    references, text = _prompt_tokens(policy, shape[0])
    kept = prefix_bytes(
        model.transformer.blocks, policy.kept_tokens(references, text), n=prompts * policy.num_forwards(), b=b
    )
    size = f"{n} images of {policy.height} x {policy.width}"
    decoded = decode_bytes(min(_DECODE_CHUNK, n), policy.height, policy.width, model.vae_channels)
    return [
        Line(name="evaluation", bytes=forward.working // 2 + kept, note=size),
        Line(name="evaluation's decode", bytes=decoded, note=size),
    ]


def _weights(recipe: Recipe, transformer: Skeleton, trained: Trained, b: int, world: int) -> list[Line]:
    """Frozen and trained weights, and the optimizer's moments."""
    train, quantization, values = recipe.train, recipe.policy.quantization, sum(trained.sizes)
    copies = [("weights", 4), ("gradients", 4)]
    copies += [("running average (ema)", 4)] if train.ema is not None else []
    copies += [("old policy", 4)] if recipe.objective.keeps_average else []
    copies += [("weights that sampled (staleness)", 4)] if train.staleness else []
    copies += [("autocast's copy", b)] if b < 4 else []
    copies += [("buckets of data-parallel", 4)] if world > 1 else []
    copies += [("the base's, for the KL", 4)] if recipe.objective.needs_base and trained.own else []
    return [
        Line(
            name="frozen weights of the transformer" if trained.own else "transformer",
            bytes=weight_bytes(transformer, quantization, b, trained.own),
            note=quantization,
        ),
        Line(
            name="trained weights" if trained.own else "adapter",
            bytes=sum(each for _, each in copies) * values,
            note=f"{values / 1e6:,.1f} M parameters: " + ", ".join(name for name, _ in copies),
        ),
        Line(name="optimizer", bytes=optimizer_bytes(trained.sizes, train.optimizer), note=train.optimizer),
    ]


def trained_of(policy: PolicySpec, kind: type[Policy], transformer: Skeleton) -> Trained:
    """What a policy's section trains of a transformer."""
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
    rank = settings.rank * (2 if settings.balance else 1)
    sizes = adapter_parameters(layers, rank, shared=settings.qkv == "shared")
    return Trained(layers=layers, rank=rank, sizes=sizes)


def _values_of_lora(path: str) -> int:
    """Parameters of a separate released LoRA; if it isn't local or in the table, UNO's number, which is of rank 512."""
    return parameters_in(find_adapter(path)) if Path(path).expanduser().exists() else UNO_LORA


def _rollout_batch(recipe: Recipe) -> int:
    """Samples per rollout forward; ``auto`` counts as 1, to which it can fall."""
    batch = recipe.sampling.batch
    return 1 if batch == "auto" else min(batch or recipe.train.group_size, recipe.train.group_size)


def tokens_of(policy: PolicySpec, of_image: int) -> Tokens:
    """Tokens of a sample with one square reference; FLUX's defaults if the policy's section doesn't say."""
    references, text = _prompt_tokens(policy, of_image)
    if policy.prefix:
        return Tokens(image=of_image, text=0, once=references + text)
    return Tokens(image=of_image + references, text=text, references=references)


def _prompt_tokens(policy: PolicySpec, of_image: int) -> tuple[int, int]:
    """Tokens of one square reference, and of the text."""
    pixels = policy.height * policy.width // of_image
    side = policy.reference_side() or _LONG_SIDE
    return side * side // pixels, policy.prompt_tokens() or _TEXT_TOKENS
