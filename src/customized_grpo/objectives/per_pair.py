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


def mean_over_dims(values: Float[Tensor, "n s c"]) -> Float[Tensor, " n"]:
    """Mean over the dims of a pair, as in ``sampling.dynamics.log_prob``."""
    return values.mean((1, 2))
