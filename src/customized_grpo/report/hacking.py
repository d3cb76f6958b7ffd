"""Reward hacking: a training reward rises while its held-out twin, a metric that training never sees, falls.

Everything is read from the run's files, so a resumed run and the report agree with the trainer.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np

from customized_grpo.evaluation.pairing import unlike, without
from customized_grpo.evaluation.protocols import Unit
from customized_grpo.evaluation.statistics import Interval, paired_difference
from customized_grpo.evaluation.summary import Row, column_means, groups_of

_CLEAR: Final = 2.0
"""Minimal rise of a training reward in standard errors: steps draw different prompts, so single steps say little."""


@final
@dataclass(frozen=True, slots=True)
class Suspicion:
    """One reward that rose between two evaluations while its twin fell.

    Attributes:
        column: the held-out column of the same axis.
        since: the step of the evaluation where the twin was best.
        until: the step of the newest evaluation.
        rise: rise of the training reward's mean from the steps before ``since`` (or the first ones) to the newest.
        fall: change of the twin, paired over the same examples.
    """

    reward: str
    column: str
    since: int
    until: int
    rise: float
    fall: Interval

    def __str__(self) -> str:
        return (
            f"reward hacking? The training reward {self.reward!r} rose by {self.rise:.3g} since step {self.since}, but "
            f"its held-out twin {self.column!r} fell by {-self.fall.mean:.3g} (95 % interval {self.fall.low:+.3g} to "
            f"{self.fall.high:+.3g}, step {self.until})"
        )


def suspicions(
    steps: Sequence[Mapping[str, Any]],
    evaluations: Mapping[int, Sequence[Row]],
    rewards: Mapping[str, str],
    twins: Mapping[str, str],
    unit: Unit = "example",
) -> list[Suspicion]:
    """Rewards that rose while their held-out twin fell.

    A twin has fallen if its paired interval, newest evaluation minus best earlier one, is entirely below 0. A reward
    has risen if its mean over the steps since the last evaluation is at least two standard errors above its mean over
    the steps up to the best one.

    Args:
        evaluations: rows of each held-out evaluation, by step; 0 is the base.
        rewards: key of each training reward to its axis.
        twins: axis to the held-out column that represents it.
    """
    done = sorted(step for step, rows in evaluations.items() if rows)
    if len(done) < 2:
        return []
    newest, before = done[-1], done[-2]
    evaluations = {step: without(rows, unlike(rows, evaluations[newest])) for step, rows in evaluations.items()}
    found = []
    for reward, axis in rewards.items():
        column = twins.get(axis)
        if column is None:
            continue
        means = {step: column_means(evaluations[step], column, unit) for step in done}
        known = {step: float(np.mean(list(values.values()))) for step, values in means.items() if values}
        if newest not in known or len(known) < 2:
            continue
        best = max((step for step in known if step != newest), key=lambda step: (known[step], step))
        fall = paired_difference(
            column_means(evaluations[newest], column),
            column_means(evaluations[best], column),
            groups=groups_of(evaluations[newest]) if unit == "subject" else None,
        )
        # The steps before the best evaluation; for the base, the first interval.
        early = (done[done.index(best) - 1], best) if best != done[0] else (best, done[1])
        rise = _rise(steps, f"reward/{reward}/mean", early, (before, newest))
        if fall.high < 0.0 and rise is not None:
            found.append(Suspicion(reward, column, best, newest, rise, fall))
    return found


def _rise(steps: Sequence[Mapping[str, Any]], key: str, early: tuple[int, int], late: tuple[int, int]) -> float | None:
    """Rise of the mean from the early to the late steps; None unless it is clear."""
    first, last = (
        np.array(
            [
                float(line[key])
                for line in steps
                if isinstance(line.get(key), int | float) and after < line["step"] <= until
            ]
        )
        for after, until in (early, late)
    )
    if early == late:  # the base was best and there is one interval: compare its halves
        first, last = np.array_split(first, 2)
    if len(first) < 2 or len(last) < 2:
        return None
    rise = float(last.mean() - first.mean())
    error = math.sqrt(first.var(ddof=1) / len(first) + last.var(ddof=1) / len(last))
    return rise if rise > _CLEAR * error else None
