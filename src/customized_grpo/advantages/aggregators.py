"""Aggregators: from the axes' normalised advantages and the trained steps' weights to one advantage.

Dimensions: G group size, Q axes (prompt, identity, then further ones), K trained steps. Each function is ``(a[G,Q],
w[K,Q], *, own parameters) -> [G,K]``; its keyword-only parameters are the keys of ``advantage.aggregator`` in a recipe.
One that takes ``raw`` as its third argument, ``(a, w, raw[G,Q], *, ...)``, is also given each axis's reward before it
is normalised, NaN where it is unscorable.
"""

from itertools import combinations
from typing import Annotated, Final

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn.functional import softplus

from customized_grpo.advantages.normalize import normalize

FORMULAS: Final = {"minimum": 2, "maximum": 2}
"""Version of a formula that changed under its name; 1 of all others. Checkpoints keep it."""


def weighted_sum(a: Float[Tensor, "g q"], w: Float[Tensor, "k q"]) -> Float[Tensor, "g k"]:
    """A[g,k] = sum_q w[k,q] a[g,q]: naive GRPO with several rewards."""
    return _weighted(a, w).sum(-1)


def sars(
    a: Float[Tensor, "g q"], w: Float[Tensor, "k q"], *, gamma: Annotated[float, Field(ge=0.0)] = 0.4
) -> Float[Tensor, "g k"]:
    """Synergy-aware reward shaping (Customized-GRPO, arXiv 2510.18263): the weighted sum + gamma s[g].

    s = tanh(a_p a_i) where either is above 0, and -tanh(a_p a_i) where neither is: a bonus if both are positive, a
    penalty in conflict and if both are negative. With more than two axes s = 2 / (Q (Q - 1)) sum_{p < q} s_pq, the mean
    over the pairs, each as above: |s| < 1 for any Q. The paper has two axes; this extension is ours.
    """
    p, i = _pairs(a)
    synergy = torch.tanh(p * i)
    synergy = torch.where((p > 0) | (i > 0), synergy, -synergy).mean(-1)
    return weighted_sum(a, w) + gamma * synergy[:, None]


def minimum(a: Float[Tensor, "g q"], w: Float[Tensor, "k q"]) -> Float[Tensor, "g k"]:
    """A[g,k] = min_q a[g,q]: the worse axis alone, whatever the weights (as the paper's code has it)."""
    return a.amin(-1, keepdim=True).expand(-1, len(w))


def maximum(a: Float[Tensor, "g q"], w: Float[Tensor, "k q"]) -> Float[Tensor, "g k"]:
    """A[g,k] = max_q a[g,q]: the better axis alone, whatever the weights (as the paper's code has it)."""
    return a.amax(-1, keepdim=True).expand(-1, len(w))


def weighted_minimum(a: Float[Tensor, "g q"], w: Float[Tensor, "k q"]) -> Float[Tensor, "g k"]:
    """A[g,k] = min_q Q w[k,q] a[g,q]: with equal weights 1 / Q, ``minimum``; ours, to combine it with time weights."""
    return _weighted(a, w).amin(-1) * a.shape[1]


def weighted_maximum(a: Float[Tensor, "g q"], w: Float[Tensor, "k q"]) -> Float[Tensor, "g k"]:
    """A[g,k] = max_q Q w[k,q] a[g,q]: with equal weights 1 / Q, ``maximum``; ours, to combine it with time weights."""
    return _weighted(a, w).amax(-1) * a.shape[1]


def harmonic(
    a: Float[Tensor, "g q"], w: Float[Tensor, "k q"], *, gamma: Annotated[float, Field(ge=0.0)] = 0.4
) -> Float[Tensor, "g k"]:
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


def _weighted(a: Tensor, w: Tensor) -> Tensor:
    """w[k,q] a[g,q] as (G, K, Q); no matmul, whose blocking makes a sample's result depend on its neighbours."""
    return a[:, None] * w


def _pairs(a: Tensor) -> tuple[Tensor, Tensor]:
    """Both sides of every pair of axes, (G, pairs) each."""
    assert a.shape[1] >= 2, "synergy is between axes"
    left, right = zip(*combinations(range(a.shape[1]), 2), strict=True)
    return a[:, list(left)], a[:, list(right)]
