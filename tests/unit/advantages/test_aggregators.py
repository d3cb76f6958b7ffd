"""SARS against its quadrant table and as properties, and every aggregator on every pattern of signs.

Dimensions: G group size, Q axes (prompt, identity), K trained steps.
"""

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from customized_grpo import registry
from customized_grpo.advantages.aggregators import (
    harmonic,
    maximum,
    minimum,
    product,
    sars,
    weighted_maximum,
    weighted_minimum,
    weighted_sum,
)
from customized_grpo.advantages.normalize import normalize
from customized_grpo.advantages.time_weights import tdw
from customized_grpo.testing import check_aggregator

ALL = [weighted_sum, sars, harmonic, minimum, maximum, weighted_minimum, weighted_maximum, product]
EVEN = torch.tensor([[0.5, 0.5]])
FINITE = st.floats(-5, 5, width=32)
GROUPS = st.lists(st.tuples(FINITE, FINITE), min_size=2, max_size=16).map(torch.tensor)
WEIGHTS = st.lists(st.tuples(st.floats(0, 1, width=32), st.floats(0, 1, width=32)), min_size=1, max_size=6).map(
    torch.tensor
)


def axes(group_size: int = 12, num_axes: int = 2, seed: int = 0) -> Tensor:
    return normalize(torch.randn(group_size, num_axes, generator=torch.Generator().manual_seed(seed)))


def slow_sars(a: Tensor, w: Tensor, gamma: float) -> Tensor:
    rows = []
    for p, i in a.double().tolist():
        bonus = math.tanh(p * i) if max(p, i) > 0 else -math.tanh(p * i)
        rows.append([w_p * p + w_i * i + gamma * bonus for w_p, w_i in w.double().tolist()])
    return torch.tensor(rows)


def test_sars_is_its_formula_at_every_step() -> None:
    a, w = axes(), tdw(25)
    torch.testing.assert_close(sars(a, w, gamma=0.4), slow_sars(a, w, 0.4), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(partial(sars, gamma=0.7)(a, w), slow_sars(a, w, 0.7), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("p", "i", "sign"),
    [
        (1.0, 0.5, +1),  # both up: bonus
        (1.0, -0.5, -1),  # conflict: penalty
        (-1.0, 0.5, -1),
        (-1.0, -0.5, -1),  # both down: penalty
        (1.0, 0.0, 0),
        (0.0, -1.0, 0),
        (0.0, 0.0, 0),
    ],
)
def test_quadrants_of_sars(p: float, i: float, sign: int) -> None:
    a = torch.tensor([[p, i]])
    bonus = sars(a, EVEN, gamma=0.4) - weighted_sum(a, EVEN)
    torch.testing.assert_close(bonus, torch.full((1, 1), sign * 0.4 * math.tanh(abs(p * i))), atol=1e-6, rtol=0)


def test_a_sample_of_sars_worked_out_by_hand() -> None:
    # 0.7 * 1 + 0.3 * 2 + 0.4 tanh 2; 0.7 * 1 - 0.3 * 2 - 0.4 tanh 2; -1.3 - 0.4 tanh 2
    a, w = torch.tensor([[1.0, 2.0], [1.0, -2.0], [-1.0, -2.0]]), torch.tensor([[0.7, 0.3]])
    expected = torch.tensor([[1.6856110], [-0.2856110], [-1.6856110]])
    torch.testing.assert_close(sars(a, w, gamma=0.4), expected, atol=1e-6, rtol=0)


@settings(max_examples=100, deadline=None)
@given(a=GROUPS, w=WEIGHTS, gamma=st.floats(0, 2))
def test_sars_adds_at_most_gamma_with_the_sign_of_the_quadrant(a: Tensor, w: Tensor, gamma: float) -> None:
    bonus = (sars(a, w, gamma=gamma) - weighted_sum(a, w)).double()
    assert (bonus.abs() <= gamma + 1e-5).all()
    synergy = (a > 0).all(1)
    assert (bonus[synergy] >= -1e-5).all()
    assert (bonus[~synergy] <= 1e-5).all()
    # the bonus belongs to the sample, not to the step
    torch.testing.assert_close(bonus, bonus[:, :1].expand_as(bonus), atol=2e-6, rtol=0)


@settings(max_examples=50, deadline=None)
@given(a=GROUPS, w=WEIGHTS)
def test_gamma_zero_is_the_weighted_sum(a: Tensor, w: Tensor) -> None:
    assert torch.equal(sars(a, w, gamma=0.0), weighted_sum(a, w))
    torch.testing.assert_close(weighted_sum(a, w), a @ w.T, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("aggregator", ALL, ids=lambda one: one.__name__)
@settings(max_examples=25, deadline=None)
@given(data=st.data(), a=GROUPS, w=WEIGHTS)
def test_permuting_samples_permutes_advantages(
    aggregator: Callable[[Tensor, Tensor], Tensor], data: st.DataObject, a: Tensor, w: Tensor
) -> None:
    order = data.draw(st.permutations(range(len(a))))
    given_ = aggregator(a[order], w)
    if aggregator is product:  # its normalisation sums in another order
        torch.testing.assert_close(given_, aggregator(a, w)[order], atol=1e-3, rtol=1e-3)
    else:
        assert torch.equal(given_, aggregator(a, w)[order])


@pytest.mark.parametrize("aggregator", ALL, ids=lambda one: one.__name__)
@settings(max_examples=25, deadline=None)
@given(a=GROUPS, w=WEIGHTS)
def test_a_step_depends_on_its_own_weights_alone(
    aggregator: Callable[[Tensor, Tensor], Tensor], a: Tensor, w: Tensor
) -> None:
    whole = aggregator(a, w)
    assert whole.shape == (len(a), len(w))
    assert whole.dtype == torch.float32
    for k in range(len(w)):
        torch.testing.assert_close(aggregator(a, w[k : k + 1])[:, 0], whole[:, k], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("aggregator", ALL, ids=lambda one: one.__name__)
@pytest.mark.parametrize("num_axes", [2, 3])
def test_finite_on_every_pattern_of_signs(aggregator: Callable[[Tensor, Tensor], Tensor], num_axes: int) -> None:
    values = (0.0, 1.0, -1.0, 0.25, -0.25, 5.0, -5.0, 1e-6, -1e-6, -5e-7, -2e-6, 30.0, -200.0)
    a = torch.tensor(list(itertools.product(values, repeat=num_axes)))
    w = torch.tensor(list(itertools.product((0.0, 0.3, 1.0), repeat=num_axes)))
    assert aggregator(a, w).isfinite().all()


@pytest.mark.parametrize("aggregator", ALL, ids=lambda one: one.__name__)
def test_constant_rewards_give_exact_zeros(aggregator: Callable[[Tensor, Tensor], Tensor]) -> None:
    a = normalize(torch.full((12, 2), 61.9))
    assert torch.equal(aggregator(a, tdw(25)), torch.zeros(12, 25))


def test_with_more_axes_the_synergy_is_the_mean_over_the_pairs() -> None:
    a = axes(num_axes=3)
    w = torch.full((1, 3), 1 / 3)
    pairs = [sars(a[:, pair], torch.zeros(1, 2), gamma=0.4) for pair in ([0, 1], [0, 2], [1, 2])]
    expected = weighted_sum(a, w) + torch.stack(pairs).mean(0)
    torch.testing.assert_close(sars(a, w, gamma=0.4), expected, atol=1e-6, rtol=0)


def test_minimum_and_maximum_ignore_the_weights_and_their_weighted_forms_follow_them() -> None:
    a = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    uneven = torch.tensor([[0.75, 0.25]])
    for w in (EVEN, uneven, torch.cat([uneven, EVEN])):
        assert minimum(a, w).tolist() == [[-2.0] * len(w), [0.5] * len(w)]
        assert maximum(a, w).tolist() == [[1.0] * len(w), [3.0] * len(w)]
    assert torch.equal(weighted_minimum(a, EVEN), minimum(a, EVEN))
    assert torch.equal(weighted_maximum(a, EVEN), maximum(a, EVEN))
    assert weighted_minimum(a, uneven).flatten().tolist() == [-1.0, 0.75]
    assert weighted_maximum(a, uneven).flatten().tolist() == [1.5, 1.5]


def test_harmonic_is_its_formula_away_from_the_pole() -> None:
    a, w = torch.tensor([[1.0, 3.0], [2.0, -0.5], [-1.0, -1.0]]), torch.tensor([[0.7, 0.3]])
    expected = [0.7 * p + 0.3 * i + 0.4 * p * i / (p + i + 1e-6) for p, i in ((1.0, 3.0), (2.0, -0.5), (-1.0, -1.0))]
    torch.testing.assert_close(harmonic(a, w, gamma=0.4).flatten(), torch.tensor(expected), atol=1e-5, rtol=1e-5)


def test_harmonic_at_its_pole_is_finite() -> None:
    a = torch.tensor([[1.0, -1.0], [1.0, -1.000001], [5e-7, -1.5e-6], [0.0, -1e-6]])
    assert harmonic(a, EVEN, gamma=0.4).isfinite().all()


def test_product_is_its_formula_normalised_over_the_group() -> None:
    a, w = axes(), tdw(25)

    def softplus(x: float) -> float:
        return math.log1p(math.exp(x))

    raw = torch.tensor(
        [
            [
                softplus(p) ** (2 * w_p) * softplus(i) ** (2 * w_i) - softplus(0) ** (2 * w_p + 2 * w_i)
                for w_p, w_i in w.double().tolist()
            ]
            for p, i in a.double().tolist()
        ]
    )
    expected = (raw - raw.mean(0)) / (raw.std(0) + 1e-8)
    given_ = product(a, w)
    torch.testing.assert_close(given_, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(given_.mean(0), torch.zeros(25), atol=1e-5, rtol=0)
    torch.testing.assert_close(given_.std(0), torch.ones(25), atol=1e-4, rtol=0)


def test_sections_are_strict_and_carry_their_own_parameters() -> None:
    section = registry.config_model("aggregators", sars)
    assert dict(section(type="sars")) == {"type": "sars", "gamma": 0.4}
    with pytest.raises(ValidationError, match="Extra inputs"):
        registry.config_model("aggregators", weighted_sum).model_validate({"type": "weighted_sum", "gamma": 0.4})
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        section.model_validate({"type": "sars", "gamma": -1})


@pytest.mark.parametrize("name", sorted(registry.available("aggregators")))
def test_the_conformance_kit_passes(name: str) -> None:
    config: Any = registry.config_model("aggregators", registry.resolve("aggregators", name))
    check_aggregator(registry.build_function("aggregators", config(type=name)))
