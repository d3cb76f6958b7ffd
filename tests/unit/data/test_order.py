"""The order of examples: a partition that doesn't depend on the number of processes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from customized_grpo.data import order
from customized_grpo.data.order import indices

SIZES = st.integers(1, 40)
SEEDS = st.integers(0, 2**31 - 1)


@given(step=st.integers(0, 500), world=st.integers(1, 8), share=st.integers(1, 5), size=SIZES, seed=SEEDS)
def test_ranks_together_are_one_process_alone(step: int, world: int, share: int, size: int, seed: int) -> None:
    groups = world * share
    slices = [
        indices(step, rank=rank, world=world, groups_per_step=groups, size=size, seed=seed) for rank in range(world)
    ]
    assert {len(one) for one in slices} == {share}
    alone = indices(step, rank=0, world=1, groups_per_step=groups, size=size, seed=seed)
    assert [index for one in slices for index in one] == alone


@given(groups=st.integers(1, 12), size=SIZES, seed=SEEDS, epochs=st.integers(1, 3))
def test_every_epoch_visits_every_example_once(groups: int, size: int, seed: int, epochs: int) -> None:
    steps = -(-epochs * size // groups)
    visited = [
        index
        for step in range(steps)
        for index in indices(step, rank=0, world=1, groups_per_step=groups, size=size, seed=seed)
    ]
    for epoch in range(epochs):
        assert sorted(visited[epoch * size : (epoch + 1) * size]) == list(range(size))


@given(size=SIZES, seed=SEEDS, a=st.integers(1, 6), b=st.integers(1, 6))
def test_the_sequence_does_not_depend_on_the_groups_of_a_step(size: int, seed: int, a: int, b: int) -> None:
    def first(groups: int) -> list[int]:
        return [
            index
            for step in range(a * b // groups)
            for index in indices(step, rank=0, world=1, groups_per_step=groups, size=size, seed=seed)
        ]

    assert first(a) == first(b)


def test_epochs_and_seeds_differ_and_nothing_is_remembered() -> None:
    def epoch(number: int, seed: int) -> list[int]:
        return indices(number, rank=0, world=1, groups_per_step=100, size=100, seed=seed)

    orders = [epoch(number, seed) for number in (0, 1) for seed in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    assert all(order != list(range(100)) for order in orders)
    for _ in range(8):
        assert [epoch(number, seed) for number in (0, 1) for seed in (0, 1)] == orders


@pytest.mark.parametrize(("groups", "world", "allowed"), [(6, 4, "use 4 or 8"), (2, 4, "use 4"), (9, 8, "use 8 or 16")])
def test_unequal_shares_are_refused_with_what_is_allowed(groups: int, world: int, allowed: str) -> None:
    with pytest.raises(ValueError, match=f"groups_per_step is {groups}, which {world} .*{allowed} in a new run"):
        indices(0, rank=0, world=world, groups_per_step=groups, size=10, seed=0)


def test_an_empty_data_set_is_refused() -> None:
    with pytest.raises(ValueError, match="data set is empty"):
        indices(0, rank=0, world=1, groups_per_step=4, size=0, seed=0)


def test_another_example_is_another_and_depends_on_its_place_alone() -> None:
    drawn = [order.another(step, group, size=5, seed=1, instead_of=2) for step in range(20) for group in range(20)]
    assert set(drawn) == {0, 1, 3, 4}
    assert drawn == [order.another(s, g, size=5, seed=1, instead_of=2) for s in range(20) for g in range(20)]
    assert drawn[:9] != [order.another(0, group, size=5, seed=2, instead_of=2) for group in range(9)]
    assert order.another(3, 4, size=1, seed=1, instead_of=0) == 0
