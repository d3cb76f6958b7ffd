"""Means with Student's 95 % intervals over examples or over seeds and examples, paired differences, and win rates.

The unit of evidence is the *example* (a cluster): several images of one prompt are averaged first, since they are not
independent evidence about prompts. If a result should generalise to new subjects, the unit is the subject, whose
examples are averaged first; if to new runs, seeds are units too. A percentile bootstrap would cover 84 % over five
units, where these cover 95. Dimensions: n units, s seeds.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import final

import numpy as np
import numpy.typing as npt


@final
@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over ``n`` units with its 95 % interval; NaN bounds for a single unit."""

    mean: float
    low: float
    high: float
    n: int

    def as_json(self) -> dict[str, float | int | None]:
        """``{"mean", "low", "high", "n"}``; non-finite values become null, so that the file is strict JSON."""
        bounds = {"mean": self.mean, "low": self.low, "high": self.high}
        return {name: finite(value) for name, value in bounds.items()} | {"n": self.n}


def finite(value: float) -> float | None:
    """The value, or None if it is infinite or NaN, which strict JSON lacks."""
    return value if math.isfinite(value) else None


def example_means(values: Iterable[tuple[str, float | None]]) -> dict[str, float]:
    """Mean of the measurable images of each example.

    Args:
        values: pairs of an example's key and one image's value; None or NaN is not measurable.

    Returns:
        Key to mean, in order of first appearance; an example without any measurable image is left out.
    """
    found: dict[str, list[float]] = {}
    for key, value in values:
        if value is not None and np.isfinite(value):
            found.setdefault(key, []).append(float(value))
    return {key: float(np.mean(images)) for key, images in found.items()}


def group_means(values: Mapping[str, float], groups: Mapping[str, str]) -> dict[str, float]:
    """Mean over the examples of each group."""
    return example_means((groups[key], value) for key, value in values.items())


def mean_interval(values: npt.ArrayLike) -> Interval:
    """Mean of n values with Student's t interval.

    Args:
        values: shape (n,), one finite value per unit.

    Returns:
        All NaN for n = 0; NaN bounds for n = 1.
    """
    data = np.asarray(values, dtype=np.float64)
    assert data.ndim == 1
    n = len(data)
    if n < 2:
        return Interval(float(data[0]) if n else float("nan"), float("nan"), float("nan"), n)
    half = student_t(n - 1) * data.std(ddof=1) / math.sqrt(n)
    return Interval(float(data.mean()), float(data.mean() - half), float(data.mean() + half), n)


def crossed_interval(values: npt.ArrayLike) -> Interval:
    """Mean over seeds and examples with an interval that holds for new seeds *and* new examples.

    The variance of the mean is that of two crossed random factors, (MS_seed + MS_example - MS_residual) / (s n), with
    Satterthwaite's degrees of freedom (Searle, Casella and McCulloch 1992, ch. 4), at least s - 1.

    Args:
        values: shape (s, n), finite; a paired difference is one of such a table.

    Returns:
        ``n`` is the number of seeds. NaN bounds below three seeds: a spread that two tell would cover too rarely.
    """
    data = np.asarray(values, dtype=np.float64)
    s, n = data.shape
    mean = data.mean()
    if s < 3 or n < 2:
        return Interval(float(mean), float("nan"), float("nan"), s)
    seeds, examples = data.mean(axis=1), data.mean(axis=0)
    residual = data - seeds[:, None] - examples + mean
    parts = (seeds.var(ddof=1) / s, examples.var(ddof=1) / n, (residual**2).sum() / ((s - 1) * (n - 1)) / (s * n))
    variance = max(parts[0] + parts[1] - parts[2], parts[0], parts[1])
    weight = sum(part**2 / df for part, df in zip(parts, (s - 1, n - 1, (s - 1) * (n - 1)), strict=True))
    half = student_t(max(variance**2 / weight, s - 1)) * math.sqrt(variance) if variance else 0.0
    return Interval(float(mean), float(mean - half), float(mean + half), s)


@lru_cache
def student_t(df: float | int) -> float:
    """The 97.5 % quantile of Student's t distribution with ``df`` >= 1 degrees of freedom."""
    from mpmath import betainc, findroot

    # P(|T| > t) is the regularised incomplete beta function at df / (df + t^2) (Abramowitz and Stegun 26.7.1).
    return float(
        findroot(
            lambda t: betainc(df / 2, 0.5, 0, df / (df + t * t), regularized=True) - 0.05, (1.9, 13), solver="anderson"
        )
    )


def paired_difference(
    of: Mapping[str, float],
    to: Mapping[str, float],
    *,
    groups: Mapping[str, str] | None = None,
) -> Interval:
    """Mean of ``of - to`` (of ``example_means``) over the examples that both have, with its interval."""
    change = {key: of[key] - to[key] for key in of if key in to}
    if groups is not None:
        change = group_means(change, groups)
    return mean_interval(list(change.values()))


def win_rate(of: Mapping[str, float], to: Mapping[str, float]) -> float:
    """Share of common examples where ``of`` is above ``to``, a tie counting one half; NaN without common examples."""
    shared = [key for key in of if key in to]
    if not shared:
        return float("nan")
    difference = np.array([of[key] - to[key] for key in shared])
    return float(((np.sign(difference) + 1.0) / 2.0).mean())
