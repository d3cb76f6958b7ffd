"""Each transition against a slow float64 reference, and the identities that tie the dynamics together.

Dimensions: n batch, S latent tokens, C latent channels.
"""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from customized_grpo.registry import config_model
from customized_grpo.sampling.dynamics import (
    Gaussian,
    cps,
    dance_sde,
    flow_sde,
    kl,
    log_prob,
    ode,
)
from customized_grpo.sampling.schedule import shifted_sigmas

SIGMAS = shifted_sigmas(10, 3.0)
TRAINABLE = range(9)
DYNAMICS = [partial(dance_sde, eta=0.4), partial(flow_sde, noise_level=0.7), partial(cps, noise_level=0.8)]


def tensors(n: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(n, 5, 4, generator=source), torch.randn(n, 5, 4, generator=source)


def reference_sde(v: float, x: float, sigma: float, sigma_next: float, g: float) -> tuple[float, float]:
    d = sigma - sigma_next
    noise = x + (1 - sigma) * v
    return x - v * d - (g * g / (2 * sigma)) * noise * d, g * math.sqrt(d)


def reference_dance(v: float, x: float, s: float, s_next: float) -> tuple[float, float]:
    return reference_sde(v, x, s, s_next, 0.4)


def reference_flow(v: float, x: float, s: float, s_next: float) -> tuple[float, float]:
    below_one = float(SIGMAS[1]) if s == 1 else s
    return reference_sde(v, x, s, s_next, 0.7 * math.sqrt(s / (1 - below_one)))


def reference_cps(v: float, x: float, s: float, s_next: float) -> tuple[float, float]:
    std = s_next * math.sin(0.8 * math.pi / 2)
    data, noise = x - s * v, x + (1 - s) * v
    return (1 - s_next) * data + math.sqrt(s_next**2 - std**2) * noise, std


@pytest.mark.parametrize(
    ("transition", "reference"),
    list(zip(DYNAMICS, [reference_dance, reference_flow, reference_cps], strict=True)),
    ids=["dance_sde", "flow_sde", "cps"],
)
def test_transition_is_its_formula(
    transition: Callable[..., Gaussian], reference: Callable[..., tuple[float, float]]
) -> None:
    v, x = tensors()
    for k in range(10):
        mean, std = transition(v, x, SIGMAS[k], SIGMAS[k + 1], sigma_max=SIGMAS[1])
        s, s_next = float(SIGMAS[k]), float(SIGMAS[k + 1])
        expected = [
            reference(one_v, one_x, s, s_next)
            for one_v, one_x in zip(v.flatten().tolist(), x.flatten().tolist(), strict=True)
        ]
        torch.testing.assert_close(
            mean.double().flatten(), torch.tensor([m for m, _ in expected]).double(), atol=2e-6, rtol=1e-6
        )
        assert float(std) == pytest.approx(expected[0][1], rel=1e-6, abs=1e-12), k
        assert mean.dtype == std.dtype == torch.float32
        assert std.ndim == 0


@pytest.mark.parametrize("transition", DYNAMICS, ids=lambda one: one.func.__name__)
def test_floats_and_tensors_and_batched_sigmas_give_the_same_bits(
    transition: Callable[..., Gaussian],
) -> None:
    # The rollout steps a batch at one 0-dim sigma, the replay gives each pair its own: the ratio must be exactly 1.
    v, x = tensors(n=9)
    steps = torch.arange(9)
    s, s_next = SIGMAS[steps][:, None, None], SIGMAS[steps + 1][:, None, None]
    batched = transition(v, x, s, s_next, sigma_max=SIGMAS[1])
    x_next = batched.mean + batched.std * tensors(n=9, seed=1)[0]
    scores = log_prob(x_next, batched)
    for k in range(9):
        one = slice(k, k + 1)
        single = transition(v[one], x[one], SIGMAS[k], SIGMAS[k + 1], sigma_max=SIGMAS[1])
        floats = transition(v[one], x[one], float(SIGMAS[k]), float(SIGMAS[k + 1]), sigma_max=float(SIGMAS[1]))
        for given in (single, floats):
            assert torch.equal(given.mean, batched.mean[one])
            assert torch.equal(given.std, batched.std[k, 0, 0])
            assert torch.equal(log_prob(x_next[one], given), scores[one])


def test_without_noise_every_dynamics_is_the_ode() -> None:
    v, x = tensors()
    for k in TRAINABLE:
        s, s_next = SIGMAS[k], SIGMAS[k + 1]
        expected = ode(v, x, s, s_next)
        quiet = [
            dance_sde(v, x, s, s_next, eta=1e-7),
            flow_sde(v, x, s, s_next, noise_level=1e-7, sigma_max=SIGMAS[1]),
            cps(v, x, s, s_next, noise_level=1e-7),
        ]
        for mean, std in quiet:
            torch.testing.assert_close(mean, expected, atol=1e-5, rtol=1e-5)
            assert std < 1e-5, k


def test_the_ode_follows_a_straight_path_exactly() -> None:
    data, noise = tensors()
    x = noise
    for s, s_next in zip(SIGMAS[:-1].tolist(), SIGMAS[1:].tolist(), strict=True):
        x = ode(noise - data, x, s, s_next)
        torch.testing.assert_close(x, s_next * noise + (1 - s_next) * data, atol=1e-5, rtol=1e-5)


def test_computed_in_float32_from_a_narrower_state() -> None:
    v, x = (one.bfloat16() for one in tensors())
    mean, _ = dance_sde(v, x, 0.9, 0.8, eta=0.4)
    assert mean.dtype == torch.float32
    assert torch.equal(mean, dance_sde(v.float(), x.float(), 0.9, 0.8, eta=0.4).mean)


def test_flow_sde_is_finite_at_pure_noise_and_uses_sigma_max_nowhere_else() -> None:
    v, x = tensors()
    first = flow_sde(v, x, 1.0, 0.9, noise_level=0.7, sigma_max=0.96)
    assert float(first.std) == pytest.approx(0.7 * math.sqrt(1 / 0.04) * math.sqrt(0.1), rel=1e-5)
    elsewhere = [flow_sde(v, x, 0.9, 0.8, noise_level=0.7, sigma_max=s).mean for s in (0.5, 0.96)]
    assert torch.equal(*elsewhere)


def integrate(transition: Callable[..., Gaussian], sigmas: Tensor, until: int) -> float:
    """Standard deviation after ``until`` steps for data = 0, where the exact velocity is x / sigma."""
    x = torch.randn(200_000, 1, generator=torch.Generator().manual_seed(0))
    source = torch.Generator().manual_seed(1)
    for k in range(until):
        mean, std = transition(x / sigmas[k], x, sigmas[k], sigmas[k + 1], sigma_max=sigmas[1])
        x = mean + std * torch.randn(x.shape, generator=source)
    return float(x.std())


@pytest.mark.parametrize(
    "transition",
    [partial(dance_sde, eta=0.4), partial(flow_sde, noise_level=0.5)],
    ids=lambda one: one.func.__name__,
)
def test_an_sde_keeps_the_marginals_of_the_flow(transition: Callable[..., Gaussian]) -> None:
    # at data = 0 the flow's state at sigma is N(0, sigma^2); 200 steps leave a discretisation error of about 1 %
    sigmas = torch.linspace(1, 0, 201)
    assert integrate(transition, sigmas, 120) == pytest.approx(float(sigmas[120]), rel=0.03)


def test_cps_keeps_the_marginals_at_any_step_size() -> None:
    # with x0 = 0 and x1 = x / sigma standard normal, std^2 + (sigma'^2 - std^2) is sigma'^2 exactly
    assert integrate(partial(cps, noise_level=0.8), SIGMAS, 6) == pytest.approx(float(SIGMAS[6]), rel=0.01)


@pytest.mark.parametrize("transition", DYNAMICS, ids=lambda one: one.func.__name__)
def test_samples_have_the_stated_mean_and_std(transition: Callable[..., Gaussian]) -> None:
    v, x = tensors(n=1)
    gaussian = transition(v, x, SIGMAS[3], SIGMAS[4], sigma_max=SIGMAS[1])
    noise = torch.randn(20_000, 5, 4, generator=torch.Generator().manual_seed(0))
    draws = gaussian.mean + gaussian.std * noise
    torch.testing.assert_close(draws.mean(0, keepdim=True), gaussian.mean, atol=0.03, rtol=0)
    torch.testing.assert_close(draws.std(0), gaussian.std.expand(5, 4), atol=0.0, rtol=0.04)
    # and the mean log-density of a normal is minus its entropy
    entropy = 0.5 * math.log(2 * math.pi * math.e) + math.log(float(gaussian.std))
    assert float(log_prob(draws, gaussian).mean()) == pytest.approx(-entropy, abs=0.01)


@pytest.mark.parametrize("shape", [(), (3, 1, 1)])
def test_log_prob_is_the_mean_normal_density(shape: tuple[int, ...]) -> None:
    mean, x_next = tensors()
    std = torch.rand(shape, generator=torch.Generator().manual_seed(5)) + 0.1
    expected = Normal(mean.double(), std.double()).log_prob(x_next.double()).mean((1, 2))
    given = log_prob(x_next, Gaussian(mean, std))
    torch.testing.assert_close(given.double(), expected, atol=1e-4, rtol=1e-6)
    assert given.shape == (3,)


def test_kl_is_torchs_and_never_negative_and_zero_of_itself() -> None:
    a, b = tensors()
    p, q = Gaussian(a, torch.tensor(0.3)), Gaussian(b, torch.tensor([0.2, 0.3, 0.7])[:, None, None])
    expected = kl_divergence(Normal(p.mean.double(), p.std.double()), Normal(q.mean.double(), q.std.double())).mean(
        (1, 2)
    )
    torch.testing.assert_close(kl(p, q).double(), expected, atol=1e-5, rtol=1e-5)
    assert (kl(p, q) > 0).all()
    assert (kl(q, p) > 0).all()
    assert torch.equal(kl(q, q), torch.zeros(3))


def test_the_gradient_reaches_the_velocity() -> None:
    v, x = tensors()
    v.requires_grad_()
    gaussian = dance_sde(v, x, 0.9, 0.8, eta=0.4)
    log_prob(x, gaussian).sum().backward()
    # d mean / d v = -d - g^2 / (2 sigma) (1 - sigma) d, through z / std
    slope = -0.1 - 0.16 / 1.8 * 0.1 * 0.1
    expected = (x - gaussian.mean).detach() / gaussian.std.detach() ** 2 * slope / 20
    torch.testing.assert_close(v.grad, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("function", "given"),
    [(dance_sde, {"eta": 0.0}), (flow_sde, {"noise_level": -1.0}), (cps, {"noise_level": 1.5})],
)
def test_sections_refuse_what_has_no_probability(function: Callable[..., Gaussian], given: dict[str, float]) -> None:
    section = config_model("dynamics", function)
    assert section.model_fields.keys() == {"type", *given}  # sigma_max is the sampler's
    for wrong in (given, {"etta": 1.0}):
        with pytest.raises(ValidationError):
            section.model_validate({"type": "x", **wrong})
