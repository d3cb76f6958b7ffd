"""The first question to every judge and reward server of a recipe, before any model is loaded."""

from collections.abc import Callable, Mapping
from typing import Final

from pydantic import BaseModel

from customized_grpo import registry
from customized_grpo.rewards.base import RewardFailure, account_of
from customized_grpo.rewards.trial import Trial

SKIP: Final = "run.ask_first=false"
"""The key by which a run or an evaluation begins without these questions."""


def ask_first(sections: Mapping[str, BaseModel], *, run: Callable[[], str], place: str, skip: str = SKIP) -> list[str]:
    """Ask each that is asked over the network once; a line for each answer.

    Args:
        sections: rewards or metrics by name.
        run: gives the run's name, in which its budget is counted.
        place: what stands before a name in the recipe, as for ``rewards.base.begin``.
        skip: how to begin without these questions, for the message.

    Raises:
        ValueError: one can't be asked, or its answer has no score.
    """
    said = []
    for name, section in sections.items():
        given = registry.type_of(section)
        kind: registry.Kind = "metrics" if given in registry.available("metrics") else "rewards"
        plugin = registry.resolve(kind, given)
        if not issubclass(plugin, Trial):
            continue
        try:
            said.append(f"{place}{name}: {plugin.first_answer(section, account_of(run(), place, name))}")
        except (ValueError, RewardFailure) as error:
            raise ValueError(f"{place}{name}: {error}; or begin without asking: {skip}") from error
    return said
