"""Downloads of a run from the hub, and what it writes to disk, from shapes and the recipe; nothing is asked or loaded.

Dimensions: G group size, H x W pixels.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from customized_grpo import registry
from customized_grpo.evaluation.costs import evaluations, fixed
from customized_grpo.memory.footprint import UnknownModelError, shapes, trained_of
from customized_grpo.memory.known_models import SCORERS, UNO_LORA
from customized_grpo.memory.parameters import adapter_parameters, optimizer_bytes
from customized_grpo.memory.scorers import BYTES, is_elsewhere, scorers_of
from customized_grpo.policies.base import Policy
from customized_grpo.policies.hub_files import is_hub_id
from customized_grpo.policies.pipelines import PipelineConfig
from customized_grpo.recipe.config import Recipe
from customized_grpo.recipe.scorers import MetricSpec

_UNO = "bytedance-research/UNO"


@dataclass(frozen=True, slots=True)
class Download:
    """A repository of the hub that is not in its local cache."""

    name: str
    bytes: int | None
    """As its weights are published, to a few percent; None: unknown."""


def downloads(recipe: Recipe) -> list[Download]:
    """What a run will fetch: its model, a LoRA that is part of it, and the models of rewards and metrics."""
    found = dict[str, Download]()
    for name, size in _named(recipe):
        if is_hub_id(name) and not _is_cached(name):
            found.setdefault(name, Download(name, size))
    return list(found.values())


def _is_cached(name: str) -> bool:
    """Whether the hub's local cache has some snapshot of a hub id; huggingface_hub is slow to import."""
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    cache = os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub")
    owner, repository, *_ = name.split("/")
    snapshots = Path(cache).expanduser() / f"models--{owner}--{repository}" / "snapshots"
    return snapshots.is_dir() and any(snapshots.iterdir())


def _named(recipe: Recipe) -> Iterator[tuple[str, int | None]]:
    """Name and bytes of all models that the recipe names; of the hub or not."""
    policy = recipe.policy
    kind: type[Policy] = registry.resolve("policies", policy.type)
    try:
        model = shapes(policy.source(), kind.encoders)
        values = model.transformer.whole.num_values + sum(model.encoders.values()) + model.vae
        yield policy.source(), 2 * values  # published in bfloat16
    except UnknownModelError:
        yield policy.source(), None
    if isinstance(policy, PipelineConfig) and policy.base_lora is not None:
        path = policy.base_lora.path
        yield path, 2 * UNO_LORA if path == _UNO else None
    for spec in scorers_of(recipe).values():
        for held in (spec.held_models() or ()) if isinstance(spec, MetricSpec) and not is_elsewhere(spec) else ():
            known = SCORERS.get(held.model)
            yield held.model, None if known is None else known.parameters * BYTES[held.dtype]


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """Bytes that a run writes."""

    checkpoint: int | None
    """A checkpoint with its optimizer; None: the model's shapes are unknown."""
    kept: int
    """Checkpoints that stay at the end."""
    samples: int
    """Pictures of groups and of evaluations, at most: as if nothing of them could be compressed."""

    @property
    def most(self) -> int:
        """At most at once: a new checkpoint is whole before the oldest one goes."""
        return (self.checkpoint or 0) * (self.kept + 1) + self.samples


def disk(recipe: Recipe) -> Disk:
    """What a whole run writes into ``run.dir``."""
    policy, train, held = recipe.policy, recipe.train, recipe.evaluate
    every = train.checkpoint_every
    made = -(-train.steps // every) if every else 1
    side = policy.height * policy.width * 3
    groups = train.steps // train.save_samples_every + 1 if train.save_samples_every else 0
    samples = groups * side * ((recipe.objective.targets or train.group_size) + 1)
    samples += fixed(recipe) * recipe.evaluated.height * recipe.evaluated.width * 3
    if held is not None:
        images = held.save_images * held.images_per_prompt * evaluations(recipe)
        samples += images * recipe.evaluated.height * recipe.evaluated.width * 3
    return Disk(checkpoint=_checkpoint(recipe), kept=min(made, train.keep_checkpoints), samples=samples)


def _checkpoint(recipe: Recipe) -> int | None:
    """The exported weights, those that training goes on from, the moments, and running averages."""
    policy, train = recipe.policy, recipe.train
    kind: type[Policy] = registry.resolve("policies", policy.type)
    try:
        transformer = shapes(policy.source(), kind.encoders).transformer
    except UnknownModelError:
        return None
    trained = trained_of(policy, kind, transformer)
    values = sum(trained.sizes)
    exported = 4 * sum(adapter_parameters(trained.layers, trained.rank))  # where q, k and v share an A, each has it
    if trained.own:
        exported = transformer.whole.num_values * (2 if recipe.run.precision == "bf16" else 4)
    copies = 1 + (train.ema is not None) + recipe.objective.keeps_average + train.staleness
    return exported + 4 * copies * values + optimizer_bytes(trained.sizes, train.optimizer)
