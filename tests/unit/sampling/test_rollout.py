"""Sampling on a toy policy: noise by global index, what a trajectory records, and in which precision.

Dimensions: G group size, T sampler steps, K trained steps, S latent tokens, C latent channels.
"""

from functools import partial
from typing import Any

import pytest
import torch

from customized_grpo.sampling.clock import Clock
from customized_grpo.sampling.dynamics import dance_sde, log_prob, ode
from customized_grpo.sampling.rollout import (
    initial_noise,
    sample_group,
    sample_images,
    transition_noise,
)
from customized_grpo.sampling.schedule import StepPlan, shifted_sigmas
from customized_grpo.sampling.solver import ode_steps
from customized_grpo.types import Trajectory
from tiny_rewards import example
from toy_policy import ToyPolicy

SHAPE = (3, 4)
SIGMAS = shifted_sigmas(6, 3.0)
SDE = partial(dance_sde, eta=0.4)
EVERY = StepPlan(6, (0, 1, 2, 3, 4), (0, 1, 2, 3, 4))
G = 4


def rollout(policy: ToyPolicy, plan: StepPlan = EVERY, *, shared: bool = True, **changes: Any) -> Trajectory:
    one = example(1)
    settings: dict[str, Any] = {
        "sigmas": SIGMAS,
        "plan": plan,
        "transition": SDE,
        "noise": initial_noise(SHAPE, G, seed=0, step=0, group=0, shared=shared),
        "draws": transition_noise(SHAPE, G, len(plan.stochastic), seed=0, step=0, group=0),
        "shared_noise": shared,
        "clock": Clock(torch.device("cpu")),
    }
    return sample_group(policy, one, policy.encode(one.prompt, one.references), **{**settings, **changes})


def test_shared_noise_is_one_draw_and_unshared_is_not() -> None:
    shared = initial_noise(SHAPE, G, seed=0, step=0, group=0, shared=True)
    assert torch.equal(shared, shared[:1].expand_as(shared))
    each = initial_noise(SHAPE, G, seed=0, step=0, group=0, shared=False)
    assert len({tuple(one.flatten().tolist()) for one in each}) == G
    assert each.std() == pytest.approx(1, abs=0.3)


def test_noise_belongs_to_the_global_index_of_a_sample() -> None:
    # two groups of 2 are one group of 4, whichever rank draws them
    whole = initial_noise(SHAPE, 4, seed=0, step=5, group=0, shared=False)
    half = initial_noise(SHAPE, 2, seed=0, step=5, group=1, shared=False)
    assert torch.equal(whole[2:], half)
    draws = transition_noise(SHAPE, 4, 3, seed=0, step=5, group=0)
    assert draws.shape == (4, 3, *SHAPE)
    assert torch.equal(draws[2:], transition_noise(SHAPE, 2, 3, seed=0, step=5, group=1))


@pytest.mark.parametrize("shared", [True, False])
def test_noise_is_another_for_every_seed_step_group_and_purpose(shared: bool) -> None:
    places = [
        {"seed": 0, "step": 0, "group": 0},
        {"seed": 1, "step": 0, "group": 0},
        {"seed": 0, "step": 1, "group": 0},
        {"seed": 0, "step": 0, "group": 1},
    ]
    noises = [initial_noise(SHAPE, 2, shared=shared, **place)[0] for place in places]
    noises += [transition_noise(SHAPE, 2, 1, **place)[0, 0] for place in places]
    assert len({tuple(noise.flatten().tolist()) for noise in noises}) == len(noises)


def test_a_trajectory_is_a_chain_of_scored_transitions() -> None:
    policy = ToyPolicy()
    group = rollout(policy)
    assert group.x.shape == group.x_next.shape == (G, 5, *SHAPE)
    assert group.steps.tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(group.x_next[:, :-1], group.x[:, 1:])
    assert not group.log_prob.requires_grad
    assert not group.x.requires_grad
    draws = transition_noise(SHAPE, G, 5, seed=0, step=0, group=0)
    for k in range(5):
        velocity = policy.velocity(group.x[:, k], SIGMAS[k], group.cond)
        gaussian = SDE(velocity, group.x[:, k], SIGMAS[k], SIGMAS[k + 1], sigma_max=SIGMAS[1])
        assert torch.equal(group.log_prob[:, k], log_prob(group.x_next[:, k], gaussian).detach())
        torch.testing.assert_close(group.x_next[:, k], gaussian.mean + gaussian.std * draws[:, k])
    last = ode(policy.velocity(group.x_next[:, 4], SIGMAS[5], group.cond), group.x_next[:, 4], SIGMAS[5], 0.0)
    assert torch.equal(group.images, policy.decode(last))


def test_only_trained_steps_are_recorded_and_the_samples_are_the_same() -> None:
    every, some = rollout(ToyPolicy()), rollout(ToyPolicy(), StepPlan(6, (0, 1, 2, 3, 4), (1, 3)))
    assert some.steps.tolist() == [1, 3]
    assert torch.equal(some.x, every.x[:, [1, 3]])
    assert torch.equal(some.x_next, every.x_next[:, [1, 3]])
    assert torch.equal(some.log_prob, every.log_prob[:, [1, 3]])
    assert torch.equal(some.images, every.images)


def test_steps_outside_the_plan_are_the_flow_and_shared_ones_are_computed_once() -> None:
    policy = ToyPolicy()
    window = StepPlan(6, (2, 3), (2, 3))
    group = rollout(policy, window)
    assert policy.batches == [1, 1, G, G, G, G]
    start = initial_noise(SHAPE, G, seed=0, step=0, group=0, shared=True)
    flow = ode_steps(lambda x, sigma: policy.velocity(x, sigma, group.cond), start, SIGMAS[:3])
    assert torch.equal(group.x[:, 0], flow)

    unshared = ToyPolicy()
    again = rollout(unshared, window, shared=False, noise=start)
    assert unshared.batches == [G] * 6
    assert torch.equal(again.x, group.x)
    assert torch.equal(again.images, group.images)


def test_fewer_steps_after_the_window_change_nothing_in_it() -> None:
    whole, thin = ToyPolicy(), ToyPolicy()
    every = rollout(whole, StepPlan(6, (0, 1), (0, 1)))
    some = rollout(thin, StepPlan(6, (0, 1), (0, 1), skipped=(3, 5)))
    assert (len(whole.batches), len(thin.batches)) == (6, 4)
    assert torch.equal(some.x, every.x)
    assert torch.equal(some.log_prob, every.log_prob)
    assert not torch.equal(some.images, every.images)


@pytest.mark.parametrize(("batch", "sizes"), [(4, [4]), (3, [3, 1]), (1, [1, 1, 1, 1]), (9, [4])])
def test_a_rollout_in_batches_is_the_whole_groups(batch: int, sizes: list[int]) -> None:
    policy = ToyPolicy()
    some, whole = rollout(policy, batch=batch), rollout(ToyPolicy())
    assert policy.batches == sizes * 6
    torch.testing.assert_close(some.x_next, whole.x_next)
    torch.testing.assert_close(some.log_prob, whole.log_prob)
    assert torch.equal(some.images, whole.images)


@torch.no_grad()
def test_the_state_is_rounded_before_it_is_scored() -> None:
    policy = ToyPolicy(torch.bfloat16)
    group = rollout(policy)
    assert group.x.dtype == group.x_next.dtype == torch.bfloat16
    assert group.log_prob.dtype == torch.float32
    draws = transition_noise(SHAPE, G, 5, seed=0, step=0, group=0)
    largest = 0.0
    for k in range(5):
        x = group.x[:, k]
        gaussian = SDE(
            policy.velocity(x, SIGMAS[k], group.cond),
            x.float(),
            SIGMAS[k],
            SIGMAS[k + 1],
            sigma_max=SIGMAS[1],
        )
        assert torch.equal(group.log_prob[:, k], log_prob(group.x_next[:, k].float(), gaussian).detach())
        unrounded = gaussian.mean + gaussian.std * draws[:, k]
        assert torch.equal(unrounded.bfloat16(), group.x_next[:, k])
        largest = max(largest, float((log_prob(unrounded, gaussian) - group.log_prob[:, k]).abs().max()))
    assert largest > 1e-4  # the control: the float32 state has another probability


def test_generation_is_the_flow_from_noise_to_data() -> None:
    policy = ToyPolicy()
    cond = policy.encode("a dog", ())
    noise = initial_noise(SHAPE, 2, seed=0, step=0, group=0, shared=False)
    x = noise
    for k in range(6):
        x = x - policy.velocity(x, SIGMAS[k], cond) * (SIGMAS[k] - SIGMAS[k + 1])
    assert torch.equal(sample_images(policy, cond, noise, SIGMAS), policy.decode(x))
    assert torch.equal(sample_images(policy, cond, noise[1:], SIGMAS), policy.decode(x)[1:])


def test_time_is_booked_to_rollout_and_decoding() -> None:
    clock = Clock(torch.device("cpu"))
    rollout(ToyPolicy(), clock=clock)
    assert set(clock.drain()) == {"time/rollout", "time/decode", "time/other", "time/step"}
