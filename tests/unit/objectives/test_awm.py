"""The matching log-probability against the public trainers, and what its weightings do to the gradient.

Dimensions: n pairs of (sample, noise level), S latent tokens, C latent channels.
"""

from typing import get_args

import pytest
import torch
from torch import Tensor

from customized_grpo.objectives.awm import Weighting, matching_log_prob
from customized_grpo.objectives.clipped_surrogate import clipped_surrogate
from objective_golden import POWERS, WEIGHTINGS, forward_case, golden

CASES: list[tuple[Weighting, float]] = [(one, POWERS[0]) for one in get_args(Weighting)] + [("ghuber", POWERS[1])]


def log_prob_and_gradient(
    weighting: Weighting, power: float, *, error: float = 1.0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    case = forward_case()
    v = (case.target + error * (case.velocity - case.target)).to(dtype).requires_grad_()
    found = matching_log_prob(v, case.target.to(dtype), case.sigma.to(dtype), weighting=weighting, power=power)
    found.sum().backward()
    assert v.grad is not None
    return found.detach(), v.grad


def test_every_weighting_of_the_public_code_has_a_name() -> None:
    assert set(WEIGHTINGS) == set(get_args(Weighting))


@pytest.mark.parametrize(("weighting", "power"), CASES)
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 2e-5)], ids=["64", "32"])
def test_log_prob_and_gradient_are_those_of_the_public_trainers(
    weighting: Weighting, power: float, dtype: torch.dtype, rtol: float
) -> None:
    found, gradient = log_prob_and_gradient(weighting, power, dtype=dtype)
    assert found.dtype == dtype
    for source in ("authors", "flow_factory"):
        expected = golden()[f"awm/{source}/{weighting}/{power}"]
        at_least = 1e-6 if source == "flow_factory" else rtol  # which rounds to float32 at its end
        assert found.tolist() == pytest.approx(expected["log_prob"], rel=max(rtol, at_least))
        assert gradient.flatten().tolist() == pytest.approx(expected["gradient"], rel=max(rtol, at_least), abs=1e-9)


@pytest.mark.parametrize(("weighting", "exponent"), [("uniform", 1), ("sigma", 1), ("sigma2", 1), ("huber", 0)])
def test_the_gradient_grows_with_a_power_of_the_error(weighting: Weighting, exponent: int) -> None:
    _, one = log_prob_and_gradient(weighting, 0.25)
    _, ten = log_prob_and_gradient(weighting, 0.25, error=10)
    torch.testing.assert_close(ten, one * 10**exponent, rtol=1e-6, atol=0)


def test_ghuber_at_a_half_is_twice_huber() -> None:
    huber, ghuber = log_prob_and_gradient("huber", 0.25), log_prob_and_gradient("ghuber", 0.5)
    torch.testing.assert_close(ghuber[0], 2 * huber[0])
    torch.testing.assert_close(ghuber[1], 2 * huber[1])


def test_ghuber_below_a_half_favours_what_fits_well() -> None:
    _, well = log_prob_and_gradient("ghuber", 0.25, error=0.1)
    _, badly = log_prob_and_gradient("ghuber", 0.25)
    assert bool((well.square().sum((1, 2)) > badly.square().sum((1, 2))).all())


@pytest.mark.parametrize("weighting", get_args(Weighting))
def test_a_perfect_prediction_has_log_prob_zero_and_a_finite_gradient(weighting: Weighting) -> None:
    found, gradient = log_prob_and_gradient(weighting, 0.25, error=0.0, dtype=torch.float32)
    assert found.tolist() == pytest.approx([0.0] * len(found), abs=1e-9)
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("weighting", get_args(Weighting))
def test_on_policy_the_clipped_ratio_is_advantage_weighted_matching(weighting: Weighting) -> None:
    case = forward_case()
    v = case.velocity.clone().requires_grad_()
    log_prob = matching_log_prob(v, case.target, case.sigma, weighting=weighting)
    clipped_surrogate(log_prob, log_prob.detach(), case.advantage, 1.0).backward()
    weighted = case.velocity.clone().requires_grad_()
    log_prob = matching_log_prob(weighted, case.target, case.sigma, weighting=weighting)
    (-case.advantage * log_prob).mean().backward()
    torch.testing.assert_close(v.grad, weighted.grad)
    assert v.grad is not None
    assert not v.grad[case.advantage == 0].any()


def test_bfloat16_of_a_forward_is_promoted() -> None:
    case = forward_case()
    v, target, sigma = case.velocity.bfloat16(), case.target.float(), case.sigma.float()
    found = matching_log_prob(v, target, sigma, weighting="ghuber")
    assert found.dtype == torch.float32
    assert torch.equal(found, matching_log_prob(v.float(), target, sigma, weighting="ghuber"))


def test_pairs_are_independent() -> None:
    case = forward_case()
    order = torch.tensor([5, 3, 1, 0, 2, 4])
    found = matching_log_prob(case.velocity, case.target, case.sigma, weighting="ghuber")
    moved = matching_log_prob(case.velocity[order], case.target[order], case.sigma[order], weighting="ghuber")
    assert torch.equal(moved, found[order])
