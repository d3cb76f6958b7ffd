"""Deterministic steps: DPM-Solver++ against diffusers' own scheduler, and how fast both solvers converge."""

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

from customized_grpo.sampling.schedule import shifted_sigmas
from customized_grpo.sampling.solver import SolverName, ode_steps

START = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
SPREAD = 0.5
"""Of the data, a normal distribution around 1: the flow's velocity is known, and so is where it leads."""


def velocity(x: Tensor, sigma: Tensor) -> Tensor:
    """Of the flow from noise to data distributed as N(1, SPREAD^2)."""
    variance = (1 - sigma) ** 2 * SPREAD**2 + sigma**2
    away = x - (1 - sigma)
    return (sigma - (1 - sigma) * SPREAD**2) / variance * away - 1


def end(solver: SolverName, num_steps: int) -> Tensor:
    return ode_steps(velocity, START, shifted_sigmas(num_steps, 3.0).double(), solver)


def error(solver: SolverName, num_steps: int) -> float:
    # the exact map of the flow takes the noise x to 1 + SPREAD x
    return float((end(solver, num_steps) - (1 + SPREAD * START)).abs().max())


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers
@pytest.mark.parametrize("num_steps", [1, 2, 3, 8, 25])
def test_dpm_solver_is_the_one_of_diffusers(num_steps: int) -> None:
    scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, solver_order=2, final_sigmas_type="zero"
    )
    scheduler.set_timesteps(num_steps)
    scheduler.sigmas = sigmas = shifted_sigmas(num_steps, 3.0)
    x = START.float()
    for k, timestep in enumerate(scheduler.timesteps):
        x = scheduler.step(velocity(x, sigmas[k]), timestep, x, return_dict=False)[0]
    ours = ode_steps(velocity, START.float(), sigmas, "dpm_solver_2m")
    torch.testing.assert_close(ours, x, atol=2e-6, rtol=2e-6)


def test_both_solvers_converge_and_the_multistep_one_faster() -> None:
    assert error("euler", 10) / error("euler", 20) == pytest.approx(2, rel=0.25)
    assert error("dpm_solver_2m", 20) < error("euler", 40) / 2
    assert error("dpm_solver_2m", 20) / error("dpm_solver_2m", 40) > 3


@pytest.mark.parametrize("solver", ["euler", "dpm_solver_2m"])
def test_the_state_keeps_its_dtype_and_one_sigma_is_no_step(solver: SolverName) -> None:
    x = START.bfloat16()
    assert ode_steps(velocity, x, shifted_sigmas(4, 3.0), solver).dtype == torch.bfloat16
    assert torch.equal(ode_steps(velocity, x, torch.tensor([0.5]), solver), x)
