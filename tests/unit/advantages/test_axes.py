"""Named axes beyond prompt and identity: time weights of each, SARS by pairs, raw rewards for who asks; and with two
axes everything is what it was before axes had names.

Dimensions: G group size, R rewards, Q axes, K trained steps, T sampler steps.
"""

import json
import math
from collections.abc import Callable
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from customized_grpo.advantages import aggregators
from customized_grpo.advantages.axes import with_further
from customized_grpo.advantages.normalize import normalize, raw_axes
from customized_grpo.advantages.shaping import advantages_of
from customized_grpo.advantages.time_weights import tdw
from customized_grpo.registry import build_function, config_model, resolve
from customized_grpo.testing import check_aggregator

GOLDEN = json.loads((Path(__file__).parents[2] / "support" / "two_axes_golden.json").read_text())
ALL = ["weighted_sum", "sars", "harmonic", "minimum", "maximum", "weighted_minimum", "weighted_maximum", "product"]
REWARDS = torch.tensor([[1.0, 4.0, 0.1], [2.0, 1.0, 0.9], [3.0, 3.0, 0.4], [7.0, 2.0, 0.2]])
WEIGHTS = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]])


def golden_rewards() -> Tensor:
    draw = torch.Generator().manual_seed(7)
    rewards = torch.randn(12, 3, generator=draw) * torch.tensor([3.0, 0.1, 20.0]) + torch.tensor([10.0, 0.6, -5.0])
    rewards[4, 0] = torch.nan
    rewards[7, 1:] = torch.nan
    return rewards


@pytest.mark.parametrize("name", GOLDEN["advantages"])
def test_two_axes_give_the_numbers_of_before(name: str) -> None:
    one = advantages_of(
        golden_rewards(),
        tdw(25)[::6],
        axis_of=[0, 1, 1],
        weight_of=[1.0, 2.0, 0.5],
        aggregator=getattr(aggregators, name),
        clip=2.0,
        min_valid=0.5,
    )
    before = GOLDEN["advantages"][name]
    torch.testing.assert_close(one.advantage, torch.tensor(before["advantage"]), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(one.bonus, torch.tensor(before["bonus"]), rtol=1e-6, atol=1e-7)
    assert one.clipped_share == pytest.approx(before["clipped_share"])


def test_further_axes_take_constant_shares_of_a_row() -> None:
    given = with_further(tdw(25), [0.2, 0.1])
    torch.testing.assert_close(given[:, 2:], torch.tensor([[0.2, 0.1]]).expand(25, 2))
    torch.testing.assert_close(given[:, :2], 0.7 * tdw(25))
    # a schedule whose rows sum to 1.2 keeps that sum, and a share is one of it
    torch.testing.assert_close(with_further(torch.tensor([[0.7, 0.5]]), [0.25]), torch.tensor([[0.525, 0.375, 0.3]]))


@given(st.lists(st.floats(0, 0.24), max_size=4))
def test_shares_keep_a_rows_sum_and_the_ratio_of_the_first_two(shares: list[float]) -> None:
    whole = with_further(tdw(25), shares)
    assert whole.shape == (25, 2 + len(shares))
    torch.testing.assert_close(whole.sum(1), torch.ones(25), atol=1e-6, rtol=0)
    torch.testing.assert_close(whole[:, 0] * tdw(25)[:, 1], whole[:, 1] * tdw(25)[:, 0])
    assert (whole >= 0).all()


def test_without_further_axes_time_weights_are_the_same_tensor() -> None:
    weights = tdw(25)
    assert with_further(weights, []) is weights


def by_pairs(a: Tensor, w: Tensor, gamma: float) -> Tensor:
    rows = []
    for row in a.double().tolist():
        pairs = list(combinations(row, 2))
        signs = [1 if max(pair) > 0 else -1 for pair in pairs]
        bonus = sum(sign * math.tanh(p * q) for sign, (p, q) in zip(signs, pairs, strict=True)) / len(pairs)
        rows.append([sum(u * v for u, v in zip(row, at, strict=True)) + gamma * bonus for at in w.double().tolist()])
    return torch.tensor(rows)


@pytest.mark.parametrize("num_axes", [2, 3, 4])
def test_sars_is_its_formula_by_pairs(num_axes: int) -> None:
    a = normalize(torch.randn(12, num_axes, generator=torch.Generator().manual_seed(num_axes)))
    w = with_further(tdw(10), [0.15] * (num_axes - 2))
    torch.testing.assert_close(aggregators.sars(a, w, gamma=0.4), by_pairs(a, w, 0.4), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("num_axes", [2, 3, 4])
@pytest.mark.parametrize("name", ALL)
def test_every_aggregator_takes_more_axes(name: str, num_axes: int) -> None:
    check_aggregator(getattr(aggregators, name), num_axes=num_axes)


def test_a_raw_axis_is_its_reward_in_its_own_unit() -> None:
    rewards = REWARDS.clone()
    rewards[1, 1] = math.nan
    assert torch.equal(
        raw_axes(rewards, [0, 1, 2], [1.0, 3.0, 0.3], num_axes=3).nan_to_num(nan=-99.0), rewards.nan_to_num(nan=-99.0)
    )
    joined = raw_axes(rewards, [0, 1, 1], [1.0, 3.0, 1.0], num_axes=2)
    torch.testing.assert_close(joined[:, 0], rewards[:, 0])
    # the second sample's first reward of the axis is unscorable, so its other one stands alone
    torch.testing.assert_close(joined[:, 1], torch.tensor([(3 * 4.0 + 0.1) / 4, 0.9, (3 * 3.0 + 0.4) / 4, 6.2 / 4]))
    rewards[1, 2] = math.inf
    assert joined.isfinite().all()
    assert raw_axes(rewards, [0, 1, 1], [1.0, 3.0, 1.0], num_axes=2)[1, 1].isnan()


def shaped(aggregator: Callable[..., Tensor], rewards: Tensor = REWARDS) -> Tensor:
    return advantages_of(
        rewards,
        WEIGHTS,
        axis_of=[0, 1, 2],
        weight_of=[1.0, 1.0, 1.0],
        aggregator=aggregator,
        clip=50.0,
        min_valid=0.0,
    ).advantage


def floor(a: Tensor, w: Tensor, raw: Tensor, *, least: float = 0.3) -> Tensor:
    """The weighted sum where the third axis's raw reward is above a floor, else 0."""
    return aggregators.weighted_sum(a, w) * (raw[:, 2:] > least)


def test_an_aggregator_that_asks_for_raw_rewards_gets_them() -> None:
    plain = shaped(aggregators.weighted_sum)
    kept = shaped(partial(floor, least=0.3))
    assert kept[[0, 3]].eq(0).all()
    assert torch.equal(kept[[1, 2]], plain[[1, 2]])
    assert plain.ne(0).all()
    check_aggregator(floor, num_axes=3)


def test_raw_is_no_option_of_the_recipe() -> None:
    section = config_model("aggregators", floor)
    assert set(section.model_fields) == {"type", "least"}
    assert shaped(build_function("aggregators", section(type=f"{__name__}:floor", least=0.5)))[2].eq(0).all()


class Callable_(config_model("aggregators", resolve("aggregators", "weighted_sum"))):  # type: ignore[misc]
    """A pydantic model that can be called, the form of earlier versions."""

    def __call__(self, a: Tensor, w: Tensor, raw: Tensor) -> Tensor:
        return floor(a, w, raw)


def test_a_model_may_ask_too() -> None:
    assert torch.equal(shaped(Callable_(type="x")), shaped(floor))


def wrong_place(raw: Tensor, a: Tensor, w: Tensor) -> Tensor:
    return a + w + raw


def another(a: Tensor, w: Tensor, reward: Tensor) -> Tensor:
    return a + w + reward


@pytest.mark.parametrize(
    ("function", "said"), [(wrong_place, "raw must stand behind a, w"), (another, "can't be called as")]
)
def test_other_parameters_are_refused(function: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        config_model("aggregators", function)
