"""Recipe changes that make a training fit a device, by its estimated memory (``memory.footprint``)."""

from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from typing import Any

from customized_grpo.memory.estimate import Estimate
from customized_grpo.memory.footprint import of_recipe
from customized_grpo.policies.flux_loading import FluxConfig
from customized_grpo.recipe.config import Recipe
from customized_grpo.recipe.sections import PolicySpec

_MARGIN = 0.95
"""Share of a device that an estimate may fill: activations are estimates, and cards have less than they claim."""
_SHARES = tuple(tenths / 10 for tenths in range(1, 11))
"""Shares of the blocks with gradient checkpointing."""
_BATCHES = (4, 2)
"""Batches to try. On an H200 a FLUX.1 sample takes 3 % longer in 4 than in 12, 43 % if checkpointed."""

Change = tuple[dict[str, str], Mapping[str, Any]]
"""Overrides, and the changed fields per section."""


def fits(found: Estimate, limit: int) -> bool:
    """True if an estimate leaves a twentieth of a device's bytes free."""
    return found.total <= _MARGIN * limit


def changes(recipe: Recipe, limit: int, *, world: int = 1) -> tuple[list[str], Estimate]:
    """Overrides, the cheapest first, until a recipe fits a device of ``limit`` bytes.

    Overrides that a later, more expensive one makes unnecessary are dropped, the most expensive first.

    Returns:
        Overrides (empty if the recipe already fits), and the estimate with all of them; if that doesn't fit either,
        no such override helps.
    """
    taken: list[Change] = []

    def estimated(changes: Sequence[Change]) -> Estimate:
        return of_recipe(reduce(_merged, (changed for _, changed in changes), recipe), world=world)

    now = estimated(taken)
    for change in _ladder(recipe):
        if fits(now, limit):
            break
        better = estimated([*taken, change])
        if better.total < now.total:
            taken, now = [*taken, change], better
    if fits(now, limit):
        for change in reversed(taken[:-1]):
            fewer = [one for one in taken if one is not change]
            if fits(without := estimated(fewer), limit):
                taken, now = fewer, without
    overrides: dict[str, str] = {}
    for named, _ in taken:
        overrides |= named
    return [f"{key}={value}" for key, value in overrides.items()], now


def _ladder(recipe: Recipe) -> Iterator[Change]:
    """Overrides and their changes, in order of cost: nothing, time, then exactness."""
    policy = recipe.policy
    if recipe.run.cache is None:
        yield {"run.cache": "cache"}, {"run": {"cache": "cache"}}
    for size in _smaller_batches(recipe):
        yield _batch(size)
    for share in _SHARES:  # the smallest that fits costs the least time
        if share > policy.gradient_checkpointing:
            yield _checkpointing(share)
    if recipe.train.pairs_per_backward > 1:
        yield _batch(1)
    if recipe.run.precision == "bf16":
        yield {"train.optimizer": "adamw_8bit"}, {"train": {"optimizer": "adamw_8bit"}}
        for bits in _fewer_bits(policy):
            overrides: dict[str, str] = {"policy.quantization": bits}
            changed: dict[str, Any] = {"quantization": bits}
            if (
                isinstance(policy, FluxConfig) and policy.base_lora is not None
            ):  # no fusing into quantized weights
                overrides["policy.base_lora.mode"] = "adapter"
                changed["base_lora"] = policy.base_lora.model_copy(update={"mode": "adapter"})
            yield overrides, {"policy": changed}
    for rank in (32, 16):
        if policy.lora is not None and rank < policy.lora.rank and policy.lora.path is None:
            lora = policy.lora.model_copy(update={"rank": rank, "alpha": None})
            yield {"policy.lora.rank": str(rank)}, {"policy": {"lora": lora}}


def _fewer_bits(policy: PolicySpec) -> tuple[str, ...]:
    if policy.full is not None:
        return ()
    return {"none": ("8bit", "4bit"), "8bit": ("4bit",), "4bit": ()}[policy.quantization]


def faster(recipe: Recipe, limit: int, *, world: int = 1) -> list[str]:
    """Overrides, if any, that reduce recomputation in a recipe that fits ``limit`` bytes, and still fit.

    Smaller batches without checkpointing are preferred to a smaller checkpointed share in the same batches.
    """
    start = float(recipe.policy.gradient_checkpointing)
    if not start:
        return []
    nothing = _checkpointing(0.0)
    smaller = [[nothing, _batch(size)] for size in _smaller_batches(recipe)]
    shares = [[_checkpointing(share)] for share in _SHARES if share < start]
    for taken in ([nothing], *smaller, *shares):
        if fits(of_recipe(reduce(_merged, (changed for _, changed in taken), recipe), world=world), limit):
            return [f"{key}={value}" for named, _ in taken for key, value in named.items()]
    return []


def _checkpointing(share: float) -> Change:
    value = {0.0: False, 1.0: True}.get(share, share)
    return {"policy.gradient_checkpointing": str(value).lower()}, {
        "policy": {"gradient_checkpointing": value}
    }


def _smaller_batches(recipe: Recipe) -> list[int]:
    """Divisors of an update's samples, so that rollout and replay form the same batches."""
    samples, now = recipe.train.samples_per_update, recipe.train.pairs_per_backward
    parts = {max(n for n in range(1, most + 1) if samples % n == 0) for most in _BATCHES}
    return sorted((size for size in parts if 1 < size < now), reverse=True)


def _batch(size: int) -> Change:
    """The same batch size in rollout and replay, which then compute the same bits."""
    return {"sampling.batch": str(size), "train.microbatch": str(size)}, {
        "sampling": {"batch": size},
        "train": {"microbatch": size},
    }


def _merged(recipe: Recipe, changed: Mapping[str, Any]) -> Recipe:
    sections = {}
    for name, update in changed.items():
        section: Any = getattr(recipe, name)
        sections[name] = section.model_copy(update=update)
    return recipe.model_copy(update=sections)
