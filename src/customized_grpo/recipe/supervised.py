"""Recipes of supervised objectives: what they have no use for, and how one is made of a recipe for RL."""

from collections.abc import Mapping
from typing import Any, Final

from customized_grpo.recipe.keys import Advantage, Sampling, Train
from customized_grpo.recipe.sections import ObjectiveSpec

_SAMPLING: Final = ("dynamics", "plan", "solver", "cache", "float8", "shared_noise", "batch")
UNSAMPLED: Final = {"dynamics": None, "plan": None, "shared_noise": False}
"""The section ``sampling`` of what samples nothing in training."""
_TRAIN: Final = ("group_size", "updates_per_rollout", "ratio_guard", "old_log_probs", "staleness")


def check_supervised(
    objective: ObjectiveSpec, sampling: Sampling, train: Train, advantage: Advantage, rewards: Mapping[str, object]
) -> None:
    """Raise a ``ValueError`` for a key that belongs to samples and rewards, of which there are none."""
    kind, number = objective.type, objective.targets
    none = Sampling.model_validate(UNSAMPLED)
    idle = {"rewards": bool(rewards), "advantage": advantage != Advantage()}
    idle |= {f"sampling.{key}": dict(sampling)[key] != dict(none)[key] for key in _SAMPLING}
    idle |= {f"train.{key}": dict(train)[key] != dict(Train())[key] for key in _TRAIN}
    if given := [key for key, there in idle.items() if there]:
        raise ValueError(
            f"{given[0]}: it has no effect with objective.type {kind}, which learns from pictures of the data and "
            f"samples nothing; leave it out, or let customized-grpo {kind} RECIPE do so"
        )
    if (train.microbatch or number) % number:
        raise ValueError(
            f"train.microbatch: given {train.microbatch}, but {kind} compares the two pictures of an example in one "
            "forward; give an even number, or leave it out"
        )
    objective.num_levels(sampling.steps)  # refuses more than there are
    if problem := objective.unused(train.updates_per_rollout):
        raise ValueError(f"objective.{problem}")


def supervise(data: dict[str, Any], kind: str) -> list[str]:
    """Make a recipe's raw sections those of a supervised run of the same policy, data, optimizer and evaluation.

    Args:
        data: of a recipe's file, changed in place; one that is supervised already is left as it is.
        kind: ``sft`` or ``dpo``.

    Returns:
        Keys that were left aside or changed, for the user.
    """
    objective = data.get("objective")
    if isinstance(objective, dict) and objective.get("type") == kind:
        return []
    aside = [key for key in ("rewards", "advantage") if data.pop(key, None)]
    for section, keys in (("sampling", _SAMPLING), ("train", _TRAIN)):
        given = data.get(section)
        if isinstance(given, dict):
            aside += [f"{section}.{key}" for key in keys if given.pop(key, None) is not None]
            size = given.get("microbatch")
            if kind == "dpo" and isinstance(size, int) and size % 2:  # it compares two pictures in one forward
                aside.append(f"{section}.microbatch")
                del given["microbatch"]
    if objective is not None:
        aside.append("objective")
    data["objective"] = {"type": kind}
    run = data.get("run")
    if isinstance(run, dict) and isinstance(run.get("dir"), str):
        run["dir"] = f"{run['dir'].rstrip('/')}-{kind}"
    return aside
