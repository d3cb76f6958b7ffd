import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from customized_grpo.evaluation.statistics import (
    Interval,
    bootstrap_mean,
    example_means,
    paired_difference,
    win_rate,
)


def test_images_of_an_example_are_averaged_and_what_is_not_measurable_is_left_out() -> None:
    nan = float("nan")
    values = [("a", 1.0), ("a", 0.0), ("b", nan), ("b", 0.4), ("c", None), ("c", nan), ("d", 0.0)]
    assert example_means(values) == {"a": 0.5, "b": 0.4, "d": 0.0}


def test_interval_is_that_of_the_normal_theory() -> None:
    values = np.random.default_rng(5).normal(2.0, 3.0, size=400)
    interval = bootstrap_mean(values)
    half = 1.96 * values.std(ddof=1) / 20.0
    assert interval.mean == pytest.approx(values.mean())
    assert interval.n == 400
    assert interval.low == pytest.approx(values.mean() - half, abs=0.03)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.03)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    intervals = [bootstrap_mean(rng.normal(size=60), seed=i, resamples=500) for i in range(400)]
    covered = sum(interval.low <= 0.0 <= interval.high for interval in intervals) / 400
    # 95 % less the percentile bootstrap's bias at n = 60; three standard errors of 400 draws are 3.3 points.
    assert 0.905 <= covered <= 0.975


def test_same_seed_same_interval_and_another_seed_another() -> None:
    values = np.random.default_rng(0).normal(size=50)
    assert bootstrap_mean(values, seed=3) == bootstrap_mean(values, seed=3)
    assert bootstrap_mean(values, seed=3) != bootstrap_mean(values, seed=4)


def test_few_examples() -> None:
    assert math.isnan(bootstrap_mean([]).mean)
    one = bootstrap_mean([0.25])
    assert (one.mean, one.n) == (0.25, 1)
    assert math.isnan(one.low)
    assert one.as_json() == {"mean": 0.25, "low": None, "high": None, "n": 1}
    assert Interval(0.5, 0.25, 0.75, 4).as_json() == {"mean": 0.5, "low": 0.25, "high": 0.75, "n": 4}


def test_pairing_sees_what_two_separate_intervals_do_not() -> None:
    rng = np.random.default_rng(2)
    difficulty, gain = rng.normal(0.0, 1.0, 100), rng.normal(0.1, 0.1, 100)
    base = {f"e{i}": float(x) for i, x in enumerate(difficulty)}
    tuned = {f"e{i}": float(x + g) for i, (x, g) in enumerate(zip(difficulty, gain, strict=True))}
    difference = paired_difference(tuned, base)
    assert difference.low > 0.0
    assert difference.mean == pytest.approx(gain.mean())
    assert bootstrap_mean(list(tuned.values())).low < bootstrap_mean(list(base.values())).high
    back = paired_difference(base, tuned)
    assert back.high < 0.0
    assert back.mean == pytest.approx(-difference.mean)


def test_only_common_examples_are_compared() -> None:
    assert paired_difference({"a": 1.0, "b": 5.0, "x": 9.0}, {"b": 4.0, "a": 1.0, "y": 0.0}).n == 2
    assert win_rate({"a": 1.0, "x": 0.0}, {"a": 0.0, "y": 3.0}) == 1.0
    assert math.isnan(win_rate({"a": 1.0}, {"b": 1.0}))


def test_a_tie_is_half_a_win() -> None:
    assert win_rate({"a": 1.0, "b": 0.0, "c": 2.0, "d": 0.0}, {"a": 1.0, "b": 0.0, "c": 1.0, "d": 1.0}) == 0.5


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=20), st.integers(0, 9))
def test_interval_holds_the_mean_and_stays_in_range(values: list[float], seed: int) -> None:
    interval = bootstrap_mean(values, seed=seed, resamples=200)
    slack = 1e-9 * (1.0 + max(map(abs, values)))
    assert min(values) - slack <= interval.low <= interval.high <= max(values) + slack
