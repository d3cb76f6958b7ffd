"""Conformance checks of the plug-ins that a recipe names, where they are cheap: functions. Heavy imports are inside."""

from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from customized_grpo.data.base import Dataset
    from customized_grpo.recipe.config import Recipe

_GROUP = 3


def failing(recipe: "Recipe", data: "Dataset | None") -> dict[str, str]:
    """Key of a recipe to why the function of another package that it names fails ``customized_grpo.testing``.

    Rewards that are functions are called with drawn images of the first example; time weights are checked when a recipe
    is read.

    Args:
        recipe: of a training run.
        data: its data set; None: not on this machine, and rewards are not checked.
    """
    from customized_grpo import registry
    from customized_grpo.rewards.function import FromFunction
    from customized_grpo.testing import check_aggregator

    found: dict[str, str] = {}
    aggregator = registry.type_of(recipe.advantage.aggregator)
    if recipe.rewards and aggregator not in registry.BUILTIN["aggregators"]:
        made = registry.build_function("aggregators", recipe.advantage.aggregator)
        if said := _said(lambda: check_aggregator(made, num_axes=len(recipe.axes))):
            found["advantage.aggregator"] = f"{aggregator} fails check_aggregator: {said}"
    for name, spec in recipe.rewards.items():
        given = registry.type_of(spec)
        if data is None or given in registry.BUILTIN["rewards"]:
            continue
        plugin = registry.resolve("rewards", given)
        if issubclass(plugin, FromFunction) and (said := _said(partial(_check, plugin, spec, recipe, data))):
            found[f"rewards.{name}"] = f"{given} fails check_reward on the example {data[0].key!r}: {said}"
    return found


def _check(kind: Any, spec: Any, recipe: "Recipe", data: "Dataset") -> None:
    import torch

    from customized_grpo.seeding import generator
    from customized_grpo.testing import check_reward

    size = (_GROUP, recipe.policy.height, recipe.policy.width, 3)
    drawn = torch.randint(256, size, dtype=torch.uint8, generator=generator(0, "conformance", 0, 0))
    check_reward(kind(spec, device=torch.device("cpu")), data[0], drawn, pairwise=True)


def _said(check: "Callable[[], None]") -> str:
    """Why a check fails, in one line; empty if it doesn't."""
    try:
        check()
    except AssertionError as error:
        return " ".join(str(error).split())
    except Exception as error:  # whatever a function of the user's raises
        return " ".join(f"{type(error).__name__}: {error}".split())
    return ""
