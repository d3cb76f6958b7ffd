"""A recipe's estimated memory, and what to change where it doesn't fit. The arithmetic is in ``training.memory``."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import nn

from customized_grpo import registry
from customized_grpo.config import Recipe
from customized_grpo.training.geometry import step_geometry
from customized_grpo.training.known_models import MODELS, REWARD_BYTES, UNO_LORA
from customized_grpo.training.memory import Estimate, Tokens, decode_bytes, estimate

GIB = 2**30
_RESERVE = GIB
"""CUDA's context is 0.3 to 0.6 GiB, and the allocator loses some: an assumption, not a measurement."""
_MARGIN = 0.95
"""Share of a device that an estimate may fill: activations are estimated, and a card shows less than its name says."""
_DECODE_CHUNK = 4
"""Images that a policy decodes at a time."""
_SHARES = tuple(tenths / 10 for tenths in range(1, 11))
"""Of the blocks that are computed again."""
_LONG_SIDE = 512
"""Of one reference, where the policy's section doesn't say."""
_TEXT_TOKENS = 512


class UnknownModelError(ValueError):
    """The shapes of a model are neither here nor in a table, so its memory can't be estimated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shapes:
    """A pipeline without its weights."""

    transformer: nn.Module
    """On the meta device."""
    encoders: Mapping[str, int]
    """Parameters."""
    vae: int
    """Parameters; it is held in float32."""
    vae_channels: tuple[int, ...]


@lru_cache(maxsize=4)
def shapes(source: str, encoders: tuple[str, ...]) -> Shapes:
    """The shapes of a model.

    Args:
        source: a folder in diffusers' layout, or a hub id.
        encoders: which of its parts only ``encode`` needs.

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
            transformer=_on_meta(known.transformer, known.config),
            encoders=known.encoders,
            vae=known.vae,
            vae_channels=known.vae_channels,
        )
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        config = json.loads((folder / "transformer" / "config.json").read_text(encoding="utf-8"))
        vae = json.loads((folder / "vae" / "config.json").read_text(encoding="utf-8"))
        return Shapes(
            transformer=_on_meta(index["transformer"][1], config),
            encoders={name: _parameters_in(folder / name) for name in encoders},
            vae=_parameters_in(folder / "vae"),
            vae_channels=tuple(vae["block_out_channels"]),
        )
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UnknownModelError(f"{folder} is no pipeline in diffusers' layout ({error})") from error


def _on_meta(name: str, config: Mapping[str, Any]) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = getattr(diffusers, name).from_config(dict(config))
    return model


def _parameters_in(folder: Path) -> int:
    """Values in a folder's safetensors files, from their headers."""
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
    """The estimated memory of one process of a training.

    Args:
        recipe: a whole recipe.
        world: P.
        num_references: images of a subject in each example.

    Raises:
        UnknownModelError: see ``shapes``.
    """
    policy, train = recipe.policy, recipe.train
    kind: Any = registry.resolve("policies", registry.type_of(policy))
    latent_shape = policy.latent_shape()
    if latent_shape is None:
        raise UnknownModelError(f"the policy {registry.type_of(policy)!r} doesn't say its latent shape")
    model = shapes(policy.source(), kind.encoders)
    b = 2 if recipe.run.precision == "bf16" else 4
    geometry = step_geometry(recipe, world=world, latent_shape=latent_shape)
    parts = {"VAE": model.vae * 4}
    if recipe.run.cache is None:
        parts["text encoders"] = sum(model.encoders.values()) * b
    beneath = policy.model_dump(include={"base_lora"}).get("base_lora")
    if beneath is not None and beneath["mode"] == "adapter":
        parts["base_lora"] = _values_of_lora(beneath["path"]) * b
    rewards, unknown = _rewards(recipe)
    decoded = min(_DECODE_CHUNK, train.group_size)
    return estimate(
        model.transformer,
        targets=[
            pattern
            for target in policy.lora.targets or kind.lora_targets
            for pattern in kind.lora_presets.get(target, (target,))
        ],
        rank=policy.lora.rank,
        shared=policy.lora.qkv == "shared",
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
        moments={"decode": decode_bytes(decoded, policy.height, policy.width, model.vae_channels)},
        reserve=_RESERVE,
        unknown=unknown,
    )


def _values_of_lora(path: str) -> int:
    """Of a released LoRA that is kept apart; one that is neither here nor in the table is taken to be UNO's."""
    file = Path(path)
    return _parameters_in(file if file.is_dir() else file.parent) if file.exists() else UNO_LORA


def _rollout_batch(recipe: Recipe) -> int:
    """Samples in one forward of a rollout; ``auto`` goes down to 1 where it has to."""
    batch = recipe.sampling.batch
    return 1 if batch == "auto" else min(batch or recipe.train.group_size, recipe.train.group_size)


def _tokens(policy: Any, of_image: int, num_references: int) -> Tokens:
    """Tokens of a sample with square references; what a policy's section doesn't say is FLUX's."""
    options = policy.model_dump(include={"reference_size", "max_sequence_length"})
    pixels = policy.height * policy.width // of_image
    side = options.get("reference_size") or _LONG_SIDE
    return Tokens(
        image=of_image + num_references * side * side // pixels,
        text=options.get("max_sequence_length") or _TEXT_TOKENS,
    )


def _rewards(recipe: Recipe) -> tuple[dict[str, int], list[str]]:
    """Bytes of the models of rewards and of held-out metrics, each model once, and the names of unknown ones."""
    specs = {f"rewards.{name}": spec for name, spec in recipe.rewards.items()}
    if recipe.evaluate is not None and recipe.train.evaluate_every:
        specs |= {f"evaluate.metrics.{name}": spec for name, spec in recipe.evaluate.metrics.items()}
    sizes, unknown = {}, []
    for name, spec in specs.items():
        model = spec.model_dump(include={"model"}).get("model")
        if model is None:
            unknown.append(name)
        elif model in REWARD_BYTES:
            sizes[name] = REWARD_BYTES[model]
        elif Path(model).is_dir() and (found := _parameters_in(Path(model))):
            sizes[name] = found * 4
        elif not model.startswith("mini"):  # the package's own are a few megabytes
            unknown.append(f"{name} ({model})")
    return sizes, unknown


def fits(found: Estimate, limit: int) -> bool:
    """Whether an estimate leaves a twentieth of a device's bytes free."""
    return found.total <= _MARGIN * limit


def changes(recipe: Recipe, limit: int, *, world: int = 1) -> tuple[list[str], Estimate]:
    """What to override, the cheapest first, until a recipe fits a device of ``limit`` bytes.

    Returns:
        Overrides (empty where it fits as it is), and the estimate with all of them; where that doesn't fit either,
        nothing of this kind helps.
    """
    taken: dict[str, str] = {}
    now = of_recipe(recipe, world=world)
    for overrides, changed in _ladder(recipe):
        if fits(now, limit):
            break
        better = of_recipe(_merged(recipe, changed), world=world)
        if better.total < now.total:
            taken |= overrides
            recipe, now = _merged(recipe, changed), better
    return [f"{key}={value}" for key, value in taken.items()], now


def _ladder(recipe: Recipe) -> Iterator[tuple[dict[str, str], Mapping[str, Any]]]:
    """Overrides and what they change, by what they cost: nothing, time, then exactness."""
    policy: Any = recipe.policy
    if recipe.run.cache is None:
        yield {"run.cache": "cache"}, {"run": {"cache": "cache"}}
    for share in _SHARES:  # the smallest that fits is what a recipe keeps: it costs the least
        if share > policy.gradient_checkpointing:
            yield _checkpointing(share)
    pairs = recipe.train.pairs_per_backward
    for size in (4, 2, 1):
        if size < pairs:
            yield {"train.microbatch": str(size)}, {"train": {"microbatch": size}}
    if recipe.run.precision == "bf16":
        yield {"train.optimizer": "adamw_8bit"}, {"train": {"optimizer": "adamw_8bit"}}
        for bits in {"none": ("8bit", "4bit"), "8bit": ("4bit",), "4bit": ()}[policy.quantization]:
            overrides: dict[str, str] = {"policy.quantization": bits}
            changed: dict[str, Any] = {"quantization": bits}
            if (
                policy.model_dump(include={"base_lora"}).get("base_lora") is not None
            ):  # nothing fuses into bits
                overrides["policy.base_lora.mode"] = "adapter"
                changed["base_lora"] = policy.base_lora.model_copy(update={"mode": "adapter"})
            yield overrides, {"policy": changed}
    for rank in (32, 16):
        if rank < policy.lora.rank and policy.lora.path is None:
            lora = policy.lora.model_copy(update={"rank": rank, "alpha": None})
            yield {"policy.lora.rank": str(rank)}, {"policy": {"lora": lora}}


def least_checkpointing(recipe: Recipe, limit: int, *, world: int = 1) -> str | None:
    """The override of a recipe that fits ``limit`` bytes under which least is computed again; None if it is its own."""
    for share in (0.0, *_SHARES):
        if share >= recipe.policy.gradient_checkpointing:
            return None
        override, changed = _checkpointing(share)
        if fits(of_recipe(_merged(recipe, changed), world=world), limit):
            ((key, value),) = override.items()
            return f"{key}={value}"
    return None


def _checkpointing(share: float) -> tuple[dict[str, str], Mapping[str, Any]]:
    value = {0.0: False, 1.0: True}.get(share, share)
    return {"policy.gradient_checkpointing": str(value).lower()}, {
        "policy": {"gradient_checkpointing": value}
    }


def _merged(recipe: Recipe, changed: Mapping[str, Any]) -> Recipe:
    sections = {}
    for name, update in changed.items():
        section: Any = {"run": recipe.run, "policy": recipe.policy, "train": recipe.train}[name]
        sections[name] = section.model_copy(update=update)
    return recipe.model_copy(update=sections)
