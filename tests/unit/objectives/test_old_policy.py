"""Decay of the policy that samples, and the KL in velocity, against the public trainers."""

import pytest
import torch

from customized_grpo.objectives.old_policy import power_decay, ramp_decay, velocity_kl
from objective_golden import DECAY_STEPS, SCHEDULES, forward_case, golden


@pytest.mark.parametrize("name", SCHEDULES)
def test_decay_of_diffusion_nft(name: str) -> None:
    flat, rate, limit = SCHEDULES[name]
    expected = golden()[f"decay/nft/{name}"]["decay"]
    assert [ramp_decay(step, flat=flat, rate=rate, limit=limit) for step in DECAY_STEPS] == expected


def test_decay_of_awm() -> None:
    expected = golden()["decay/awm"]["decay"]
    assert [ramp_decay(step, flat=0, rate=0.001, limit=0.3) for step in DECAY_STEPS] == expected


def test_decay_by_a_power() -> None:
    assert [power_decay(step, limit=0.9, warmup=10) for step in DECAY_STEPS] == golden()["decay/power"]["decay"]
    assert power_decay(0, limit=0.9, warmup=1) == 0.9


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 2e-6)], ids=["64", "32"])
def test_velocity_kl_is_that_of_the_public_trainers(dtype: torch.dtype, rtol: float) -> None:
    case = forward_case()
    expected = golden()["velocity_kl/flow_factory"]
    v, reference = (one.to(dtype, copy=True).requires_grad_() for one in (case.velocity, case.old_velocity))
    kl = velocity_kl(v, reference)
    kl.sum().backward()
    assert v.grad is not None
    assert reference.grad is None
    assert kl.tolist() == pytest.approx(expected["kl"], rel=rtol)
    assert v.grad.flatten().tolist() == pytest.approx(expected["gradient"], rel=rtol, abs=rtol / 10)


def test_velocity_kl_of_bfloat16_is_promoted() -> None:
    case = forward_case()
    v, reference = case.velocity.bfloat16(), case.old_velocity.bfloat16()
    assert torch.equal(velocity_kl(v, reference), (v.float() - reference.float()).square().mean((1, 2)))
