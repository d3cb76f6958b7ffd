"""Dynamics: one sampler step as a Gaussian, with one log-probability and one KL for all of them.

Dimensions: n batch, ... the dims of one sample. sigma -> sigma' (next, smaller), d = sigma - sigma' > 0.
Velocity v = noise - data, so x0 = x - sigma v is the predicted data and x1 = x + (1 - sigma) v the predicted noise.
Sigmas are floats, 0-dim tensors, or tensors that broadcast against x. All is computed in float32 (float64 stays).

A dynamics is ``(velocity, x, sigma, sigma_next, *, sigma_max, own parameters) -> Gaussian``; the sampler gives
``sigma_max``, and the own parameters are the keys of ``sampling.dynamics`` in a recipe.
"""

import math
from collections.abc import Callable
from typing import Annotated, NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field, PositiveFloat
from torch import Tensor

Scalar = float | int | Float[Tensor, "..."]


class Gaussian(NamedTuple):
    """An isotropic normal distribution of the next state."""

    mean: Float[Tensor, "n ..."]
    std: Float[Tensor, "..."]
    """Broadcasts against ``mean``."""


Transition = Callable[..., Gaussian]
"""``(velocity, x, sigma, sigma_next, *, sigma_max) -> Gaussian``: a dynamics with its noise scale."""


def ode(
    velocity: Float[Tensor, "n ..."], x: Float[Tensor, "n ..."], sigma: Scalar, sigma_next: Scalar
) -> Float[Tensor, "n ..."]:
    """The deterministic step: Euler on dx/dsigma = v, x' = x - v d."""
    v, x, s, s_next = _wide(velocity, x, sigma, sigma_next)
    return x - v * (s - s_next)


def dance_sde(
    velocity: Float[Tensor, "n ..."],
    x: Float[Tensor, "n ..."],
    sigma: Scalar,
    sigma_next: Scalar,
    *,
    sigma_max: Scalar | None = None,
    eta: PositiveFloat = 0.4,
) -> Gaussian:
    """The SDE at a constant noise scale g = eta (DanceGRPO, arXiv 2505.07818); ``sigma_max`` is not used."""
    v, x, s, s_next = _wide(velocity, x, sigma, sigma_next)
    return _sde(v, x, s, s_next, g=torch.full_like(s, eta))


def flow_sde(
    velocity: Float[Tensor, "n ..."],
    x: Float[Tensor, "n ..."],
    sigma: Scalar,
    sigma_next: Scalar,
    *,
    sigma_max: Scalar,
    noise_level: PositiveFloat = 0.7,
) -> Gaussian:
    """The SDE at g = noise_level sqrt(sigma / (1 - sigma)) (Flow-GRPO, arXiv 2505.05470).

    Args:
        velocity: v.
        x: the state at sigma.
        sigma: current noise level.
        sigma_next: next noise level.
        sigma_max: the grid's second sigma; replaces sigma in the denominator only, if sigma = 1.
        noise_level: scale of the noise, 0.7 in the paper.
    """
    v, x, s, s_next = _wide(velocity, x, sigma, sigma_next)
    below_one = torch.where(s < 1, s, torch.as_tensor(sigma_max, dtype=s.dtype, device=s.device))
    return _sde(v, x, s, s_next, g=noise_level * (s / (1 - below_one)).sqrt())


def cps(
    velocity: Float[Tensor, "n ..."],
    x: Float[Tensor, "n ..."],
    sigma: Scalar,
    sigma_next: Scalar,
    *,
    sigma_max: Scalar | None = None,
    noise_level: Annotated[float, Field(gt=0.0, le=1.0)] = 0.8,
) -> Gaussian:
    """Coefficients-preserving sampling (Flow-CPS, arXiv 2509.05952); the last step (sigma' = 0) has no noise.

    ``sigma_max`` is not used.
    std = sigma' sin(noise_level pi/2), mean = (1 - sigma') x0 + sqrt(sigma'^2 - std^2) x1.
    """
    v, x, s, s_next = _wide(velocity, x, sigma, sigma_next)
    x0, x1 = x - s * v, x + (1 - s) * v
    angle = noise_level * math.pi / 2
    # sqrt(sigma'^2 - std^2) is sigma' |cos|, which avoids the root of a number that rounding made negative
    return Gaussian((1 - s_next) * x0 + s_next * abs(math.cos(angle)) * x1, s_next * math.sin(angle))


def kept_noise(
    transition: Transition, sigma: Float[Tensor, ""], sigma_next: Float[Tensor, ""], sigma_max: Float[Tensor, ""]
) -> tuple[float, float]:
    """How much of the predicted noise a step keeps, and the standard deviation of the noise that it adds.

    The first is the coefficient of x1 in the mean, sigma' - g^2 d / (2 sigma) for an SDE. Below 0 the new noise alone
    is more than the level sigma' holds, so the mean takes noise away, and the state is noisier than its level says.
    """
    at_noise = torch.ones(1, dtype=torch.float64)  # x0 = 0 and x1 = 1: x = sigma, v = 1
    gaussian = transition(at_noise, sigma * at_noise, sigma, sigma_next, sigma_max=sigma_max)
    return float(gaussian.mean), float(gaussian.std)


def log_prob(x_next: Float[Tensor, "n ..."], gaussian: Gaussian) -> Float[Tensor, " n"]:
    """Full normal log-density (constants included), *mean* over the dims of a sample."""
    z = (x_next - gaussian.mean) / gaussian.std
    return _sample_mean(-0.5 * z.square() - gaussian.std.log() - 0.5 * math.log(2 * math.pi))


def kl(p: Gaussian, q: Gaussian) -> Float[Tensor, " n"]:
    """KL(p || q) of two isotropic normals, *mean* over the dims of a sample, as ``log_prob``."""
    ratio = p.std / q.std
    z = (p.mean - q.mean) / q.std
    return _sample_mean(0.5 * (z.square() + ratio.square() - 1) - ratio.log())


def _sde(v: Tensor, x: Tensor, s: Tensor, s_next: Tensor, *, g: Tensor) -> Gaussian:
    d = s - s_next
    x1 = x + (1 - s) * v
    return Gaussian(x - v * d - g.square() / (2 * s) * x1 * d, g * d.sqrt())


def _wide(v: Tensor, x: Tensor, sigma: Scalar, sigma_next: Scalar) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All four as tensors of one dtype, at least float32, on the state's device."""
    dtype = torch.promote_types(torch.promote_types(v.dtype, x.dtype), torch.float32)
    s, s_next = (torch.as_tensor(value, dtype=dtype, device=x.device) for value in (sigma, sigma_next))
    return v.to(dtype), x.to(dtype), s, s_next


def _sample_mean(values: Tensor) -> Tensor:
    return values.reshape(len(values), -1).mean(1)
