"""Sensitivity of the gradient to each sampler step, and loss weights that equalise it.

Dimensions: T sampler steps.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from customized_grpo.sampling.dynamics import Transition


def step_sensitivity(
    transition: Transition, sigmas: Float[Tensor, " t_plus_1"], *, of_log_prob: bool = True
) -> Float[Tensor, " t"]:
    """m_k = |d mean / d v| / std_k: the size of d log_prob / d v at step k, up to a draw of noise.

    With ``of_log_prob`` false it is |d mean / d v|, of a log-ratio that is free of the step's scale. The mean is affine
    in v, so its difference between v = 1 and v = 0 is the derivative, for every dynamics.

    Returns:
        float32; 0 at the last step, which is never trained.
    """
    grid = sigmas.double().cpu()
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    sizes = [0.0] * (len(grid) - 1)
    for k in range(len(sizes) - 1):
        at_zero = transition(zero, zero, grid[k], grid[k + 1], sigma_max=grid[1])
        at_one = transition(one, zero, grid[k], grid[k + 1], sigma_max=grid[1])
        moved = (at_one.mean - at_zero.mean).abs()
        sizes[k] = float((moved / at_one.std if of_log_prob else moved).max())
    return torch.tensor(sizes, dtype=torch.float32)


def step_weights(
    mode: Literal["none", "equal"],
    transition: Transition,
    sigmas: Float[Tensor, " t_plus_1"],
    *,
    of_log_prob: bool = True,
) -> Float[Tensor, " t"]:
    """Factor of each step's loss.

    ``none`` is the paper: 1 everywhere. ``equal`` is 1 / m_k (see ``step_sensitivity``) scaled to mean 1 over the
    trainable steps: late steps of a shifted grid carry 2 to 5 times the gradient of early ones, and so tilt any time
    weighting towards what is weighted late. The last step, which is never trained, gets 0.
    """
    if mode == "none":
        return torch.ones(len(sigmas) - 1)
    return equalised(step_sensitivity(transition, sigmas, of_log_prob=of_log_prob))


def equalised(sizes: Float[Tensor, " t"]) -> Float[Tensor, " t"]:
    """1 / size of each step but the last, scaled to mean 1; the last gets 0."""
    inverse = 1 / sizes[:-1]
    return torch.cat([inverse / inverse.mean(), torch.zeros(1)])
