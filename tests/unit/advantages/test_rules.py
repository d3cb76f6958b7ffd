"""Each rule against its published formula by numbers, and as a property: order, NaN, bounds.

Dimensions: G group size, n groups, K trained steps.
"""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from customized_grpo.advantages.aggregators import sars
from customized_grpo.advantages.normalize import normalize
from customized_grpo.advantages.rules import (
    best_and_worst,
    difficulty_weights,
    gate,
    is_too_alike,
    sigmoid_scale,
    spread,
    whiten,
)

SCORES = st.lists(st.floats(0, 1, width=32), min_size=2, max_size=16).map(torch.tensor)
REWARDS = torch.tensor([0.2, 0.65, 0.9, 0.4])
IDENTITY = torch.tensor([0.1, 0.5, 0.8, 0.45])


def test_the_sigmoid_is_dyrefs() -> None:
    """Numbers of its ``k = 10 + 3 (n_refs - 2); sigmoid(k (sims - 0.65))`` for 2 and 4 references."""
    for references, k in ((2, 10.0), (4, 16.0)):
        expected = [1 / (1 + math.exp(-k * (s - 0.65))) for s in REWARDS.tolist()]
        given = sigmoid_scale(REWARDS, centre=0.65, slope=10.0 + 3 * (references - 2))
        torch.testing.assert_close(given, torch.tensor(expected), atol=1e-6, rtol=1e-6)


def test_the_gate_is_divrls() -> None:
    """Numbers of its loop: below the margin the main score less 5 (0.5 - gate)^2, at or above it as it is."""
    expected = []
    for main, by in zip(REWARDS.tolist(), IDENTITY.tolist(), strict=True):
        expected.append(main - 5 * (0.5 - by) ** 2 if by < 0.5 else main)
    given = gate(REWARDS, IDENTITY, floor=0.5, penalty=5.0)
    torch.testing.assert_close(given, torch.tensor(expected))
    assert torch.equal(given[1:3], REWARDS[1:3])
    assert given[0] == pytest.approx(0.2 - 5 * 0.16)


def dyref(means: list[float], gamma: float = 2.0, low: float = 0.5, high: float = 5.0) -> list[float]:
    """As its trainer has it, group by group."""
    eps = 1e-6
    weights = [float(np.clip((max(0.0, 1.0 - np.clip(p, 0, 1)) + eps) ** gamma, low, high)) for p in means]
    mean = max(float(np.mean(weights)), eps)
    return [float(np.clip(w / mean, low, high)) for w in weights]


@pytest.mark.parametrize("bounds", [(0.5, 5.0), (0.01, 5.0)])
def test_the_weight_of_a_group_is_dyrefs(bounds: tuple[float, float]) -> None:
    means = [0.0, 0.1, 0.5, 0.75, 0.98, 1.0]
    low, high = bounds
    given = difficulty_weights(torch.tensor(means), power=2.0, low=low, high=high)
    torch.testing.assert_close(given, torch.tensor(dyref(means, low=low, high=high)), atol=1e-5, rtol=1e-5)
    assert given[0] == given.max()
    assert given.diff().le(0).all()


@given(SCORES, st.floats(0.05, 1), st.floats(1, 9))
def test_weights_are_bounded_and_follow_their_groups(means: Tensor, low: float, high: float) -> None:
    weigh = partial(difficulty_weights, power=2.0, low=low, high=high)
    weights = weigh(means)
    assert ((weights >= low - 1e-6) & (weights <= high + 1e-6)).all()
    order = torch.arange(len(means)).flip(0)
    torch.testing.assert_close(weigh(means[order]), weights[order])
    if low <= 1e-6 + float((1 - means).square().min()):
        assert float(weights.mean()) == pytest.approx(1, abs=1e-3) or bool((weights >= high - 1e-6).any())


def test_a_group_without_a_score_weighs_1_and_moves_nobody() -> None:
    weigh = partial(difficulty_weights, power=2.0, low=0.1, high=5.0)
    weights = weigh(torch.tensor([0.2, math.nan, 0.7]))
    assert weights[1] == 1
    torch.testing.assert_close(weights[[0, 2]], weigh(torch.tensor([0.2, 0.7])))
    assert torch.equal(weigh(torch.full((3,), math.nan)), torch.ones(3))


def test_groups_of_equal_difficulty_weigh_exactly_1() -> None:
    """Whatever the difficulty: the rule weighs groups against each other and does not change the step's size."""
    for p in (0.0, 0.3, 1.0):
        torch.testing.assert_close(difficulty_weights(torch.full((4,), p), power=2.0, low=0.5, high=5.0), torch.ones(4))


def test_spread_is_numpys_and_the_range() -> None:
    assert spread(REWARDS, "std") == pytest.approx(float(np.std(REWARDS.numpy())))
    assert spread(REWARDS, "range") == pytest.approx(0.7)
    assert spread(torch.tensor([0.2, math.nan, 0.9]), "range") == pytest.approx(0.7)
    for few in ([], [0.5], [0.5, math.nan]):
        assert spread(torch.tensor(few), "std") == 0


def test_groups_are_left_out_as_edit_r1_does() -> None:
    """Banned are prompts of a standard deviation below .05 and a mean above .9."""
    ban = partial(is_too_alike, least=0.05, measure="std", above=0.9)
    cases = {(0.95, 0.97): True, (0.5, 0.52): False, (0.8, 1.0): False, (0.89, 0.9): False, (1.0, 1.0): True}
    for values, banned in cases.items():
        assert ban(torch.tensor(values)) is banned, values
        assert bool(np.std(values) < 0.05 and np.mean(values) > 0.9) is banned, "the published form"
    assert is_too_alike(torch.tensor([0.5, 0.52]), least=0.05, measure="range")
    assert not is_too_alike(torch.tensor([0.5, 0.6]), least=0.05, measure="range")


@given(SCORES, st.floats(0, 1))
def test_what_is_left_out_does_not_depend_on_the_order(rewards: Tensor, least: float) -> None:
    for measure in ("std", "range"):
        alike = is_too_alike(rewards, least=least, measure=measure)  # type: ignore[arg-type]
        assert is_too_alike(rewards.sort().values, least=least, measure=measure) is alike  # type: ignore[arg-type]
        assert not is_too_alike(torch.tensor([0.0, 2.0]), least=0.9, measure=measure)  # type: ignore[arg-type]


def test_whitening_is_gdpos() -> None:
    """Three groups of two rewards, as its trainer: group z-scores, their weighted sum, the batch's mean and std."""
    rewards = torch.rand(3, 4, 2, generator=torch.Generator().manual_seed(0))
    weights = torch.tensor([1.0, 0.5])
    z = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
    summed = (z * weights).nansum(-1)
    published = (summed - summed.mean()) / (summed.std() + 1e-4)
    ours = torch.stack([(normalize(group) * weights).sum(-1) for group in rewards])[..., None]
    whitened, std = whiten(ours, torch.ones(3, 4, dtype=torch.bool))
    torch.testing.assert_close(whitened[..., 0], published, atol=2e-3, rtol=2e-3)  # 1e-4 in its z-scores, 1e-8 in ours
    assert float(std) == pytest.approx(float(summed.std()), rel=2e-3)


def test_whitened_advantages_have_spread_1_and_follow_their_samples() -> None:
    values = 7 + 3 * torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(1))
    used = torch.ones(4, 6, dtype=torch.bool)
    used[1, 2] = used[3] = False
    values[1, 2] = 1e6  # what is masked moves nobody
    whitened, _ = whiten(values, used)
    assert whitened[~used].eq(0).all()
    assert float(whitened[used].mean()) == pytest.approx(0, abs=1e-5)
    assert float(whitened[used].std()) == pytest.approx(1, rel=1e-3)
    order = torch.tensor([3, 1, 0, 5, 2, 4])
    torch.testing.assert_close(whiten(values[:, order], used[:, order])[0], whitened[:, order])
    groups = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(whiten(values[groups], used[groups])[0], whitened[groups])


def test_nothing_to_whiten_is_zero() -> None:
    values = torch.zeros(2, 3, 1)
    assert whiten(values, torch.ones(2, 3, dtype=torch.bool))[0].eq(0).all()
    assert whiten(values + 4, torch.zeros(2, 3, dtype=torch.bool))[0].eq(0).all()


def test_best_and_worst_are_dancegrpos() -> None:
    """Its ``argsort(total_scores)``: the last and the first ``bestofn // 2``."""
    scores = torch.tensor([0.3, -1.0, 2.0, 0.1, -0.5, 1.0])
    order = torch.argsort(scores)
    published = set(torch.cat([order[-2:], order[:2]]).tolist())
    assert published == {1, 4, 2, 5}
    assert best_and_worst(scores[:, None], best=2, worst=2).tolist() == sorted(published)
    assert best_and_worst(scores[:, None], best=1, worst=2).tolist() == [1, 2, 4]
    by_mean = torch.stack([scores, -3 * scores], dim=1)
    assert best_and_worst(by_mean, best=1, worst=1).tolist() == [1, 2]


@given(
    st.lists(st.floats(-5, 5, width=32), min_size=4, max_size=12).map(torch.tensor),
    st.integers(1, 2),
    st.integers(1, 2),
)
def test_the_number_kept_is_always_the_same(values: Tensor, best: int, worst: int) -> None:
    kept = best_and_worst(values[:, None], best=best, worst=worst)
    assert len(set(kept.tolist())) == best + worst
    assert kept.tolist() == sorted(kept.tolist())
    rest = torch.ones(len(values), dtype=torch.bool)
    rest[kept] = False
    assert float(values[kept].max()) == float(values.max())
    assert float(values[kept].min()) == float(values.min())
    if rest.any():
        assert float(values[kept].sort().values[worst - 1]) <= float(values[rest].min())
        assert float(values[kept].sort().values[worst]) >= float(values[rest].max())


@pytest.mark.parametrize(
    "rule",
    [partial(sigmoid_scale, centre=0.65, slope=10.0), lambda r: gate(r, IDENTITY[: len(r)], floor=0.5, penalty=5.0)],
)
def test_a_rule_on_rewards_acts_on_each_sample_alone(rule: Callable[[Tensor], Tensor]) -> None:
    whole = rule(REWARDS)
    assert torch.equal(rule(REWARDS[:2]), whole[:2])
    missing = REWARDS.clone()
    missing[1] = math.nan
    assert rule(missing).isnan().tolist() == [False, True, False, False]
    assert torch.equal(rule(missing)[[0, 2, 3]], whole[[0, 2, 3]])
    # higher stays better: what a rule is given unequal in one reward alone keeps its order
    assert (rule(REWARDS + 0.1) > whole).all()


def test_a_gate_without_a_score_is_none() -> None:
    by = IDENTITY.clone()
    by[2] = math.nan
    assert gate(REWARDS, by, floor=0.5, penalty=5.0).isnan().tolist() == [False, False, True, False]


def test_rules_compose_with_any_aggregator() -> None:
    """A gated reward is a reward: it is normalised and joined as every other."""
    rewards = torch.stack([gate(REWARDS, IDENTITY, floor=0.5, penalty=5.0), IDENTITY], dim=1)
    joined = sars(normalize(rewards), torch.tensor([[0.5, 0.5]]))
    plain = sars(normalize(torch.stack([REWARDS, IDENTITY], dim=1)), torch.tensor([[0.5, 0.5]]))
    assert joined[0] < plain[0]
