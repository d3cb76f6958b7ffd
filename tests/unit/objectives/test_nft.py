"""DiffusionNFT's loss against the public trainers, and what its gradient is on policy.

Dimensions: n pairs of (sample, noise level), S latent tokens, C latent channels.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from customized_grpo.objectives.awm import matching_log_prob
from customized_grpo.objectives.nft import nft_loss, optimality
from objective_golden import BETAS, MAX_ADVANTAGE, ForwardCase, forward_case, golden

N, S, C = 5, 4, 3


def random_pairs(seed: int, error: float = 0.5, drift: float = 0.2) -> ForwardCase:
    source = torch.Generator().manual_seed(seed)
    noise, x0, wrong, moved = (torch.randn(N, S, C, generator=source, dtype=torch.float64) for _ in range(4))
    old = noise - x0 + error * wrong
    return ForwardCase(
        velocity=old + drift * moved,
        old_velocity=old,
        x0=x0,
        noise=noise,
        sigma=0.05 + 0.95 * torch.rand(N, generator=source, dtype=torch.float64),
        advantage=3 * torch.randn(N, generator=source, dtype=torch.float64),
    )


def losses_and_gradient(
    case: ForwardCase,
    *,
    beta: float = 1.0,
    max_advantage: float = MAX_ADVANTAGE,
    advantage: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    v = case.velocity.to(dtype, copy=True).requires_grad_()
    losses = nft_loss(
        v,
        case.old_velocity.to(dtype),
        case.x0.to(dtype),
        case.x_t.to(dtype),
        case.sigma.to(dtype),
        (case.advantage if advantage is None else advantage).to(dtype),
        beta=beta,
        max_advantage=max_advantage,
    )
    losses.sum().backward()
    assert v.grad is not None
    return losses.detach(), v.grad


@pytest.mark.parametrize("source", ["nvlabs", "flow_factory", "verl_omni"])
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 2e-5)], ids=["64", "32"])
def test_loss_and_gradient_are_those_of_the_public_trainers(
    source: str, beta: float, dtype: torch.dtype, rtol: float
) -> None:
    expected = golden()[f"nft/{source}/{beta}"]
    losses, gradient = losses_and_gradient(forward_case(), beta=beta, dtype=dtype)
    assert losses.dtype == dtype
    assert losses.tolist() == pytest.approx(expected["loss"], rel=rtol)
    assert gradient.flatten().tolist() == pytest.approx(expected["gradient"], rel=rtol, abs=rtol / 10)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1000),
    error=st.floats(0.01, 10),
    beta=st.floats(0.05, 2.0),
    max_advantage=st.floats(0.5, 6.0),
)
def test_on_policy_the_gradient_is_that_of_advantage_weighted_matching(
    seed: int, error: float, beta: float, max_advantage: float
) -> None:
    case = random_pairs(seed, error=error, drift=0.0)
    _, given_ = losses_and_gradient(case, beta=beta, max_advantage=max_advantage)

    v = case.velocity.clone().requires_grad_()
    wrong = (v - case.target).detach().abs().mean((1, 2))
    weight = case.advantage.clamp(-max_advantage, max_advantage) * case.sigma / wrong
    (weight * (v - case.target).square().mean((1, 2))).sum().backward()
    torch.testing.assert_close(given_, v.grad, rtol=1e-9, atol=1e-12)

    huber = case.velocity.clone().requires_grad_()
    log_prob = matching_log_prob(huber, case.target, case.sigma, weighting="huber")
    rms = (case.velocity - case.target).square().mean((1, 2)).sqrt()
    clipped = case.advantage.clamp(-max_advantage, max_advantage)
    (-clipped * 2 * rms / wrong * log_prob).sum().backward()
    torch.testing.assert_close(given_, huber.grad, rtol=1e-4, atol=1e-9)


def test_on_policy_the_gradient_grows_with_the_level_and_not_with_the_error() -> None:
    for error, sigma in ((0.1, 0.5), (10.0, 0.5), (0.1, 1.0)):
        source = torch.Generator().manual_seed(0)
        noise, x0, wrong = (torch.randn(1, 64, 64, generator=source, dtype=torch.float64) for _ in range(3))
        v = noise - x0 + error * wrong
        level = torch.tensor([sigma], dtype=torch.float64)
        one = ForwardCase(velocity=v, old_velocity=v, x0=x0, noise=noise, sigma=level, advantage=torch.ones(1))
        _, gradient = losses_and_gradient(one)
        # rms / mean of the absolute value of a normal variable is sqrt(pi / 2)
        assert float(gradient.norm()) == pytest.approx(2 * sigma * math.sqrt(math.pi / 2) / 64, rel=0.02)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("beta", BETAS)
def test_zero_advantage_gives_exactly_no_gradient_on_policy(dtype: torch.dtype, beta: float) -> None:
    case = random_pairs(1, drift=0.0)
    _, gradient = losses_and_gradient(case, beta=beta, advantage=torch.zeros(N), dtype=dtype)
    assert torch.equal(gradient, torch.zeros(N, S, C, dtype=dtype))


def test_zero_advantage_off_policy_leads_back_to_the_old_policy() -> None:
    case = random_pairs(1, error=0.5, drift=0.2)
    _, gradient = losses_and_gradient(case, advantage=torch.zeros(N))
    away = ((case.velocity - case.old_velocity) * gradient).sum((1, 2))
    assert bool((away > 0).all())


def test_a_good_sample_attracts_and_a_bad_one_repels() -> None:
    case = random_pairs(3, drift=0.0)
    wrong = case.velocity - case.target
    for advantage, sign in ((1.0, 1), (-1.0, -1)):
        _, gradient = losses_and_gradient(case, advantage=torch.full((N,), advantage))
        assert torch.equal((gradient * wrong).sum((1, 2)).sign(), torch.full((N,), sign, dtype=torch.float64))


def test_a_pair_stands_for_itself_wherever_it_is() -> None:
    case = random_pairs(4)
    losses, gradient = losses_and_gradient(case)
    order = torch.tensor([3, 0, 4, 1, 2])
    moved = ForwardCase(
        velocity=case.velocity[order],
        old_velocity=case.old_velocity[order],
        x0=case.x0[order],
        noise=case.noise[order],
        sigma=case.sigma[order],
        advantage=case.advantage[order],
    )
    again, gradient_again = losses_and_gradient(moved)
    assert torch.equal(again, losses[order])
    assert torch.equal(gradient_again, gradient[order])


def test_an_advantage_beyond_the_range_is_its_end() -> None:
    case = random_pairs(5)
    for huge, end in ((1e6, MAX_ADVANTAGE), (-1e6, -MAX_ADVANTAGE), (math.inf, MAX_ADVANTAGE)):
        given_, at_end = (losses_and_gradient(case, advantage=torch.full((N,), one)) for one in (huge, end))
        assert torch.equal(given_[0], at_end[0])
        assert torch.equal(given_[1], at_end[1])


def test_optimality() -> None:
    advantage = torch.tensor([-9.0, -5.0, -2.5, 0.0, 5.0, 9.0, math.nan])
    given_ = optimality(advantage, max_advantage=5.0)
    assert given_[:-1].tolist() == [0.0, 0.0, 0.25, 0.5, 1.0, 1.0]
    assert bool(given_[-1].isnan())


def test_beta_scales_the_loss_on_policy_and_not_its_gradient() -> None:
    case = random_pairs(6, drift=0.0)
    (losses, gradient), (tenth, same) = (losses_and_gradient(case, beta=beta) for beta in (1.0, 0.1))
    torch.testing.assert_close(tenth, 10 * losses)
    torch.testing.assert_close(same, gradient)


def test_a_small_beta_is_the_limit_of_the_gradient_on_policy() -> None:
    drifted = random_pairs(7, drift=0.3)
    on_policy = ForwardCase(
        velocity=drifted.old_velocity,
        old_velocity=drifted.old_velocity,
        x0=drifted.x0,
        noise=drifted.noise,
        sigma=drifted.sigma,
        advantage=drifted.advantage,
    )
    _, gradient = losses_and_gradient(drifted, beta=1e-6)
    torch.testing.assert_close(gradient, losses_and_gradient(on_policy)[1], rtol=1e-4, atol=1e-6)


def test_bfloat16_of_a_forward_is_promoted() -> None:
    case = random_pairs(8)
    v = case.velocity.bfloat16().requires_grad_()
    old, x0 = case.old_velocity.bfloat16(), case.x0.float()
    x_t, sigma, advantage = case.x_t.float(), case.sigma.float(), case.advantage.float()
    losses = nft_loss(v, old, x0, x_t, sigma, advantage, beta=0.1, max_advantage=5.0)
    wide = nft_loss(v.float(), old.float(), x0, x_t, sigma, advantage, beta=0.1, max_advantage=5.0)
    assert losses.dtype == torch.float32
    assert torch.equal(losses, wide)


def test_nothing_but_the_velocity_has_a_gradient() -> None:
    case = random_pairs(9)
    v, old, advantage = (one.clone().requires_grad_() for one in (case.velocity, case.old_velocity, case.advantage))
    nft_loss(v, old, case.x0, case.x_t, case.sigma, advantage, beta=1.0, max_advantage=5.0).sum().backward()
    assert v.grad is not None
    assert old.grad is None
    assert advantage.grad is None


@pytest.mark.parametrize("error", [0.0, 1e-7])
def test_the_error_counts_as_at_least_1e_5_where_it_is_divided_by(error: float) -> None:
    nothing = torch.zeros(1, S, C, dtype=torch.float64)
    v, one = (nothing + error).requires_grad_(), torch.ones(1, dtype=torch.float64)
    losses = nft_loss(v, v.detach(), nothing, nothing, one, one, beta=1.0, max_advantage=5.0)
    losses.sum().backward()
    assert v.grad is not None
    assert losses.item() == pytest.approx(5 * error**2 / 1e-5)
    assert v.grad.flatten().tolist() == pytest.approx([2 * error / 1e-5 / (S * C)] * (S * C))


def test_nan_stays_in_its_pair() -> None:
    case = random_pairs(11)
    advantage = case.advantage.clone()
    advantage[2] = math.nan
    losses, gradient = losses_and_gradient(case, advantage=advantage)
    assert losses.isnan().tolist() == [False, False, True, False, False]
    assert gradient.isnan().any((1, 2)).tolist() == [False, False, True, False, False]
