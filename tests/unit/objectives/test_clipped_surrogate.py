"""The surrogate against a slow reference and REINFORCE, and its statistics.

Dimensions: n pairs of (sample, trained step).
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from customized_grpo.objectives.clipped_surrogate import clipped_surrogate, ratio_metrics, ratio_stats


def numbers(seed: int, n: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    old, advantage = torch.randn(n, generator=source), torch.randn(n, generator=source) * 4
    return old + 0.2 * torch.randn(n, generator=source), old, advantage


def slow(new: list[float], old: list[float], advantage: list[float], clip: float) -> float:
    losses = []
    for one_new, one_old, a in zip(new, old, advantage, strict=True):
        rho = math.exp(one_new - one_old)
        losses.append(max(-a * rho, -a * max(1 - clip, min(1 + clip, rho))))
    return sum(losses) / len(losses)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1000), clip=st.floats(1e-5, 0.5))
def test_surrogate_is_its_formula(seed: int, clip: float) -> None:
    new, old, advantage = numbers(seed)
    given_ = clipped_surrogate(new, old, advantage, clip)
    assert given_.shape == ()
    assert float(given_) == pytest.approx(slow(new.tolist(), old.tolist(), advantage.tolist(), clip), abs=1e-4)


def test_any_shape_is_averaged_over_all_its_elements() -> None:
    new, old, advantage = numbers(0)
    flat = clipped_surrogate(new, old, advantage, 0.1)
    shaped = clipped_surrogate(new.view(4, 8), old.view(4, 8), advantage.view(4, 8), 0.1)
    torch.testing.assert_close(flat, shaped)


def test_at_ratio_one_the_gradient_is_reinforce() -> None:
    _, old, advantage = numbers(3)
    new = old.clone().requires_grad_()
    clipped_surrogate(new, old, advantage, 1e-4).backward()
    torch.testing.assert_close(new.grad, -advantage / len(old))


@pytest.mark.parametrize(
    ("advantage", "rho", "moves"),
    [(1.0, 1.5, False), (1.0, 0.5, True), (-1.0, 0.5, False), (-1.0, 1.5, True), (1.0, 1.05, True)],
)
def test_gradient_stops_only_where_the_ratio_has_gone_the_wanted_way(advantage: float, rho: float, moves: bool) -> None:
    new = torch.tensor([math.log(rho)], requires_grad=True)
    clipped_surrogate(new, torch.zeros(1), torch.tensor([advantage]), 0.1).backward()
    assert (new.grad != 0).item() == moves
    assert ratio_stats(new.detach(), torch.tensor([advantage]), 0.1).clip_share_low == (rho < 1 and not moves)
    assert ratio_stats(new.detach(), torch.tensor([advantage]), 0.1).clip_share_high == (rho > 1 and not moves)


def test_no_gradient_reaches_the_old_policy_or_the_advantage() -> None:
    new, old, advantage = (one.requires_grad_() for one in numbers(1))
    clipped_surrogate(new, old, advantage, 0.1).backward()
    assert new.grad is not None
    assert old.grad is None
    assert advantage.grad is None


def test_zero_advantage_gives_exactly_no_gradient() -> None:
    new, old, _ = numbers(2)
    new.requires_grad_()
    loss = clipped_surrogate(new, old, torch.zeros(32), 1e-4)
    loss.backward()
    assert loss == 0
    assert torch.equal(new.grad, torch.zeros(32))


def test_ratio_statistics() -> None:
    log_ratio = torch.tensor([0.5, -0.7, 0.5, -0.7, 0.0])
    stats = ratio_stats(log_ratio, torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0]), 0.1)
    assert stats.max == pytest.approx(math.exp(0.5))
    assert stats.max_abs_log == pytest.approx(0.7)
    assert stats.mean == pytest.approx((2 * math.exp(0.5) + 2 * math.exp(-0.7) + 1) / 5)
    assert stats.clip_share_high == pytest.approx(0.2)
    assert stats.clip_share_low == pytest.approx(0.2)


def test_a_first_replay_clips_nothing() -> None:
    stats = ratio_stats(torch.zeros(8), torch.randn(8, generator=torch.Generator().manual_seed(0)), 1e-4)
    assert (stats.max, stats.mean, stats.max_abs_log, stats.clip_share_low, stats.clip_share_high) == (
        1,
        1,
        0,
        0,
        0,
    )


def test_an_updates_ratios() -> None:
    metrics = ratio_metrics(torch.tensor([0.5, -0.7, 0.0]), torch.tensor([1.0, -1.0, 1.0]), 0.1)
    assert metrics["ratio/max"] == pytest.approx(math.exp(0.5))
    assert metrics["ratio/max_abs_log"] == pytest.approx(0.7)
    assert metrics["ratio/clip_share_low"] == pytest.approx(1 / 3)
    assert metrics["ratio/clip_share_high"] == pytest.approx(1 / 3)
    assert metrics["ratio/clip_share"] == pytest.approx(2 / 3)
