"""Memory of rewards and held-out metrics on the device that trains: their weights as loaded, and a forward of them.

Weights are counted exactly where the model is in the table, in a folder or in the hub's cache. What a forward keeps is
an estimate: a model of n tokens, whose widest layer has w features, holds about 5 n w values, and what its attention
doesn't compute in parts. b is the number of bytes per value.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from pydantic import BaseModel
from safetensors import SafetensorError, safe_open

from customized_grpo import registry
from customized_grpo.identity.sections import hub_snapshot
from customized_grpo.memory.known_models import SCORERS, KnownScorer
from customized_grpo.paths import matching, model_path
from customized_grpo.recipe.config import Recipe
from customized_grpo.recipe.scorers import HeldModel, MetricSpec
from customized_grpo.rewards.base import AsyncGroupReward, AsyncReward

BYTES: Mapping[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
_UNKNOWN_SHARE = 20
"""A forward of one image is taken to hold a twentieth as many values as a model of unknown shape has parameters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerMemory:
    """What the rewards and metrics of a recipe take of the device that trains."""

    weights: Mapping[str, int]
    """Bytes by the recipe's key."""
    working: int
    """Bytes of the largest forward: they score one after the other."""
    elsewhere: tuple[str, ...]
    """Those that a server or endpoint computes."""
    on_cpu: tuple[str, ...]
    """Those that this machine's CPU computes, whatever the device."""
    unknown: tuple[str, ...]
    """Those that are not counted, at least in part, and why."""


def scorers_of(recipe: Recipe) -> Mapping[str, BaseModel]:
    """Sections of the rewards, and of the metrics where they are loaded too, by their keys."""
    specs: dict[str, BaseModel] = {f"rewards.{name}": spec for name, spec in recipe.rewards.items()}
    if recipe.evaluate is not None and recipe.train.evaluate_every:
        specs |= {f"evaluate.metrics.{name}": spec for name, spec in recipe.evaluate.metrics.items()}
    return specs


def memory_of_scorers(recipe: Recipe) -> ScorerMemory:
    """Memory of a recipe's rewards and metrics; each loads models of its own, also where two have the same."""
    weights, working = dict[str, int](), [0]
    elsewhere, on_cpu, unknown = list[str](), list[str](), list[str]()
    for name, spec in scorers_of(recipe).items():
        if is_elsewhere(spec):
            elsewhere.append(f"{name} ({registry.type_of(spec)})")
            continue
        held = spec.held_models() if isinstance(spec, MetricSpec) else None
        if held is None:
            unknown.append(f"{name} (its section doesn't say what it loads)")
        if held and all(one.on_cpu for one in held):
            on_cpu.append(f"{name} ({registry.type_of(spec)})")
        for one in held or ():
            if one.on_cpu:
                continue
            found = known_scorer(one)
            if found is None:
                unknown.append(f"{name} ({one.model})")
                continue
            b, images = BYTES[one.dtype], min(one.images or recipe.train.group_size, recipe.train.group_size)
            weights[name] = weights.get(name, 0) + found.parameters * b
            working.append(images * found.working * b)
    return ScorerMemory(
        weights=weights,
        working=max(working),
        elsewhere=tuple(elsewhere),
        on_cpu=tuple(on_cpu),
        unknown=tuple(unknown),
    )


def is_elsewhere(spec: BaseModel) -> bool:
    """True for a reward or metric that is asked over the network."""
    given = registry.type_of(spec)
    if given in registry.available("metrics") or not isinstance(spec, MetricSpec):
        return False
    plugin = registry.resolve("rewards", given)
    return isinstance(plugin, type) and issubclass(plugin, AsyncReward | AsyncGroupReward)


def known_scorer(held: HeldModel) -> KnownScorer | None:
    """Sizes of a model from the table, its files, or the hub's cache; None if it is in none of them."""
    if held.model in SCORERS and not Path(held.model).exists():
        return SCORERS[held.model]
    try:
        place = Path(held.model).expanduser()
        place = place if place.is_file() else Path(model_path(held.model, held.kind))
    except ValueError:
        return None
    if not place.exists() and (snapshot := hub_snapshot(held.model, held.revision)) is not None:
        place = snapshot
    try:
        parameters = sum(n for name, n in _sizes(place) if name not in held.unused)
    except (OSError, SafetensorError):
        return None
    return KnownScorer(parameters=parameters, working=parameters // _UNKNOWN_SHARE) if parameters else None


def parameters_in(place: Path) -> int:
    """Number of parameters in a folder's safetensors files, or in one file, from their headers."""
    return sum(n for _, n in _sizes(place))


def _sizes(place: Path) -> Iterator[tuple[str, int]]:
    for file in [place] if place.is_file() else matching(place, "*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - it is not a mapping
                yield name, prod(opened.get_slice(name).get_shape())
