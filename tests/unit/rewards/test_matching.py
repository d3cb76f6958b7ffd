"""The Hungarian method, and the score of an assignment, against all ways to pair."""

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from customized_grpo.rewards.matching import FORBIDDEN, assignment, matched_similarity

tables = arrays(np.float64, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=5), elements=st.floats(-100, 100))
# whole numbers have many ties, which reals have not
ties = arrays(np.float64, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=5), elements=st.integers(-2, 2))


def largest(worth: np.ndarray) -> float:
    """Of all complete assignments."""
    worth = worth if worth.shape[0] <= worth.shape[1] else worth.T
    rows, columns = worth.shape
    return float(max(sum(worth[range(rows), order]) for order in map(list, permutations(range(columns), rows))))


def best_of_all(similarity: torch.Tensor, missing: float, surplus: float) -> float:
    """Of all ways to pair any number of them: each wanted subject has a column of its own for "missing"."""
    wanted, found = similarity.shape
    best = -np.inf
    for order in permutations(range(found + wanted), wanted):
        pairs = [(row, column) for row, column in enumerate(order) if column < found]
        total = sum(float(similarity[pair]) for pair in pairs)
        best = max(best, total - missing * (wanted - len(pairs)) - surplus * (found - len(pairs)))
    return best / wanted


@settings(deadline=None)
@given(tables | ties)
def test_no_assignment_is_better(worth: np.ndarray) -> None:
    pairs = assignment(worth)
    assert len(pairs) == min(worth.shape)
    assert len({row for row, _ in pairs}) == len({column for _, column in pairs}) == len(pairs)
    assert sum(worth[pair] for pair in pairs) == pytest.approx(largest(worth), abs=1e-9)


def test_greed_loses() -> None:
    """The best pair first would leave 0 for the other."""
    assert assignment(np.array([[90.0, 80.0], [85.0, 0.0]])) == [(0, 1), (1, 0)]


def test_many_are_assigned_at_once() -> None:
    worth = np.random.default_rng(0).permutation(np.eye(40))
    pairs = assignment(worth)
    assert sum(worth[pair] for pair in pairs) == 40


@settings(deadline=None, max_examples=60)
@given(
    arrays(np.float64, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=3), elements=st.floats(-100, 100)),
    st.floats(0, 60),
    st.floats(0, 60),
    st.data(),
)
def test_the_score_is_the_best_of_all_ways_to_pair(
    values: np.ndarray, missing: float, surplus: float, data: st.DataObject
) -> None:
    similarity = torch.from_numpy(values)
    similarity[torch.from_numpy(data.draw(arrays(bool, values.shape)))] = FORBIDDEN
    score = matched_similarity(similarity, missing=missing, surplus=surplus)
    assert score == pytest.approx(best_of_all(similarity, missing, surplus), abs=1e-6)
    turned = similarity.flip(0).flip(1)
    assert matched_similarity(turned, missing=missing, surplus=surplus) == pytest.approx(score, abs=1e-9)


def test_nothing_found_and_only_what_is_forbidden() -> None:
    assert matched_similarity(torch.empty(2, 0), missing=7.0, surplus=3.0) == -7.0
    assert matched_similarity(torch.full((2, 1), FORBIDDEN), missing=7.0, surplus=3.0) == -8.5
    assert matched_similarity(torch.tensor([[-40.0]]), missing=7.0, surplus=3.0) == -10.0, "worse than no pair"
