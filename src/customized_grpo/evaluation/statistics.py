"""Means with bootstrap intervals over examples, paired differences, and win rates.

The unit that is resampled is the *example* (a cluster): several images of one prompt are averaged first, since they are
not independent evidence about prompts. If a result should generalise to new subjects, the unit is the subject, whose
examples are averaged first. Dimensions: n units, B resamples.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, final

import numpy as np
import numpy.typing as npt

RESAMPLES: Final = 10_000
_CHUNK: Final = 1_000


@final
@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over ``n`` units with its 95 % bootstrap interval; NaN bounds for a single unit."""

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


def bootstrap_mean(values: npt.ArrayLike, *, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """Mean of n values with a percentile bootstrap interval (Efron 1979).

    Args:
        values: shape (n,), one finite value per unit.
        seed: seed of numpy's generator. The same seed and n give the same resamples, so intervals are reproducible.

    Returns:
        All NaN for n = 0; NaN bounds for n = 1.
    """
    data = np.asarray(values, dtype=np.float64)
    assert data.ndim == 1
    n = len(data)
    if n < 2:
        return Interval(float(data[0]) if n else float("nan"), float("nan"), float("nan"), n)
    rng = np.random.default_rng(seed)
    means = np.concatenate(
        [
            data[rng.integers(n, size=(min(_CHUNK, resamples - start), n))].mean(axis=1)
            for start in range(0, resamples, _CHUNK)
        ]
    )
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(data.mean()), float(low), float(high), n)


def paired_difference(
    of: Mapping[str, float],
    to: Mapping[str, float],
    *,
    groups: Mapping[str, str] | None = None,
    resamples: int = RESAMPLES,
) -> Interval:
    """Mean of ``of - to`` (of ``example_means``) over the examples that both have, with its bootstrap interval."""
    change = {key: of[key] - to[key] for key in of if key in to}
    if groups is not None:
        change = group_means(change, groups)
    return bootstrap_mean(list(change.values()), resamples=resamples)


def win_rate(of: Mapping[str, float], to: Mapping[str, float]) -> float:
    """Share of common examples where ``of`` is above ``to``, a tie counting one half; NaN without common examples."""
    shared = [key for key in of if key in to]
    if not shared:
        return float("nan")
    difference = np.array([of[key] - to[key] for key in shared])
    return float(((np.sign(difference) + 1.0) / 2.0).mean())
