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

    Args:
        worth: finite.
    """
    from scipy.optimize import linear_sum_assignment  # a third of a second to import

    rows, columns = linear_sum_assignment(worth, maximize=True)
    return list(zip(rows.tolist(), columns.tolist(), strict=True))
