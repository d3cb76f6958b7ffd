"""Micro-batches of (sample, step) pairs, and that replaying them gives the rollout's own numbers back.

Dimensions: G = 4 samples, K trained steps, n pairs of a micro-batch.
"""

from functools import partial

import pytest
import torch
from torch import Tensor

from customized_grpo.sampling.clock import Clock
from customized_grpo.sampling.dynamics import dance_sde
from customized_grpo.sampling.rollout import initial_noise, sample_group, transition_noise
from customized_grpo.sampling.schedule import StepPlan, shifted_sigmas
from customized_grpo.training.replay import micro_batches, num_micro_batches, replay
from customized_grpo.types import Trajectory
from tiny_rewards import example
from toy_policy import ToyPolicy

SIGMAS = shifted_sigmas(8, 3.0)
SDE = partial(dance_sde, eta=0.4)
G = 4


def rollout(policy: ToyPolicy, trained: tuple[int, ...], group: int = 0) -> Trajectory:
    one = example(1, key=f"dog-{group}", prompt="dog " * (group + 1))
    return sample_group(
        policy,
        one,
        policy.encode(one.prompt, one.references),
        sigmas=SIGMAS,
        plan=StepPlan(len(SIGMAS) - 1, tuple(range(7)), trained),
        transition=SDE,
        noise=initial_noise(policy.latent_shape, G, seed=0, step=0, group=group, shared=True),
        draws=transition_noise(policy.latent_shape, G, 7, seed=0, step=0, group=group),
        shared_noise=True,
        clock=Clock(torch.device("cpu")),
    )


def table(group: Trajectory, first: float = 0.0) -> Tensor:
    """Advantages that name their place."""
    return first + torch.arange(group.log_prob.numel(), dtype=torch.float32).view_as(group.log_prob)


@pytest.mark.parametrize("size", [1, 3, 4, 5, 100])
@pytest.mark.parametrize("samples", [range(4), range(2, 4)])
def test_every_pair_comes_once_with_what_belongs_to_it(size: int, samples: range) -> None:
    policy = ToyPolicy()
    groups = [rollout(policy, (1, 3, 6), 0), rollout(policy, (0, 2, 5), 1)]
    advantages = [table(groups[0]), table(groups[1], 100)]
    batches = list(micro_batches(groups, advantages, samples, size))
    assert len(batches) == num_micro_batches(groups, len(samples), size)
    assert max(len(pairs.x) for pairs in batches) == min(size, 3 * len(samples))
    seen = []
    for pairs in batches:
        for row, advantage in enumerate(pairs.advantage.tolist()):
            index, place = (1, advantage - 100) if advantage >= 100 else (0, advantage)
            group, (g, k) = groups[index], divmod(int(place), 3)
            step = int(group.steps[k])
            assert pairs.cond is group.cond
            assert torch.equal(pairs.x[row], group.x[g, k])
            assert torch.equal(pairs.x_next[row], group.x_next[g, k])
            assert pairs.log_prob[row] == group.log_prob[g, k]
            assert (pairs.sigma[row], pairs.sigma_next[row]) == (SIGMAS[step], SIGMAS[step + 1])
            seen.append((index, g, k))
    assert sorted(seen) == [(index, g, k) for index in range(2) for g in samples for k in range(3)]


def test_a_micro_batch_of_the_group_is_one_step_as_the_rollout_ran_it() -> None:
    group = rollout(ToyPolicy(), (1, 3, 6))
    for k, pairs in enumerate(micro_batches([group], [table(group)], range(G), G)):
        assert torch.equal(pairs.x, group.x[:, k])
        assert len(pairs.sigma.unique()) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 3, G, 100])
def test_the_first_replay_gives_the_rollouts_log_probabilities_back(dtype: torch.dtype, size: int) -> None:
    policy = ToyPolicy(dtype)
    group = rollout(policy, (0, 3, 6))
    for pairs in micro_batches([group], [table(group)], range(G), size):
        new, _ = replay(policy, SDE, pairs)
        assert torch.equal(new, pairs.log_prob)
        assert new.requires_grad


def test_a_changed_policy_gives_other_ones() -> None:
    policy = ToyPolicy()
    group = rollout(policy, (0, 3, 6))
    with torch.no_grad():
        policy.transformer.weight.add_(0.01)
    for pairs in micro_batches([group], [table(group)], range(G), G):
        new, _ = replay(policy, SDE, pairs)
        assert (new - pairs.log_prob).abs().max() > 1e-4
