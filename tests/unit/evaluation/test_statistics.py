import math

import numpy as np
import pytest

from customized_grpo.evaluation.statistics import (
    Interval,
    crossed_interval,
    example_means,
    mean_interval,
    paired_difference,
    student_t,
    win_rate,
)


def test_images_of_an_example_are_averaged_and_what_is_not_measurable_is_left_out() -> None:
    nan = float("nan")
    values = [("a", 1.0), ("a", 0.0), ("b", nan), ("b", 0.4), ("c", None), ("c", nan), ("d", 0.0)]
    assert example_means(values) == {"a": 0.5, "b": 0.4, "d": 0.0}


def test_interval_is_that_of_students_t() -> None:
    interval = mean_interval([1.0, 2.0, 4.0, 5.0, 8.0])
    half = 2.776445 * math.sqrt(7.5 / 5)
    assert (interval.mean, interval.low, interval.high) == pytest.approx((4.0, 4.0 - half, 4.0 + half), abs=1e-5)
    tabled = {1: 12.7062, 2: 4.3027, 4: 2.7764, 4.3: 2.7017, 191: 1.9725, 1e4: 1.9602}
    assert {df: round(student_t(df), 4) for df in tabled} == tabled


def test_intervals_cover_the_truth_as_often_as_they_say_with_five_units() -> None:
    rng = np.random.default_rng(1)
    # Accuracies of few images, skewed, beside the normal case.
    for draws in (rng.normal(size=(3000, 5)), rng.binomial(12, 0.8, size=(3000, 5)) / 12 - 0.8):
        covered = np.mean([one.low <= 0.0 <= one.high for one in map(mean_interval, draws)])
        assert 0.93 <= covered <= 0.97
    resampled = draws[:, rng.integers(5, size=(400, 5))].mean(axis=2)
    low, high = np.quantile(resampled, [0.025, 0.975], axis=1)
    assert np.mean((low <= 0.0) & (high >= 0.0)) < 0.87  # the percentile bootstrap that stood here before


@pytest.mark.parametrize(
    ("seed", "example", "residual"),
    [(1.0, 0.0, 0.0), (0.1, 1.0, 1.0), (0.3, 1.0, 3.0), (1.0, 1.0, 5.0)],
)
def test_crossed_intervals_cover_at_five_seeds(seed: float, example: float, residual: float) -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(1000):
        values = rng.normal(0, seed, (5, 1)) + rng.normal(0, example, (1, 192)) + rng.normal(0, residual, (5, 192))
        interval = crossed_interval(values)
        covered += interval.low <= 0.0 <= interval.high
    assert 0.93 <= covered / 1000 <= 0.97


def test_crossed_intervals_need_three_seeds_and_are_those_of_one_way_where_only_seeds_differ() -> None:
    assert math.isnan(crossed_interval([[1.0, 2.0], [2.0, 3.0]]).low)
    of_seeds = np.array([0.1, 0.4, 0.2, 0.9, 0.3])
    crossed = crossed_interval(np.repeat(of_seeds[:, None], 8, axis=1))
    assert (crossed.mean, crossed.low, crossed.high, crossed.n) == pytest.approx(
        (0.38, mean_interval(of_seeds).low, mean_interval(of_seeds).high, 5)
    )


def test_few_examples() -> None:
    assert math.isnan(mean_interval([]).mean)
    one = mean_interval([0.25])
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
    assert mean_interval(list(tuned.values())).low < mean_interval(list(base.values())).high
    back = paired_difference(base, tuned)
    assert back.high < 0.0
    assert back.mean == pytest.approx(-difference.mean)


def test_only_common_examples_are_compared() -> None:
    assert paired_difference({"a": 1.0, "b": 5.0, "x": 9.0}, {"b": 4.0, "a": 1.0, "y": 0.0}).n == 2
    assert win_rate({"a": 1.0, "x": 0.0}, {"a": 0.0, "y": 3.0}) == 1.0
    assert math.isnan(win_rate({"a": 1.0}, {"b": 1.0}))


def test_a_tie_is_half_a_win() -> None:
    assert win_rate({"a": 1.0, "b": 0.0, "c": 2.0, "d": 0.0}, {"a": 1.0, "b": 0.0, "c": 1.0, "d": 1.0}) == 0.5
