"""Assignment of the subjects found in an image to those of the references: the Hungarian method, and its score.

Dimensions: R subjects of the references, B subjects found in the image.
"""

import numpy as np
from jaxtyping import Float
from torch import Tensor

FORBIDDEN = float("-inf")
"""Similarity of a pair that can't be one, such as a dog and a cat."""


def matched_similarity(similarity: Float[Tensor, "r b"], *, missing: float, surplus: float) -> float:
    """The highest mean similarity over all ways to pair wanted with found subjects, each with one other at most.

    (sum of the pairs' similarities - missing x unpaired wanted ones - surplus x unpaired found ones) / R. Source:
    the assignment of MultiCrafter (arXiv 2509.21953) and UMO (arXiv 2509.06818); the penalties are ours.

    Args:
        similarity: of each wanted to each found subject; ``FORBIDDEN`` where they can't be one.
        missing: points off for a wanted subject without a pair, at least 0.
        surplus: points off for a found subject without a pair, at least 0.
    """
    wanted, found = similarity.shape
    # A pair that isn't worth it is as good as one missing and one in surplus; so every assignment is complete.
    worth = similarity.double().clamp(min=-missing - surplus).numpy()
    total = sum(float(worth[pair]) for pair in assignment(worth))
    pairs = min(wanted, found)
    return (total - missing * (wanted - pairs) - surplus * (found - pairs)) / wanted


def assignment(worth: Float[np.ndarray, "r b"]) -> list[tuple[int, int]]:
    """min(R, B) pairs (row, column) of the largest sum, each row and column in one pair at most; sorted by row.

    The Hungarian method (Kuhn 1955) by shortest augmenting paths (Jonker and Volgenant 1987), O(R^2 B). ``scipy`` has
    it as ``linear_sum_assignment``, but is no dependency of this package.

    Args:
        worth: finite.
    """
    rows, columns = worth.shape
    if rows > columns:
        return sorted((row, column) for column, row in assignment(worth.T))
    if not rows:
        return []
    cost = worth.max() - worth
    row_price, column_price = np.zeros(rows), np.zeros(columns)
    owner = np.full(columns, -1)
    for row in range(rows):
        distance = cost[row] - row_price[row] - column_price
        before, done = np.full(columns, -1), np.zeros(columns, dtype=bool)
        while True:
            nearest = int(np.where(done, np.inf, distance).argmin())
            done[nearest] = True
            if owner[nearest] < 0:
                break
            taken = owner[nearest]
            through = distance[nearest] + cost[taken] - row_price[taken] - column_price
            shorter = ~done & (through < distance)
            distance[shorter], before[shorter] = through[shorter], nearest
        rest = np.where(done, distance[nearest] - distance, 0.0)
        column_price -= rest
        row_price[row] += distance[nearest]
        passed = done & (owner >= 0)
        row_price[owner[passed]] += rest[passed]
        while before[nearest] >= 0:
            owner[nearest] = owner[before[nearest]]
            nearest = before[nearest]
        owner[nearest] = row
    return sorted((int(row), column) for column, row in enumerate(owner) if row >= 0)
