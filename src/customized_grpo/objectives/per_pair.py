"""Reductions and precision that the objectives share.

Dimensions: n pairs of (sample, noise level), S latent tokens, C latent channels.
"""

from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor


def wide(*tensors: Float[Tensor, "n s c"]) -> tuple[Float[Tensor, "n s c"], ...]:
    """The tensors in one dtype, at least float32: bfloat16 of a policy's forward is promoted, float64 stays."""
    dtype = reduce(torch.promote_types, (one.dtype for one in tensors), torch.float32)
    return tuple(one.to(dtype) for one in tensors)


def squared_error(velocity: Float[Tensor, "n s c"], target: Float[Tensor, "n s c"]) -> Float[Tensor, " n"]:
    """mean((v - u)^2) of each pair: the flow-matching loss where u = noise - x0 (arXiv 2210.02747, equation 23).

    Returns:
        float32, or float64 if an input is.
    """
    v, u = wide(velocity, target)
    return mean_over_dims((v - u).square())


def mean_over_dims(values: Float[Tensor, "n s c"]) -> Float[Tensor, " n"]:
    """Mean over the dims of a pair, as in ``sampling.dynamics.log_prob``."""
    return values.mean((1, 2))
