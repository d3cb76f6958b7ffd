"""The surrogate against a slow reference and REINFORCE, its statistics, and the weights of the steps.

Dimensions: n pairs of (sample, trained step), T sampler steps.
"""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from customized_grpo.objectives.clipped_surrogate import (
    clipped_surrogate,
    ratio_stats,
    sensitivity,
    step_weights,
)
from customized_grpo.sampling.dynamics import cps, dance_sde, flow_sde, log_prob
from customized_grpo.sampling.rollout import Transition
from customized_grpo.sampling.schedule import shifted_sigmas

DYNAMICS = [partial(dance_sde, eta=0.4), partial(flow_sde, noise_level=0.7), partial(cps, noise_level=0.8)]


def numbers(seed: int, n: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    old, advantage = torch.randn(n, generator=source), torch.randn(n, generator=source) * 4
    return old + 0.2 * torch.randn(n, generator=source), old, advantage


def slow(new: list[float], old: list[float], advantage: list[float], clip: float) -> float:
    losses = []
    for one_new, one_old, one_advantage in zip(new, old, advantage, strict=True):
        a = max(-5.0, min(5.0, one_advantage))
        rho = math.exp(one_new - one_old)
        losses.append(max(-a * rho, -a * max(1 - clip, min(1 + clip, rho))))
    return sum(losses) / len(losses)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1000), clip=st.floats(1e-5, 0.5))
def test_surrogate_is_its_formula(seed: int, clip: float) -> None:
    new, old, advantage = numbers(seed)
    given_ = clipped_surrogate(new, old, advantage, clip)
    assert given_.shape == ()
    assert float(given_) == pytest.approx(
        slow(new.tolist(), old.tolist(), advantage.tolist(), clip), abs=1e-4
    )


def test_any_shape_is_averaged_over_all_its_elements() -> None:
    new, old, advantage = numbers(0)
    flat = clipped_surrogate(new, old, advantage, 0.1)
    shaped = clipped_surrogate(new.view(4, 8), old.view(4, 8), advantage.view(4, 8), 0.1)
    torch.testing.assert_close(flat, shaped)


def test_at_ratio_one_the_gradient_is_reinforce() -> None:
    _, old, advantage = numbers(3)
    new = old.clone().requires_grad_()
    clipped_surrogate(new, old, advantage, 1e-4).backward()
    torch.testing.assert_close(new.grad, -advantage.clamp(-5, 5) / len(old))


@pytest.mark.parametrize(
    ("advantage", "rho", "moves"),
    [(1.0, 1.5, False), (1.0, 0.5, True), (-1.0, 0.5, False), (-1.0, 1.5, True), (1.0, 1.05, True)],
)
def test_gradient_stops_only_where_the_ratio_has_gone_the_wanted_way(
    advantage: float, rho: float, moves: bool
) -> None:
    new = torch.tensor([math.log(rho)], requires_grad=True)
    clipped_surrogate(new, torch.zeros(1), torch.tensor([advantage]), 0.1).backward()
    assert (new.grad != 0).item() == moves
    assert ratio_stats(new.detach(), torch.tensor([advantage]), 0.1).clip_share_low == (rho < 1 and not moves)
    assert ratio_stats(new.detach(), torch.tensor([advantage]), 0.1).clip_share_high == (
        rho > 1 and not moves
    )


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


def test_the_advantage_is_clamped_unless_told_otherwise() -> None:
    one = torch.zeros(1)
    assert clipped_surrogate(one, one, torch.tensor([80.0]), 0.1) == -5
    assert clipped_surrogate(one, one, torch.tensor([-80.0]), 0.1) == 5
    assert clipped_surrogate(one, one, torch.tensor([80.0]), 0.1, max_advantage=2.0) == -2
    assert clipped_surrogate(one, one, torch.tensor([80.0]), 0.1, max_advantage=math.inf) == -80


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


@pytest.mark.parametrize("transition", DYNAMICS, ids=lambda one: one.func.__name__)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_sensitivity_is_the_spread_of_the_gradient(transition: Transition, shift: float) -> None:
    # Measured: d log_prob / d v of sampled transitions is noise times m_k over the number of dims.
    sigmas, dims = shifted_sigmas(10, shift), 4096
    expected = sensitivity(transition, sigmas)
    source = torch.Generator().manual_seed(0)
    for k in range(9):
        v, x, noise = (torch.randn(1, dims, generator=source) for _ in range(3))
        v.requires_grad_()
        gaussian = transition(v, x, sigmas[k], sigmas[k + 1], sigma_max=sigmas[1])
        log_prob((gaussian.mean + gaussian.std * noise).detach(), gaussian).sum().backward()
        assert v.grad is not None
        assert float(v.grad.std()) * dims == pytest.approx(float(expected[k]), rel=0.06)
    assert expected[9] == 0


def test_sensitivity_of_the_dance_sde_in_closed_form() -> None:
    sigmas, eta = shifted_sigmas(25, 3.0), 0.4
    given_ = sensitivity(partial(dance_sde, eta=eta), sigmas)
    for k in range(24):
        s, d = float(sigmas[k]), float(sigmas[k] - sigmas[k + 1])
        assert float(given_[k]) == pytest.approx(
            (d + eta**2 / (2 * s) * (1 - s) * d) / (eta * math.sqrt(d)), rel=1e-5
        )


@pytest.mark.parametrize("transition", DYNAMICS, ids=lambda one: one.func.__name__)
def test_equal_weights_make_every_step_pull_alike(transition: Transition) -> None:
    sigmas = shifted_sigmas(25, 3.0)
    weights = step_weights("equal", transition, sigmas)
    pull = (weights * sensitivity(transition, sigmas))[:-1]
    torch.testing.assert_close(pull, pull.mean().expand(24), atol=0, rtol=1e-5)
    assert float(weights[:-1].mean()) == pytest.approx(1, rel=1e-6)
    assert weights[-1] == 0
    assert weights.isfinite().all()


def test_the_paper_weighs_no_step() -> None:
    assert torch.equal(step_weights("none", dance_sde, shifted_sigmas(10, 3.0)), torch.ones(10))


def test_late_steps_of_a_shifted_grid_pull_harder() -> None:
    # the reason for "equal": measured 2 to 5 times
    for transition, least in ((partial(dance_sde, eta=0.4), 2.0), (partial(flow_sde, noise_level=0.7), 4.0)):
        pull = sensitivity(transition, shifted_sigmas(25, 3.0))
        assert float(pull[23] / pull[1]) > least
