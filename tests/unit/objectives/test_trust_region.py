"""GRPO-Guard's ratio and Flow-DPPO's mask against the public trainers, and what they are for.

Dimensions: n pairs of (sample, trained step), S latent tokens, C latent channels.
"""

import math

import pytest
import torch
from torch import Tensor

from customized_grpo.objectives.clipped_surrogate import clipped_surrogate
from customized_grpo.objectives.trust_region import dppo_keeps, dppo_loss, guard_log_ratio, guard_step_weight
from customized_grpo.sampling.dynamics import Gaussian, dance_sde, kl, log_prob
from objective_golden import THRESHOLD, TransitionCase, golden, transition_case

PRECISIONS = [(torch.float64, 1e-11), (torch.float32, 1e-5)]


def in_dtype(case: TransitionCase, dtype: torch.dtype) -> TransitionCase:
    return TransitionCase(
        x_next=case.x_next.to(dtype),
        mean=case.mean.to(dtype, copy=True).requires_grad_(),
        old_mean=case.old_mean.to(dtype),
        std=case.std.to(dtype),
        sigma=case.sigma.to(dtype),
        sigma_next=case.sigma_next.to(dtype),
        advantage=case.advantage.to(dtype),
    )


def gaussians(case: TransitionCase) -> tuple[Gaussian, Gaussian]:
    std = case.std[:, None, None]
    return Gaussian(case.mean, std), Gaussian(case.old_mean, std)


def gradient(of: Tensor, case: TransitionCase) -> list[float]:
    (found,) = torch.autograd.grad(of.sum(), case.mean, retain_graph=True)
    values: list[float] = found.flatten().tolist()
    return values


@pytest.mark.parametrize(("dtype", "rtol"), PRECISIONS, ids=["64", "32"])
def test_guard_is_that_of_the_public_trainers(dtype: torch.dtype, rtol: float) -> None:
    case = in_dtype(transition_case(), dtype)
    log_ratio = guard_log_ratio(case.x_next, case.mean, case.old_mean, case.std)
    ratio = log_ratio.exp()
    factory, verl = golden()["guard/flow_factory"], golden()["guard/verl_omni"]
    assert ratio.tolist() == pytest.approx(factory["ratio"], rel=rtol)
    assert ratio.tolist() == pytest.approx(verl["ratio"], rel=max(rtol, 1e-6))  # logged in float32
    assert gradient(ratio, case) == pytest.approx(factory["gradient"], rel=rtol, abs=rtol)
    loss = -case.advantage * ratio * guard_step_weight(case.sigma, case.sigma_next)
    assert loss.tolist() == pytest.approx(verl["loss"], rel=rtol)
    assert gradient(loss, case) == pytest.approx(verl["gradient"], rel=rtol, abs=rtol)


@pytest.mark.parametrize(("dtype", "rtol"), PRECISIONS, ids=["64", "32"])
def test_dppo_is_that_of_the_public_trainers(dtype: torch.dtype, rtol: float) -> None:
    case = in_dtype(transition_case(), dtype)
    new, old = gaussians(case)
    now, before, divergence = log_prob(case.x_next, new), log_prob(case.x_next, old), kl(new, old)
    expected = golden()["dppo/verl_omni"]
    losses = dppo_loss(now, before, divergence, case.advantage, threshold=THRESHOLD)
    kept = dppo_keeps(now - before, divergence, case.advantage, threshold=THRESHOLD)
    assert kept.tolist() == [bool(one) for one in expected["kept"]]
    assert sorted(set(expected["kept"])) == [0.0, 1.0]
    assert divergence.tolist() == pytest.approx(expected["kl"], rel=max(rtol, 1e-6), abs=1e-7)
    assert losses.tolist() == pytest.approx(expected["loss"], rel=rtol)
    assert gradient(losses, case) == pytest.approx(expected["gradient"], rel=rtol, abs=10 * rtol)


def test_guard_is_the_log_ratio_without_its_bias_and_scale() -> None:
    case = transition_case()
    new, old = gaussians(case)
    log_ratio = log_prob(case.x_next, new) - log_prob(case.x_next, old)
    expected = case.std * (log_ratio + kl(new, old))
    torch.testing.assert_close(guard_log_ratio(case.x_next, case.mean, case.old_mean, case.std), expected)


def test_guard_is_centred_where_the_plain_ratio_is_not() -> None:
    source = torch.Generator().manual_seed(0)
    n, std, moved = 20_000, 0.2, 0.1
    old_mean = torch.zeros(n, 4, 4, dtype=torch.float64)
    mean = old_mean + moved
    x_next = old_mean + std * torch.randn(n, 4, 4, generator=source, dtype=torch.float64)
    spread = torch.full((n,), std, dtype=torch.float64)
    guarded = guard_log_ratio(x_next, mean, old_mean, spread)
    plain = log_prob(x_next, Gaussian(mean, spread[:, None, None])) - log_prob(
        x_next, Gaussian(old_mean, spread[:, None, None])
    )
    assert abs(float(guarded.mean())) < 4 * moved / 4 / math.sqrt(n)  # four standard errors
    assert float(plain.mean()) == pytest.approx(-(moved**2) / (2 * std**2), rel=0.05)


def test_guard_in_float32_keeps_its_digits_at_the_size_of_flux() -> None:
    # As a difference of two log-densities it has errors of 1e-8, about its size here.
    source = torch.Generator().manual_seed(0)
    old_mean, noise, moved = (torch.randn(4, 1024, 64, generator=source, dtype=torch.float64) for _ in range(3))
    x_next, mean, old_mean = (one.float() for one in (old_mean + 0.05 * noise, old_mean + 1e-5 * moved, old_mean))
    std = torch.full((4,), 0.05)
    given_ = guard_log_ratio(x_next, mean, old_mean, std)
    exact = guard_log_ratio(x_next.double(), mean.double(), old_mean.double(), std.double())
    assert float(exact.abs().max()) < 2e-7
    assert float((given_ - exact).abs().max()) < 1e-3 * float(exact.abs().mean())


def test_weighted_guard_pulls_alike_at_every_step_but_for_the_noise() -> None:
    # d log_ratio / d v is z times d mu / d v, and d mu / d v is -d (1 + g^2 (1 - sigma) / (2 sigma))
    sigma, sigma_next, eta = torch.tensor([0.9, 0.5, 0.3]), torch.tensor([0.7, 0.49, 0.1]), 0.4
    x, v = torch.zeros(3, 2, 2), torch.zeros(3, 2, 2, requires_grad=True)
    levels = [one[:, None, None] for one in (sigma, sigma_next)]
    old = dance_sde(v.detach(), x, *levels, eta=eta)
    new = dance_sde(v, x, *levels, eta=eta)
    x_next = old.mean + old.std  # z = 1
    log_ratio = guard_log_ratio(x_next, new.mean, old.mean, old.std[:, 0, 0])
    (log_ratio * guard_step_weight(sigma, sigma_next)).sum().backward()
    assert v.grad is not None
    expected = -(1 + eta**2 * (1 - sigma) / (2 * sigma)) / 4
    torch.testing.assert_close(v.grad, expected[:, None, None].expand(3, 2, 2))


def test_on_policy_guard_is_exactly_one_and_has_the_gradient_of_the_plain_ratio_times_std() -> None:
    case = transition_case()
    mean = case.old_mean.clone().requires_grad_()
    log_ratio = guard_log_ratio(case.x_next, mean, case.old_mean, case.std)
    assert torch.equal(log_ratio, torch.zeros_like(log_ratio))
    clipped_surrogate(log_ratio, torch.zeros_like(log_ratio), case.advantage, 2e-6).backward()
    plain = case.old_mean.clone().requires_grad_()
    now = log_prob(case.x_next, Gaussian(plain, case.std[:, None, None]))
    (-case.advantage * case.std * now).mean().backward()
    torch.testing.assert_close(mean.grad, plain.grad)


@pytest.mark.parametrize(
    ("log_ratio", "advantage", "divergence", "kept"),
    [
        (0.1, 1.0, 1.0, False),
        (-0.1, 1.0, 1.0, True),
        (0.1, -1.0, 1.0, True),
        (-0.1, -1.0, 1.0, False),
        (0.1, 1.0, 0.4, True),
        (0.1, 1.0, 0.5, False),  # at the threshold
        (0.0, 1.0, 1.0, True),
        (0.0, -1.0, 1.0, True),
        (0.1, 0.0, 1.0, True),
    ],
)
def test_dppo_drops_what_is_outside_and_leads_farther(
    log_ratio: float, advantage: float, divergence: float, kept: bool
) -> None:
    now = torch.tensor([log_ratio], requires_grad=True)
    a, far = torch.tensor([advantage]), torch.tensor([divergence])
    assert dppo_keeps(now.detach(), far, a, threshold=0.5).item() == kept
    loss = dppo_loss(now, torch.zeros(1), far, a, threshold=0.5)
    loss.sum().backward()
    expected = -advantage * math.exp(log_ratio) if kept else 0.0
    assert loss.item() == pytest.approx(expected)
    assert now.grad is not None
    assert now.grad.item() == pytest.approx(expected)


def test_an_overflowing_ratio_that_is_dropped_leaves_no_nan() -> None:
    now = torch.tensor([200.0, 0.0], requires_grad=True)
    loss = dppo_loss(now, torch.zeros(2), torch.ones(2), torch.tensor([1.0, 1.0]), threshold=0.5)
    loss.mean().backward()
    assert loss.tolist() == [0.0, -1.0]
    assert now.grad is not None
    assert now.grad.tolist() == [0.0, -0.5]


def test_only_the_new_policy_has_a_gradient() -> None:
    case = transition_case()
    x_next, mean, old_mean = (one.clone().requires_grad_() for one in (case.x_next, case.mean, case.old_mean))
    guard_log_ratio(x_next.detach(), mean, old_mean, case.std).sum().backward()
    assert mean.grad is not None
    assert old_mean.grad is None
    now, before, far, a = (torch.rand(3).requires_grad_() for _ in range(4))
    dppo_loss(now, before, far, a, threshold=2.0).sum().backward()
    assert now.grad is not None
    assert [before.grad, far.grad, a.grad] == [None, None, None]
