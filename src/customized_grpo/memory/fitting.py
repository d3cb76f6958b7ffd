"""Recipe changes that make a training fit a device, by its estimated memory (``memory.footprint``)."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from customized_grpo import registry
from customized_grpo.memory.estimate import Estimate
from customized_grpo.memory.footprint import of_recipe
from customized_grpo.memory.scorers import memory_of_scorers, scorers_of
from customized_grpo.policies.pipelines import PipelineConfig
from customized_grpo.recipe.config import Recipe
from customized_grpo.recipe.sections import PolicySpec

_MARGIN = 0.95
"""Share of a device that an estimate may fill: activations are estimates, and cards have less than they claim."""
_SHARES = tuple(tenths / 10 for tenths in range(1, 11))
"""Shares of the blocks with gradient checkpointing."""
_BATCHES = (4, 2)
"""Batches to try. On an H200 a FLUX.1 sample takes 3 % longer in 4 than in 12, 43 % if checkpointed."""

_LARGE = 2**30
"""Bytes of a reward from which on a server of its own is worth its card."""
SERVER: Final = "http://127.0.0.1:8000"

Change = Mapping[str, Any]
"""Values by the dotted keys that they override."""


def fits(found: Estimate, limit: int) -> bool:
    """True if an estimate leaves a twentieth of a device's bytes free."""
    return found.total <= _MARGIN * limit


def changes(
    recipe: Recipe, limit: int, *, world: int = 1, allowed: Callable[[Recipe], bool] = lambda _: True
) -> tuple[list[str], Estimate]:
    """Overrides, the cheapest first, until a recipe fits a device of ``limit`` bytes.

    Overrides that a later, more expensive one makes unnecessary are dropped, the most expensive first.

    Args:
        recipe: the recipe.
        limit: bytes of a device.
        world: number of processes.
        allowed: whether the engine can run a changed recipe.

    Returns:
        Overrides (empty if the recipe already fits), and the estimate with all of them; if that doesn't fit either,
        no such override helps.
    """
    taken: list[Change] = []

    def estimated(changes: Sequence[Change]) -> Estimate:
        return of_recipe(_changed(recipe, changes), world=world)

    now = estimated(taken)
    for change in _ladder(recipe):
        if fits(now, limit):
            break
        better = estimated([*taken, change])
        if better.total < now.total and allowed(_changed(recipe, [*taken, change])):
            taken, now = [*taken, change], better
    if fits(now, limit):
        for change in reversed(taken[:-1]):
            fewer = [one for one in taken if one is not change]
            if fits(without := estimated(fewer), limit):
                taken, now = fewer, without
    return _overrides(taken), now


def served_elsewhere(recipe: Recipe) -> tuple[list[str], Recipe]:
    """Overrides that ask a server on another card for the large rewards and metrics, and the recipe with them.

    The scores stay the same; what is needed is ``customized-grpo serve`` on that card. Empty where none is large.
    """
    weights, specs = memory_of_scorers(recipe).weights, scorers_of(recipe)
    moved: dict[str, Any] = {}
    for key, bytes_ in weights.items():
        if bytes_ >= _LARGE:
            spec = specs[key].model_dump(include={"axis", "weight"}, exclude_defaults=True)
            moved[key] = {"type": "remote", **spec, "urls": [SERVER], "reward": key.rpartition(".")[2]}
    remote = registry.config_model("rewards", registry.resolve("rewards", "remote"))
    for key, section in moved.items():
        recipe = _with(recipe, key, remote.model_validate(section))
    return [f"{key}={json.dumps(section)}" for key, section in moved.items()], recipe


def exact(overrides: Sequence[str]) -> bool:
    """False if one of the overrides changes what is learnt, and not only where or how fast it is computed."""
    return not any(
        one.startswith(("train.optimizer=", "policy.quantization=", "policy.lora.rank=")) for one in overrides
    )


def _ladder(recipe: Recipe) -> Iterator[Change]:
    """Overrides and their changes, in order of cost: nothing, time, then exactness."""
    policy = recipe.policy
    if recipe.run.cache is None:
        yield {"run.cache": "cache"}
    if recipe.evaluated is not policy and recipe.evaluate is not None:
        yield from ({"evaluate.batch": size} for size in (2, 1) if size < recipe.evaluate.batch)
    for size in _smaller_batches(recipe):
        yield _batch(size)
    for share in _SHARES:  # the smallest that fits costs the least time
        if share > policy.gradient_checkpointing:
            yield _checkpointing(share)
    if recipe.pairs_per_backward > 1:
        yield _batch(1)
    if recipe.run.precision == "bf16":
        yield {"train.optimizer": "adamw_8bit"}
        has_base = isinstance(policy, PipelineConfig) and policy.base_lora is not None
        apart = {"policy.base_lora.mode": "adapter"} if has_base else {}  # no fusing into quantized weights
        for bits in _fewer_bits(policy):
            yield {"policy.quantization": bits, **apart}
    for rank in (32, 16):
        if policy.lora is not None and rank < policy.lora.rank and policy.lora.path is None:
            yield {"policy.lora.rank": rank}


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
        if fits(of_recipe(_changed(recipe, taken), world=world), limit):
            return _overrides(taken)
    return []


def _checkpointing(share: float) -> Change:
    return {"policy.gradient_checkpointing": {0.0: False, 1.0: True}.get(share, share)}


def _smaller_batches(recipe: Recipe) -> list[int]:
    """Divisors of an update's samples, so that rollout and replay form the same batches."""
    samples, now = recipe.samples_per_update, recipe.pairs_per_backward
    parts = {max(n for n in range(1, most + 1) if samples % n == 0) for most in _BATCHES}
    return sorted((size for size in parts if 1 < size < now), reverse=True)


def _batch(size: int) -> Change:
    """The same batch size in rollout and replay, which then compute the same bits."""
    return {"sampling.batch": size, "train.microbatch": size}


def _overrides(changes: Sequence[Change]) -> list[str]:
    merged = {key: value for change in changes for key, value in change.items()}
    return [f"{key}={str(value).lower()}" for key, value in merged.items()]


def _changed(recipe: Recipe, changes: Sequence[Change]) -> Recipe:
    for change in changes:
        for key, value in change.items():
            recipe = _with(recipe, key, value)
    return recipe


def _with(section: Any, key: str, value: Any) -> Any:
    """A section with another value under a dotted key; nothing is checked again."""
    first, _, rest = key.partition(".")
    if isinstance(section, dict):
        return {**section, first: _with(section[first], rest, value) if rest else value}
    new = _with(getattr(section, first), rest, value) if rest else value
    return section.model_copy(update={first: new})
