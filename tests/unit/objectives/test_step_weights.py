"""The weight that a step has by itself, against autograd and in closed form, and the loss weights that even it out.

Dimensions: T sampler steps.
"""

import math
from functools import partial

import pytest
import torch

from customized_grpo.objectives.step_weights import step_sensitivity, step_weights
from customized_grpo.sampling.dynamics import Transition, cps, dance_sde, flow_sde, log_prob
from customized_grpo.sampling.schedule import shifted_sigmas

DYNAMICS = [partial(dance_sde, eta=0.4), partial(flow_sde, noise_level=0.7), partial(cps, noise_level=0.8)]


@pytest.mark.parametrize("transition", DYNAMICS, ids=lambda one: one.func.__name__)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_sensitivity_is_the_spread_of_the_gradient(transition: Transition, shift: float) -> None:
    # Measured: d log_prob / d v of sampled transitions is noise times m_k over the number of dims.
    sigmas, dims = shifted_sigmas(10, shift), 4096
    expected = step_sensitivity(transition, sigmas)
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
    given_ = step_sensitivity(partial(dance_sde, eta=eta), sigmas)
    for k in range(24):
        s, d = float(sigmas[k]), float(sigmas[k] - sigmas[k + 1])
        assert float(given_[k]) == pytest.approx((d + eta**2 / (2 * s) * (1 - s) * d) / (eta * math.sqrt(d)), rel=1e-5)


@pytest.mark.parametrize("transition", DYNAMICS, ids=lambda one: one.func.__name__)
def test_equal_weights_make_every_step_pull_alike(transition: Transition) -> None:
    sigmas = shifted_sigmas(25, 3.0)
    weights = step_weights("equal", transition, sigmas)
    pull = (weights * step_sensitivity(transition, sigmas))[:-1]
    torch.testing.assert_close(pull, pull.mean().expand(24), atol=0, rtol=1e-5)
    assert float(weights[:-1].mean()) == pytest.approx(1, rel=1e-6)
    assert weights[-1] == 0
    assert weights.isfinite().all()


def test_the_paper_weighs_no_step() -> None:
    assert torch.equal(step_weights("none", dance_sde, shifted_sigmas(10, 3.0)), torch.ones(10))


def test_late_steps_of_a_shifted_grid_pull_harder() -> None:
    # the reason for "equal": measured 2 to 5 times
    for transition, least in ((partial(dance_sde, eta=0.4), 2.0), (partial(flow_sde, noise_level=0.7), 4.0)):
        pull = step_sensitivity(transition, shifted_sigmas(25, 3.0))
        assert float(pull[23] / pull[1]) > least
