"""The grid against its formula, and what every plan promises. K trained steps, T sampler steps."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from customized_grpo.sampling.schedule import (
    AllPlan,
    BranchPlan,
    FractionPlan,
    Plan,
    StepPlan,
    WindowPlan,
    shifted_sigmas,
)

PLANS: list[Plan] = [
    AllPlan(),
    FractionPlan(fraction=0.6),
    FractionPlan(fraction=0.01),
    FractionPlan(fraction=1.0),
    WindowPlan(width=3),
    WindowPlan(width=2, stride=1, every=2),
    WindowPlan(width=3, mode="random", every=2),
    WindowPlan(width=3, mode="decay", every=6, shortest=2),
    WindowPlan(width=2, mode="exp_decay", every=6, rate=0.5, onset=0.3),
    BranchPlan(),
    BranchPlan(at=2),
]


@settings(max_examples=50, deadline=None)
@given(num_steps=st.integers(1, 60), shift=st.floats(0.3, 10))
def test_grid_is_its_formula(num_steps: int, shift: float) -> None:
    grid = shifted_sigmas(num_steps, shift)
    expected = [shift * s / (1 + (shift - 1) * s) for s in ((num_steps - k) / num_steps for k in range(num_steps + 1))]
    torch.testing.assert_close(grid, torch.tensor(expected), atol=1e-6, rtol=1e-6)
    assert grid.dtype == torch.float32
    assert grid[0] == 1
    assert grid[-1] == 0
    assert (grid.diff() < 0).all()


def test_shift_one_is_even() -> None:
    torch.testing.assert_close(shifted_sigmas(4, 1.0), torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0]))


@pytest.mark.parametrize(("num_steps", "shift"), [(0, 1.0), (-3, 1.0), (5, 0.0), (5, -1.0), (5, float("nan"))])
def test_impossible_grids_are_refused(num_steps: int, shift: float) -> None:
    with pytest.raises(ValueError, match="at least 1 step and a positive shift"):
        shifted_sigmas(num_steps, shift)


@settings(max_examples=60, deadline=None)
@given(
    plan=st.sampled_from(PLANS),
    step=st.integers(0, 10_000),
    num_steps=st.integers(4, 60),
    seed=st.integers(0, 99),
    group=st.integers(0, 99),
)
def test_every_plan_keeps_the_rules(plan: Plan, step: int, num_steps: int, seed: int, group: int) -> None:
    roles = plan.steps(step, num_steps, seed, group)
    assert roles == plan.steps(step, num_steps, seed, group)
    assert set(roles.trained) <= set(roles.stochastic) <= set(range(num_steps - 1))
    assert roles.trained
    assert roles.stochastic[0] == min(roles.stochastic)
    assert list(roles.trained) == sorted(set(roles.trained))
    # every group of a GRPO step trains equally many steps: the loss divides by one count
    assert len(roles.trained) == len(plan.steps(step, num_steps, seed, group + 1).trained)


def test_one_sampler_step_is_refused() -> None:
    for plan in PLANS:
        with pytest.raises(ValueError, match="at least 2"):
            plan.steps(0, 1, 0)


def test_all_trains_everything_but_the_last() -> None:
    assert AllPlan().steps(3, 5, 0) == StepPlan(5, (0, 1, 2, 3), (0, 1, 2, 3))


@pytest.mark.parametrize(
    ("fraction", "num_steps", "count"),
    [(0.6, 25, 14), (0.6, 10, 5), (0.01, 25, 1), (1.0, 25, 24), (0.29, 101, 29), (0.7, 11, 7)],
)
def test_fraction_rounds_down(fraction: float, num_steps: int, count: int) -> None:
    roles = FractionPlan(fraction=fraction).steps(0, num_steps, 0)
    assert len(roles.trained) == count
    assert roles.stochastic == tuple(range(num_steps - 1))


def test_fraction_is_drawn_for_each_group_step_and_seed() -> None:
    plan = FractionPlan(fraction=0.6)
    base = plan.steps(0, 25, 0, 0)
    assert len({base, plan.steps(1, 25, 0, 0), plan.steps(0, 25, 1, 0), plan.steps(0, 25, 0, 1)}) == 4


def test_fraction_reaches_every_step_equally() -> None:
    drawn = [k for step in range(400) for k in FractionPlan(fraction=0.6).steps(step, 25, 0).trained]
    counts = torch.tensor(drawn).bincount(minlength=25)
    assert counts[24] == 0
    # 400 draws at 14 of 24: 233 each, with a standard deviation of 10
    assert (counts[:24] - 400 * 14 / 24).abs().max() < 45


def firsts(plan: Plan, num_steps: int, count: int) -> list[int]:
    return [plan.steps(step, num_steps, 0).stochastic[0] for step in range(count)]


def places(plan: Plan, num_steps: int, count: int) -> list[tuple[int, int]]:
    """(first step of the window, for how many GRPO steps), in order."""
    return [(place, len(list(run))) for place, run in itertools.groupby(firsts(plan, num_steps, count))]


def test_progressive_window_moves_by_its_width_and_starts_again() -> None:
    plan = WindowPlan(width=4, every=3)
    assert plan.steps(0, 25, 0) == StepPlan(25, (0, 1, 2, 3), (0, 1, 2, 3))
    assert places(plan, 25, 21) == [(0, 3), (4, 3), (8, 3), (12, 3), (16, 3), (20, 3), (0, 3)]


def test_progressive_window_reaches_the_last_trainable_step_where_the_stride_does_not_divide() -> None:
    assert places(WindowPlan(width=4, every=1), 10, 4) == [(0, 1), (4, 1), (5, 1), (0, 1)]
    assert places(WindowPlan(width=3, every=2, stride=1), 6, 8) == [(0, 2), (1, 2), (2, 2), (0, 2)]


def test_window_as_wide_as_the_steps_stands_still() -> None:
    assert set(firsts(WindowPlan(width=9, every=1), 10, 5)) == {0}


def test_random_window_goes_everywhere_and_stays_for_its_time() -> None:
    plan = WindowPlan(width=2, mode="random", every=5)
    drawn = firsts(plan, 8, 1000)
    assert set(drawn) == set(range(6))
    assert all(len(set(drawn[start : start + 5])) == 1 for start in range(0, 1000, 5))
    # one window a GRPO step, the same for all groups
    assert len({plan.steps(7, 8, 0, group) for group in range(20)}) == 1


def test_decaying_window_stays_shorter_later() -> None:
    # MixGRPO: max(shortest, floor(every (1 - l / T) + shortest l / T))
    plan = WindowPlan(width=5, mode="decay", every=10, shortest=2)
    assert places(plan, 21, 6 + 10 + 8 + 4) == [(0, 10), (5, 8), (10, 6), (15, 4)]


def test_exponentially_decaying_window_stays_shorter_beyond_the_onset() -> None:
    # MixGRPO: ceil(every exp(-rate relu(l - onset T)))
    plan = WindowPlan(width=5, mode="exp_decay", every=10, rate=0.1, onset=0.25)
    assert places(plan, 20, 10 + 10 + 7 + 5) == [(0, 10), (5, 10), (10, 7), (14, 5)]


def test_a_window_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="width 8 does not fit the 4 trainable steps"):
        WindowPlan(width=8).steps(0, 5, 0)


@pytest.mark.parametrize(
    "section",
    [
        {"mode": "progressive", "rate": 0.2},
        {"mode": "decay", "onset": 0.2},
        {"mode": "random", "stride": 2},
        {"shortest": 3},
    ],
)
def test_inert_keys_of_a_window_are_refused(section: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="has no effect with mode"):
        WindowPlan.model_validate(section)


def test_branch_is_one_step_per_group() -> None:
    drawn = {BranchPlan().steps(0, 10, 0, group).trained for group in range(200)}
    assert drawn == {(k,) for k in range(9)}
    assert {BranchPlan(at=4).steps(step, 10, 0).stochastic for step in range(20)} == {(4,)}


def test_branch_outside_the_trainable_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="allowed: 0 to 8"):
        BranchPlan(at=9).steps(0, 10, 0)


@pytest.mark.parametrize(
    ("plan", "path"),
    [
        (WindowPlan(width=2), list(range(2, 13))),
        (WindowPlan(width=2, steps_after=5), [2, 4, 6, 8, 10, 12]),
        (WindowPlan(width=2, steps_after=3), [2, 5, 9, 12]),
        (WindowPlan(width=2, steps_after=1), [2, 12]),
        (WindowPlan(width=2, steps_after=99), list(range(2, 13))),
        (BranchPlan(at=1, steps_after=2), [2, 7, 12]),
    ],
    ids=str,
)
def test_steps_after_the_window_are_thinned_evenly(plan: Plan, path: list[int]) -> None:
    roles = plan.steps(0, 12, 0)
    assert roles.path(2, 12) == path
    assert roles.num_forwards(2, 12) == len(path) - 1
    assert roles.next_stochastic(2) == 12


def test_steps_before_the_window_are_never_thinned() -> None:
    roles = BranchPlan(at=7, steps_after=2).steps(0, 12, 0)
    assert roles.path(0, 7) == list(range(8))
    assert roles.path(8, 12) == [8, 10, 12]
    assert roles.next_stochastic(0) == 7


def test_step_plan_holds_its_invariants() -> None:
    for stochastic, trained in [((0, 1), ()), ((0, 1), (2,)), ((1, 0), (1,))]:
        with pytest.raises(AssertionError):
            StepPlan(4, stochastic, trained)
    for skipped in (0, 2, 3, 6):
        with pytest.raises(AssertionError, match="on the grid"):
            StepPlan(6, (2,), (2,), (skipped,))
