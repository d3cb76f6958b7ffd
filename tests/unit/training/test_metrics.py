"""The numbers that explain a step, each against a hand-made case; and how ranks join theirs.

Dimensions: G group size, R rewards, Q axes (prompt, identity), K trained steps, T sampler steps.
"""

import math
from functools import partial

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from customized_grpo.advantages.aggregators import sars, weighted_sum
from customized_grpo.advantages.shaping import Advantages, Aggregator, advantages_of
from customized_grpo.advantages.time_weights import constant, tdw
from customized_grpo.objectives.step_weights import step_sensitivity
from customized_grpo.sampling.dynamics import dance_sde
from customized_grpo.sampling.schedule import shifted_sigmas
from customized_grpo.training import distributed
from customized_grpo.training import metrics as explain
from customized_grpo.training.faults import SignalWarnings

NAMES, AXIS_OF = ["clip", "dino"], [0, 1]


def advantages(rewards: Tensor, clip: float = 5.0) -> Advantages:
    weights = torch.tensor([[0.5, 0.5]])
    return advantages_of(
        rewards,
        weights,
        axis_of=AXIS_OF,
        weight_of=[1.0, 1.0],
        aggregator=partial(sars, gamma=0.4),
        clip=clip,
        min_valid=0.5,
    )


def groups(*rewards: Tensor) -> dict[str, float]:
    return explain.groups(NAMES, AXIS_OF, rewards, [advantages(one) for one in rewards])


AGREE = torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]])
CONFLICT = torch.tensor([[1.0, 30.0], [2.0, 20.0], [3.0, 10.0]])


def test_rewards_are_means_over_groups() -> None:
    metrics = groups(AGREE, AGREE + 2)
    assert metrics["reward/clip/mean"] == pytest.approx(3)
    assert metrics["reward/clip/std"] == pytest.approx(1)
    assert metrics["reward/dino/std"] == pytest.approx(10)
    assert metrics["reward/prompt/mean"] == metrics["reward/clip/mean"]
    assert metrics["reward/identity/mean"] == metrics["reward/dino/mean"]


def test_an_axis_of_several_rewards_is_their_mean() -> None:
    rewards = torch.cat([AGREE, AGREE[:, :1] + 4], dim=1)
    one = advantages_of(
        rewards,
        torch.tensor([[0.5, 0.5]]),
        axis_of=[0, 1, 0],
        weight_of=[1.0, 1.0, 1.0],
        aggregator=sars,
        clip=5.0,
        min_valid=0.5,
    )
    metrics = explain.groups(["a", "b", "c"], [0, 1, 0], [rewards], [one])
    assert metrics["reward/prompt/mean"] == pytest.approx(4)


def test_unscorable_values_are_left_out_and_counted() -> None:
    rewards = AGREE.clone()
    rewards[0, 1] = math.nan
    metrics = groups(rewards)
    assert metrics["reward/dino/mean"] == pytest.approx(25)
    assert metrics["advantage/masked_share"] == pytest.approx(1 / 3)
    assert metrics["advantage/skipped_share"] == 0.0
    everything = groups(torch.full((3, 2), math.nan))
    assert math.isnan(everything["reward/dino/mean"])
    assert everything["advantage/masked_share"] == 1
    assert everything["advantage/skipped_share"] == 1
    # a lost group does not take the step's mean with it
    assert groups(torch.full((3, 2), math.nan), AGREE)["reward/dino/mean"] == pytest.approx(20)


def test_the_two_axes_agree_or_conflict() -> None:
    agree, conflict = groups(AGREE), groups(CONFLICT)
    assert agree["advantage/correlation"] == pytest.approx(1)
    assert conflict["advantage/correlation"] == pytest.approx(-1)
    shares = ["share_synergy", "share_conflict", "share_both_down"]
    assert [agree[f"advantage/{name}"] for name in shares] == pytest.approx([1 / 3, 0, 1 / 3])
    assert [conflict[f"advantage/{name}"] for name in shares] == pytest.approx([0, 2 / 3, 0])
    # tanh(1) up for the best, down for the worst; down for both in conflict
    assert agree["advantage/bonus_mean"] == pytest.approx(0, abs=1e-6)
    assert agree["advantage/bonus_abs_mean"] == pytest.approx(0.4 * math.tanh(1) * 2 / 3, rel=1e-5)
    assert conflict["advantage/bonus_mean"] == pytest.approx(-0.4 * math.tanh(1) * 2 / 3, rel=1e-5)


def test_the_nonlinear_share_is_what_no_static_weights_give() -> None:
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randn(12, 2, generator=generator)
    rows = torch.tensor([[0.9, 0.1], [0.2, 0.8]])

    def of(aggregator: Aggregator, rewards: Tensor) -> Advantages:
        return advantages_of(
            rewards, rows, axis_of=AXIS_OF, weight_of=[1.0, 1.0], aggregator=aggregator, clip=5.0, min_valid=0.5
        )

    assert explain.nonlinear_share(of(weighted_sum, rewards)) == pytest.approx(0, abs=1e-9)
    shaped = of(partial(sars, gamma=1.6), rewards)
    share = explain.nonlinear_share(shaped)
    # numpy's own least squares with an intercept, step by step
    design = np.column_stack([np.ones(12), shaped.axes.double().numpy()])
    expected = []
    for column in shaped.joined.double().numpy().T:
        left = np.linalg.lstsq(design, column, rcond=None)[1][0]
        expected.append(left / ((column - column.mean()) ** 2).sum())
    assert share == pytest.approx(np.mean(expected), rel=1e-6)
    assert 0.005 < share < 1
    assert explain.nonlinear_share(of(partial(sars, gamma=1.6), rewards.flip(0))) == pytest.approx(share, rel=1e-5)
    # what SARS adds grows with gamma and with the conflict of the axes
    assert explain.nonlinear_share(of(partial(sars, gamma=0.4), rewards)) < share
    opposed = torch.stack([rewards[:, 0], 0.5 * rewards[:, 1] - rewards[:, 0]], dim=1)
    assert explain.nonlinear_share(of(partial(sars, gamma=1.6), opposed)) > share
    # too few samples, and advantages that are all alike, say nothing
    assert math.isnan(explain.nonlinear_share(of(sars, rewards[:3])))
    assert math.isnan(explain.nonlinear_share(of(sars, torch.ones(12, 2))))
    unscored = rewards.clone()
    unscored[0, 0] = math.nan
    assert explain.nonlinear_share(of(weighted_sum, unscored)) == pytest.approx(0, abs=1e-9)


def test_a_constant_reward_has_no_correlation_and_no_variance() -> None:
    rewards = AGREE.clone()
    rewards[:, 0] = 61.9
    metrics = groups(rewards)
    assert math.isnan(metrics["advantage/correlation"])
    assert metrics["reward/clip/zero_variance_share"] == 1
    assert metrics["reward/dino/zero_variance_share"] == 0
    assert groups(rewards, AGREE)["reward/clip/zero_variance_share"] == 0.5
    assert groups(rewards, AGREE)["advantage/correlation"] == pytest.approx(1)


def test_an_outage_is_no_tie() -> None:
    """A group with fewer than two scores says nothing about the reward's spread."""
    out = AGREE.clone()
    out[1:, 0] = math.nan
    assert groups(AGREE, out)["reward/clip/zero_variance_share"] == 0.0
    everything = groups(out, out)
    assert math.isnan(everything["reward/clip/zero_variance_share"])
    assert SignalWarnings(NAMES, clip=1e-4).of_step(everything) == []


def test_a_first_replay_outside_the_clip_range_is_said_once() -> None:
    watch, metrics = SignalWarnings(NAMES, clip=1e-4), groups(AGREE)
    assert watch.of_step(metrics | {"ratio/max_abs_log_first": 1e-4}) == []
    (said,) = watch.of_step(metrics | {"ratio/max_abs_log_first": 3.85e-4})
    assert "largest |log-ratio| is 0.000385, more than objective.clip=0.0001: terms are clipped" in said
    assert watch.of_step(metrics | {"ratio/max_abs_log_first": 5e-4}) == []


def test_clipped_advantages_are_counted() -> None:
    metrics = explain.groups(NAMES, AXIS_OF, [AGREE], [advantages(AGREE, clip=0.5)])
    assert metrics["advantage/clip_share"] == pytest.approx(2 / 3)
    assert metrics["advantage/abs_mean"] == pytest.approx(1 / 3)


def test_weights_are_those_of_the_trainable_steps() -> None:
    metrics = explain.weights(tdw(25), torch.cat([torch.ones(24), torch.zeros(1)]))
    assert {name for name in metrics if name.startswith("weight/")} == {
        f"weight/{axis}/step_{step:02d}" for axis in ("prompt", "identity") for step in range(24)
    }
    assert metrics["weight/prompt/step_00"] == pytest.approx(0.7)
    assert metrics["weight/identity/step_00"] == pytest.approx(0.3)
    assert metrics["weight/prompt/step_10"] == pytest.approx(0.5)
    # where every step has the same sensitivity, the effective weight is the weight
    for name, value in metrics.items():
        assert metrics[name.replace("weight_effective/", "weight/")] == pytest.approx(value, rel=1e-5)


def test_the_effective_weight_follows_the_sensitivity_of_a_step() -> None:
    sensitivity = step_sensitivity(partial(dance_sde, eta=0.4), shifted_sigmas(25, 3.0))
    metrics = explain.weights(constant(25), sensitivity)
    effective = [metrics[f"weight_effective/prompt/step_{step:02d}"] for step in range(24)]
    assert effective[23] / effective[1] == pytest.approx(float(sensitivity[23] / sensitivity[1]), rel=1e-4)
    assert sum(effective) / 24 == pytest.approx(0.5, rel=1e-4)


def test_an_evaluation_is_the_mean_over_examples_and_not_over_images() -> None:
    rows = [
        {"key": "a", "values": {"dino": 1.0}},
        {"key": "a", "values": {"dino": 3.0}},
        {"key": "b", "values": {"dino": 6.0}},
        {"key": "c", "values": {"dino": None}},
    ]
    assert explain.evaluation(rows, "heldout") == {"evaluation/dino/mean": 4.0}


def test_the_headline_shows_what_is_there() -> None:
    assert explain.headline({"reward/prompt/mean": 0.12345, "time/step": 2.0}) == "prompt 0.123  s 2"
    assert explain.headline({}) == ""


def test_ranks_join_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = {
        "reward/a/mean": 1.0,
        "ratio/max": 3.0,
        "weight/prompt/step_01": 0.7,
        "ratio/max_b": 1.0,
        "c": math.nan,
    }
    other = {
        "reward/a/mean": 2.0,
        "ratio/max": 2.0,
        "weight/prompt/step_04": 0.3,
        "ratio/max_b": math.nan,
        "c": 4.0,
    }
    monkeypatch.setattr(distributed, "gather_rows", lambda rows: [*rows, other])
    joined = distributed.mean_metrics(Accelerator(cpu=True), mine)
    assert math.isnan(joined.pop("ratio/max_b"))  # what is lost on one rank is a warning on all
    assert joined == {
        "reward/a/mean": 1.5,
        "ratio/max": 3.0,
        "weight/prompt/step_01": 0.7,  # trained by one rank only
        "weight/prompt/step_04": 0.3,
        "c": 4.0,
    }


def test_one_rank_alone() -> None:
    alone = Accelerator(cpu=True)
    assert distributed.mean_metrics(alone, {"a": 1.5}) == {"a": 1.5}
    assert distributed.gather_rows([1, 2]) == [1, 2]
    assert distributed.largest(alone, 2.0) == 2
    assert math.isnan(distributed.largest(alone, math.nan))
    assert [distributed.any_rank(alone, flag) for flag in (True, False)] == [True, False]
