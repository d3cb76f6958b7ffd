"""Axes of a recipe, and the time weights of each."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from jaxtyping import Float
from pydantic import BaseModel
from torch import Tensor

from customized_grpo import registry
from customized_grpo.advantages.axes import AXES, FURTHER, with_further
from customized_grpo.recipe.scorers import RewardSpec

Shares = Mapping[str, float | None]
"""``advantage.axes``: a further axis to its share, null for 1 / Q or the schedule's own column."""


def axes_of(rewards: Mapping[str, RewardSpec], named: Shares) -> tuple[str, ...]:
    """Axes in their columns' order: prompt, identity, the further ones of a known name, and those of one's own.

    The order is that of the names, not of the rewards, so that no column moves where a recipe is written otherwise.

    Raises:
        ValueError: a reward names an axis that is neither known nor in ``named``; or an axis has no reward.
    """
    known = list(dict.fromkeys((*AXES, *FURTHER, *named)))
    fed = set()
    for name, reward in rewards.items():
        if reward.axis not in known:
            raise ValueError(
                f"rewards.{name}.axis: given {reward.axis!r};{registry.did_you_mean(reward.axis, known)} allowed: "
                f"{', '.join(known)}, or one of your own that advantage.axes names, as in advantage.axes={{pose: 0.2}}"
            )
        fed.add(reward.axis)
    if missing := [axis for axis in (*AXES, *named) if axis not in fed]:
        raise ValueError(f"rewards: no reward feeds the axis {missing[0]!r}; add one with axis: {missing[0]}")
    return tuple(axis for axis in known if axis in fed)


def check_axis_of_metric(name: str, axis: str, named: Iterable[str] = ()) -> None:
    """Raise a ``ValueError`` for an axis that is nearly, but not quite, the name of one that there is."""
    known = [*AXES, *FURTHER, *named]
    if axis not in ("", *known) and (hint := registry.did_you_mean(axis, known)):
        raise ValueError(f"metrics.{name}.axis: given {axis!r};{hint} An axis of your own needs another name")


def time_weights_of(section: BaseModel, num_steps: int, axes: Sequence[str], named: Shares) -> Float[Tensor, "t q"]:
    """Row of each step: the schedule's, extended by the shares of further axes for which it has no columns.

    Raises:
        ValueError: the schedule can't be made, or is no finite (T, 2) or (T, Q); or the shares don't fit it.
    """
    try:
        weights = registry.build_function("time_weights", section)(num_steps)
        given = tuple(weights.shape) if weights.isfinite().all() else "values that are not finite"
    except Exception as error:  # whatever a function of the user's raises
        joint = "." if str(error).partition(":")[0] in type(section).model_fields else ": "
        raise ValueError(f"advantage.time_weights{joint}{error}") from error
    further = axes[len(AXES) :]
    if given == (num_steps, len(axes)):
        if idle := [axis for axis in further if named.get(axis) is not None]:
            raise ValueError(
                f"advantage.axes.{idle[0]}: given {named[idle[0]]}, but advantage.time_weights has a column for each "
                f"axis already ({', '.join(axes)}); give null here, or a schedule of prompt and identity alone"
            )
        return torch.as_tensor(weights)
    if given != (num_steps, len(AXES)):
        two = f"({num_steps}, {len(AXES)}), " if further else ""
        raise ValueError(
            f"advantage.time_weights: given {given}; allowed: finite (T, Q) = {two}({num_steps}, {len(axes)})"
        )
    shares = [1 / len(axes) if (share := named.get(axis)) is None else share for axis in further]
    if sum(shares) >= 1:
        shown = ", ".join(f"{axis} {share:.3g}" for axis, share in zip(further, shares, strict=True))
        raise ValueError(
            f"advantage.axes: the shares of the further axes ({shown}) leave nothing to prompt and identity; give "
            "shares whose sum is below 1"
        )
    return with_further(weights, shares)
