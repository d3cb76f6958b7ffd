"""The order in which examples are visited: a pure function of (step, seed), for any number of processes.

The examples form an endless sequence, epoch after epoch, each epoch shuffled anew. Step s takes
``groups_per_step`` of them from position s * groups_per_step on, and every rank a contiguous slice of those.
"""

from functools import lru_cache

import torch

from customized_grpo.seeding import generator


def indices(step: int, *, rank: int, world: int, groups_per_step: int, size: int, seed: int) -> list[int]:
    """Indices of the examples that ``rank`` of ``world`` processes visits in ``step``, of a data set of ``size``.

    The slices of all ranks, in rank order, form the list of a single process.

    Raises:
        ValueError: the data set is empty, or ``groups_per_step`` can't be shared equally by the processes.
    """
    assert step >= 0
    assert 0 <= rank < world
    assert groups_per_step > 0
    if size < 1:
        raise ValueError("the data set is empty; training needs at least one example")
    share = groups_a_rank(groups_per_step, world)
    first = step * groups_per_step + rank * share
    return [_permutation(size, seed, at // size)[at % size] for at in range(first, first + share)]


def another(step: int, group: int, *, size: int, seed: int, instead_of: int) -> int:
    """Index of an example that takes the place of ``instead_of``; another one, if there is any.

    Args:
        step: of the run.
        group: a number that no other group of the step has, over all processes.
        size: of the data set.
        seed: of the run.
        instead_of: index of the example whose place it takes.
    """
    if size < 2:
        return instead_of
    further = int(torch.randint(1, size, (), generator=generator(seed, "another", step, group)))
    return (instead_of + further) % size


def groups_a_rank(groups_per_step: int, world: int) -> int:
    """Number of groups per process and step: the same for all, so that none waits.

    Raises:
        ValueError: the groups can't be shared equally.
    """
    if groups_per_step % world:
        below = groups_per_step // world * world
        allowed = f"{below} or {below + world}" if below else f"{world}"
        raise ValueError(
            f"train.groups_per_step is {groups_per_step}, which {world} processes can't share equally; use {allowed} "
            "in a new run, or another number of processes"
        )
    return groups_per_step // world


@lru_cache(maxsize=4)
def _permutation(size: int, seed: int, epoch: int) -> tuple[int, ...]:
    order: list[int] = torch.randperm(size, generator=generator(seed, "order", epoch, 0)).tolist()
    return tuple(order)
