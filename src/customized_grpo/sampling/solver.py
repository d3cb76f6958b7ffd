"""Deterministic solvers of the flow: Euler, and a multistep solver that needs fewer steps.

sigma -> sigma' (next, smaller); alpha = 1 - sigma; lambda = log(alpha / sigma), half the log-SNR; x0 = x - sigma v.
"""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from customized_grpo.sampling.dynamics import ode

SolverName = Literal["euler", "dpm_solver_2m"]
Velocity = Callable[[Float[Tensor, "n ..."], Float[Tensor, ""]], Float[Tensor, "n ..."]]
"""``(x, sigma) -> v``."""


def dpm_solver_2m(
    x0: Float[Tensor, "n ..."],
    x0_before: Float[Tensor, "n ..."] | None,
    x: Float[Tensor, "n ..."],
    sigmas: Float[Tensor, " 3"],
) -> Float[Tensor, "n ..."]:
    """One step of DPM-Solver++ (2M) for a flow: second order by the step before, no further forward.

    x' = sigma'/sigma x + (alpha' - alpha sigma'/sigma) D,  D = x0 + h / (2 h_before) (x0 - x0_before),
    h = lambda' - lambda.
    With D = x0 it is the Euler step. So are the first step, the step after sigma = 1, where h_before is infinite, and
    the step to sigma' = 0, where h is (arXiv 2211.01095, algorithm 2; diffusers does the same).

    Args:
        x0: data predicted at sigma.
        x0_before: data predicted one step earlier; None in a first step.
        x: the state at sigma.
        sigmas: noise levels of the previous, the current and the next step.
    """
    _, sigma, sigma_next = sigmas
    direction = x0
    if x0_before is not None:
        wide = sigmas.double()
        h_before, h = ((1 - wide) / wide).log().diff()
        second = h / (2 * h_before)
        direction = x0 + second.nan_to_num(0, 0, 0).float() * (x0 - x0_before)
    shrink = sigma_next / sigma
    stepped: Tensor = shrink * x + ((1 - sigma_next) - (1 - sigma) * shrink) * direction
    return stepped


@torch.no_grad()
def ode_steps(
    velocity: Velocity,
    x: Float[Tensor, "n s c"],
    sigmas: Float[Tensor, " m"],
    solver: SolverName = "euler",
) -> Float[Tensor, "n s c"]:
    """Solve from the first of ``sigmas`` to the last; a single sigma means no step. The state keeps ``x``'s dtype."""
    x0_before = None
    for k in range(len(sigmas) - 1):
        v = velocity(x, sigmas[k])
        if solver == "euler":
            x = ode(v, x.float(), sigmas[k], sigmas[k + 1]).to(x.dtype)
            continue
        x0 = x.float() - sigmas[k] * v
        around = torch.stack([sigmas[max(k - 1, 0)], sigmas[k], sigmas[k + 1]])
        x = dpm_solver_2m(x0, x0_before, x.float(), around).to(x.dtype)
        x0_before = x0
    return x
