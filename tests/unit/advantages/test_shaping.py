"""From a group's rewards to its advantages: masked, clamped, and explained.

Dimensions: G group size, R rewards, Q = 2 axes (prompt, identity), K trained steps.
"""

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from customized_grpo.advantages.aggregators import sars, weighted_sum
from customized_grpo.advantages.normalize import normalize
from customized_grpo.advantages.shaping import Advantages, advantages_of

REWARDS = torch.tensor([[1.0, 4.0], [2.0, 1.0], [3.0, 3.0], [7.0, 2.0]])
WEIGHTS = torch.tensor([[0.7, 0.3], [0.5, 0.5], [0.3, 0.7]])


def advantages(rewards: Tensor = REWARDS, **changes: Any) -> Advantages:
    settings: dict[str, Any] = {
        "axis_of": (0, 1),
        "weight_of": (1.0, 1.0),
        "aggregator": partial(sars, gamma=0.4),
        "clip": 5.0,
        "min_valid": 0.5,
    }
    return advantages_of(rewards, WEIGHTS, **{**settings, **changes})


def test_it_is_the_aggregator_on_normalised_rewards_and_the_given_rows() -> None:
    one = advantages()
    torch.testing.assert_close(one.axes, normalize(REWARDS))
    torch.testing.assert_close(one.advantage, sars(normalize(REWARDS), WEIGHTS, gamma=0.4))
    assert one.scored.all()
    assert one.clipped_share == 0


def test_the_bonus_is_what_the_aggregator_adds_to_the_weighted_sum() -> None:
    plain = advantages(aggregator=weighted_sum)
    assert torch.equal(plain.bonus, torch.zeros(4, 3))
    torch.testing.assert_close(advantages().bonus, advantages().advantage - plain.advantage)
    assert advantages().bonus.abs().max() > 0.01


def test_a_sample_without_a_value_on_one_axis_has_no_advantage_and_moves_nobody() -> None:
    rewards = REWARDS.clone()
    rewards[2, 1] = math.nan
    one = advantages(rewards)
    assert one.scored.tolist() == [True, True, False, True]
    assert torch.equal(one.advantage[2], torch.zeros(3))
    assert torch.equal(one.bonus[2], torch.zeros(3))
    assert one.advantage.isfinite().all()
    # the others' identity is normalised without it
    torch.testing.assert_close(one.axes[[0, 1, 3], 1], normalize(REWARDS[[0, 1, 3], 1]))


def test_several_rewards_of_an_axis_mask_only_where_all_fail() -> None:
    rewards = torch.cat([REWARDS, REWARDS[:, :1] ** 2], dim=1)
    rewards[1, 0] = math.nan
    assert advantages(rewards, axis_of=(0, 1, 0), weight_of=(1.0, 1.0, 2.0)).scored.all()
    rewards[1, 2] = math.nan
    assert advantages(rewards, axis_of=(0, 1, 0), weight_of=(1.0, 1.0, 2.0)).scored.tolist()[1] is False


def test_advantages_are_clamped_and_the_share_is_counted() -> None:
    free, tight = advantages(), advantages(clip=0.5)
    torch.testing.assert_close(tight.advantage, free.advantage.clamp(-0.5, 0.5))
    assert tight.clipped_share == pytest.approx(float((free.advantage.abs() > 0.5).float().mean()))
    assert 0 < tight.clipped_share < 1


@pytest.mark.parametrize("value", [0.0, 61.9, -3e4])
def test_constant_rewards_give_exact_zeros(value: float) -> None:
    one = advantages(torch.full((4, 2), value))
    assert torch.equal(one.advantage, torch.zeros(4, 3))


def test_nothing_scored_gives_exact_zeros() -> None:
    one = advantages(torch.full((4, 2), math.nan))
    assert torch.equal(one.advantage, torch.zeros(4, 3))
    assert not one.scored.any()


@pytest.mark.parametrize(("failed", "skipped"), [(0, False), (1, False), (2, False), (3, True), (4, True)])
def test_a_group_with_too_few_scored_samples_teaches_nothing(failed: int, skipped: bool) -> None:
    rewards = REWARDS.clone()
    rewards[:failed, 1] = math.nan
    one = advantages(rewards)
    assert one.skipped is skipped
    assert one.scored.tolist() == [False] * failed + [True] * (4 - failed)
    assert bool((one.advantage == 0).all()) is skipped
    assert bool((one.bonus == 0).all()) is skipped
    if failed == 3:  # alone, a sample has no advantage on one axis, but the other axis would still move it
        assert bool((advantages(rewards, min_valid=0.0).advantage != 0).any())


@pytest.mark.parametrize(
    "wrong", [lambda a, w: a.mean(-1), lambda a, w: a, lambda a, w: 1.0, lambda a, w: (a @ w.T)[:, :1]]
)
def test_an_aggregator_of_another_shape_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"advantage.aggregator: it gave .*\(G, K\) = \(4, 3\) is needed"):
        advantages(aggregator=wrong)


def test_an_aggregator_that_writes_into_its_input_changes_no_axes() -> None:
    assert advantages(aggregator=lambda a, w: sars(a.mul_(0), w)).axes.abs().max() > 0
