"""Normalisation against a slow reference, constant groups, and what NaN does. G group size, R rewards, Q axes."""

import math
import statistics

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from customized_grpo.advantages.normalize import normalize, scorable, to_axes

NAN = math.nan


def rewards(group_size: int = 12, num_rewards: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(group_size, num_rewards, generator=torch.Generator().manual_seed(seed)) * 3 + 5


def slow(column: list[float]) -> list[float]:
    finite = [value for value in column if math.isfinite(value)]
    mean, std = statistics.mean(finite), statistics.stdev(finite)
    return [(value - mean) / (std + 1e-8) if math.isfinite(value) else 0.0 for value in column]


def test_each_column_is_its_formula() -> None:
    r = rewards()
    r[2, 1] = r[5, 1] = NAN
    expected = torch.tensor([slow(column) for column in r.double().T.tolist()]).T
    torch.testing.assert_close(normalize(r), expected, atol=1e-6, rtol=1e-6)
    assert normalize(r).dtype == torch.float32


def test_one_reward_may_come_without_its_dimension() -> None:
    r = rewards()
    assert torch.equal(normalize(r[:, 0]), normalize(r)[:, 0])


@given(value=st.floats(-1e5, 1e5, width=32), group_size=st.integers(2, 24))
@example(value=61.9, group_size=12)
@example(value=1e-12, group_size=7)
def test_a_constant_group_gives_exact_zeros(value: float, group_size: int) -> None:
    r = torch.full((group_size, 2), value, dtype=torch.float32)
    assert torch.equal(normalize(r), torch.zeros(group_size, 2))


def test_a_group_that_differs_by_float_rounding_alone_gives_exact_zeros() -> None:
    r = torch.full((12, 1), 61.9)
    r[3] = torch.nextafter(r[3], torch.tensor([100.0]))
    assert torch.equal(normalize(r), torch.zeros(12, 1))


def test_a_small_but_real_spread_is_kept() -> None:
    r = 61.9 + torch.linspace(0, 0.01, 12)[:, None]
    assert normalize(r).std(0).item() == pytest.approx(1, rel=1e-3)
    tiny = torch.linspace(-1e-6, 1e-6, 12)[:, None]
    assert normalize(tiny).std(0).item() == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("lost", [NAN, math.inf, -math.inf])
def test_an_unscorable_sample_gets_zero_and_moves_nobody(lost: float) -> None:
    r = rewards()
    with_lost = r.clone()
    with_lost[4] = lost
    kept = [g for g in range(12) if g != 4]
    given = normalize(with_lost)
    assert torch.equal(given[4], torch.zeros(3))
    torch.testing.assert_close(given[kept], normalize(r[kept]))


@pytest.mark.parametrize("finite", [0, 1])
def test_fewer_than_two_finite_rewards_give_zeros(finite: int) -> None:
    r = torch.full((6, 1), NAN)
    r[:finite] = 3.0
    assert torch.equal(normalize(r), torch.zeros(6, 1))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), shift=st.floats(-50, 50), scale=st.floats(0.1, 50))
def test_shift_and_scale_do_not_matter(seed: int, shift: float, scale: float) -> None:
    r = rewards(seed=seed)
    torch.testing.assert_close(normalize(r * scale + shift), normalize(r), atol=2e-3, rtol=1e-3)


@settings(max_examples=50, deadline=None)
@given(order=st.permutations(range(12)), seed=st.integers(0, 1000))
def test_permuting_samples_permutes_advantages(order: list[int], seed: int) -> None:
    r = rewards(seed=seed)
    r[1, 0] = NAN
    torch.testing.assert_close(normalize(r[order]), normalize(r)[order], atol=1e-6, rtol=0)


def test_one_reward_an_axis_is_normalize() -> None:
    r = rewards(num_rewards=2)
    assert torch.equal(to_axes(r, [0, 1], [1.0, 3.0], num_axes=2), normalize(r))
    assert torch.equal(to_axes(r, [1, 0], [1.0, 1.0], num_axes=2), normalize(r).flip(1))


def test_several_rewards_of_an_axis_are_normalised_averaged_and_normalised_again() -> None:
    r = rewards()
    given = to_axes(r, [0, 1, 0], [1.0, 1.0, 3.0], num_axes=2)
    first, second, third = (torch.tensor(slow(column)) for column in r.double().T.tolist())
    expected = torch.tensor(slow(((first + 3 * third) / 4).tolist()))
    torch.testing.assert_close(given, torch.stack([expected, second], 1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(given.std(0), torch.ones(2), atol=1e-5, rtol=0)


def test_a_reward_lost_on_one_sample_leaves_the_others_of_its_axis() -> None:
    r = rewards()
    r[4, 0] = NAN
    given = to_axes(r, [0, 1, 0], [1.0, 1.0, 3.0], num_axes=2)
    first, third = (slow(column) for column in r.double().T[[0, 2]].tolist())
    mean = [third[g] if g == 4 else (first[g] + 3 * third[g]) / 4 for g in range(12)]
    torch.testing.assert_close(given[:, 0], torch.tensor(slow(mean)), atol=1e-5, rtol=1e-5)
    assert scorable(r, [0, 1, 0], num_axes=2).all()


def test_a_sample_without_any_reward_on_an_axis_is_not_scorable() -> None:
    r = rewards()
    r[4, 0] = r[4, 2] = NAN  # all of axis 0
    r[7, 1] = NAN  # all of axis 1
    r[9, 0] = NAN  # one of two of axis 0
    assert scorable(r, [0, 1, 0], num_axes=2).tolist() == [g not in (4, 7) for g in range(12)]
    given = to_axes(r, [0, 1, 0], [1.0, 1.0, 1.0], num_axes=2)
    assert given[4, 0] == 0
    assert given[7, 1] == 0
    assert given.isfinite().all()


def test_rewards_of_an_axis_that_cancel_leave_zeros_and_not_rounding() -> None:
    r = rewards(num_rewards=1)
    both = torch.cat([r, 1 - r, torch.ones_like(r)], 1)
    given = to_axes(both, [0, 0, 1], [1.0, 1.0, 1.0], num_axes=2)
    assert torch.equal(given, torch.zeros(12, 2))


def test_an_axis_without_a_reward_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(AssertionError, match="axis 1 has no reward"):
        to_axes(rewards(num_rewards=1), [0], [1.0], num_axes=2)
