"""Aggregators: the axes' normalised advantages and the trained steps' weights become one advantage.

Dimensions: G group size, Q axes (prompt, identity), K trained steps. Each function is ``(a[G,Q], w[K,Q], *, own
parameters) -> [G,K]``, and each has a section of a recipe (``advantage.aggregator``) that calls it.
"""

from itertools import combinations
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, NonNegativeFloat
from torch import Tensor
from torch.nn.functional import softplus

from customized_grpo.advantages.normalize import normalize


def weighted_sum(a: Float[Tensor, "g q"], w: Float[Tensor, "k q"]) -> Float[Tensor, "g k"]:
    """A[g,k] = sum_q w[k,q] a[g,q]: naive GRPO with several rewards."""
    return _weighted(a, w).sum(-1)


def sars(a: Float[Tensor, "g q"], w: Float[Tensor, "k q"], *, gamma: float = 0.4) -> Float[Tensor, "g k"]:
    """Synergy-aware reward shaping (Customized-GRPO, arXiv 2510.18263): the weighted sum + gamma s[g].

    s = tanh(a_p a_i) where either is above 0, and -tanh(a_p a_i) where neither is: a bonus where both are up, a
    penalty in conflict and where both are down. With more than two axes s is the mean over the pairs.
    """
    p, i = _pairs(a)
    synergy = torch.tanh(p * i)
    synergy = torch.where((p > 0) | (i > 0), synergy, -synergy).mean(-1)
    return weighted_sum(a, w) + gamma * synergy[:, None]


def minimum(a: Float[Tensor, "g q"], w: Float[Tensor, "k q"]) -> Float[Tensor, "g k"]:
    """The smallest of Q w[k,q] a[g,q]: with equal weights 1 / Q, the worse axis as it is."""
    return _weighted(a, w).amin(-1) * a.shape[1]


def maximum(a: Float[Tensor, "g q"], w: Float[Tensor, "k q"]) -> Float[Tensor, "g k"]:
    """The largest of Q w[k,q] a[g,q]: with equal weights 1 / Q, the better axis as it is."""
    return _weighted(a, w).amax(-1) * a.shape[1]


def harmonic(a: Float[Tensor, "g q"], w: Float[Tensor, "k q"], *, gamma: float = 0.4) -> Float[Tensor, "g k"]:
    """The weighted sum + gamma a_p a_i / (a_p + a_i + 1e-6); with more than two axes the mean over the pairs.

    Near a_p = -a_i the quotient has a pole: the denominator is kept at least 1e-6 from 0, so that it stays finite
    there, and the clamp of the advantages bounds what is left.
    """
    p, i = _pairs(a)
    total = p + i + 1e-6
    quotient = p * i / torch.where(total.abs() < 1e-6, 1e-6, total)
    return weighted_sum(a, w) + gamma * quotient.mean(-1, keepdim=True)


def product(a: Float[Tensor, "g q"], w: Float[Tensor, "k q"]) -> Float[Tensor, "g k"]:
    """prod_q softplus(a[g,q])^(Q w[k,q]) minus its value at a = 0, normalised over the group at each step."""
    power = a.shape[1] * w
    value = softplus(a)[:, None].pow(power).prod(-1) - softplus(torch.zeros_like(power)).pow(power).prod(-1)
    return normalize(value)


class _Aggregator(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class WeightedSum(_Aggregator):
    """Naive GRPO: the weighted sum of the axes."""

    type: Literal["weighted_sum"] = "weighted_sum"

    def __call__(self, a: Float[Tensor, "g q"], w: Float[Tensor, "k q"]) -> Float[Tensor, "g k"]:
        """``weighted_sum``."""
        return weighted_sum(a, w)


class SARS(_Aggregator):
    """Synergy-aware reward shaping (the paper): the weighted sum, a bonus for synergy, a penalty for conflict."""

    type: Literal["sars"] = "sars"
    gamma: NonNegativeFloat = 0.4

    def __call__(self, a: Float[Tensor, "g q"], w: Float[Tensor, "k q"]) -> Float[Tensor, "g k"]:
        """``sars``."""
        return sars(a, w, gamma=self.gamma)


class Harmonic(_Aggregator):
    """The weighted sum plus the harmonic term of the axes' advantages."""

    type: Literal["harmonic"] = "harmonic"
    gamma: NonNegativeFloat = 0.4

    def __call__(self, a: Float[Tensor, "g q"], w: Float[Tensor, "k q"]) -> Float[Tensor, "g k"]:
        """``harmonic``."""
        return harmonic(a, w, gamma=self.gamma)


class Minimum(_Aggregator):
    """The worse axis alone."""

    type: Literal["minimum"] = "minimum"

    def __call__(self, a: Float[Tensor, "g q"], w: Float[Tensor, "k q"]) -> Float[Tensor, "g k"]:
        """``minimum``."""
        return minimum(a, w)


class Maximum(_Aggregator):
    """The better axis alone."""

    type: Literal["maximum"] = "maximum"

    def __call__(self, a: Float[Tensor, "g q"], w: Float[Tensor, "k q"]) -> Float[Tensor, "g k"]:
        """``maximum``."""
        return maximum(a, w)


class Product(_Aggregator):
    """The product of the axes' softplus advantages."""

    type: Literal["product"] = "product"

    def __call__(self, a: Float[Tensor, "g q"], w: Float[Tensor, "k q"]) -> Float[Tensor, "g k"]:
        """``product``."""
        return product(a, w)


def _weighted(a: Tensor, w: Tensor) -> Tensor:
    """w[k,q] a[g,q] as (G, K, Q); no matmul, whose blocking makes a sample's result depend on its neighbours."""
    return a[:, None] * w


def _pairs(a: Tensor) -> tuple[Tensor, Tensor]:
    """Both sides of every pair of axes, (G, pairs) each."""
    assert a.shape[1] >= 2, "synergy is between axes"
    left, right = zip(*combinations(range(a.shape[1]), 2), strict=True)
    return a[:, list(left)], a[:, list(right)]
