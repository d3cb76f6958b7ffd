"""A notice where the miniature is given pictures that are not of its own drawn world: it knows no other."""

from collections.abc import Mapping, Sequence
from typing import Final

from pydantic import BaseModel

from customized_grpo.recipe.limits import Size
from customized_grpo.recipe.scorers import MetricSpec
from customized_grpo.recipe.sections import PolicySpec

SIDE: Final = 64
"""Sides of the pictures of the miniature world in pixels, by which they are told from photos; as ``mini.render``'s."""
_EMBEDDED: Final = ("mini", "mini-judge")


def strange_to(policy: PolicySpec, measures: Mapping[str, BaseModel], references: Sequence[Size]) -> list[str]:
    """One sentence if the policy or a measure is a miniature and references are no pictures of its world; else none.

    Args:
        policy: the recipe's section ``policy``.
        measures: sections of rewards or metrics by name.
        references: width and height of each.
    """
    who = ["policy"] if policy.model in _EMBEDDED else []
    who += [name for name, one in measures.items() if isinstance(one, MetricSpec) and one.model_name() in _EMBEDDED]
    strange = sum(size != (SIDE, SIDE) for size in references)
    if not who or not strange:
        return []
    number = "the reference is none of it" if len(references) == 1 else f"{strange:,} references are none of it"
    return [
        f"the miniature ({', '.join(who)}) knows only its own drawn world of {SIDE} x {SIDE} pixels, and {number}: "
        "what comes out says nothing about photos; for photos take a recipe of a real model, as one_gpu_24gb "
        "(docs/how-to/one-gpu.md)"
    ]
