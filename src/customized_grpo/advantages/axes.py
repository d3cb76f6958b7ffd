"""Axes: what a run's rewards pull at. Their order is that of the columns of every (G, Q) and (T, Q) tensor.

Dimensions: T sampler steps, Q axes (prompt, identity, then any further axis).
"""

from collections.abc import Sequence
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

AXES: Final = ("prompt", "identity")
"""Axes of every run, the first two columns."""
FURTHER: Final = ("style", "layout", "diversity", "quality")
"""Names of further axes, in their columns' order; one exists as soon as a reward names it."""


def with_further(weights: Float[Tensor, "t 2"], shares: Sequence[float]) -> Float[Tensor, "t q"]:
    """Time weights of the first two axes, extended by further ones with constant shares.

    w'[t] = ((1 - sum_j s_j) w[t], s_j sum_q w[t, q]): a row's sum stays what it was, and so does the ratio of the
    first two.

    Args:
        weights: row of each step.
        shares: s_j of each further axis, at least 0, with a sum below 1; none: the weights as they are.
    """
    if not shares:
        return weights
    share = torch.tensor(shares, dtype=weights.dtype)
    return torch.cat([weights * (1 - share.sum()), weights.sum(1, keepdim=True) * share], dim=1)
