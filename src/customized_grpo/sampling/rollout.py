"""Sampling: one group with its trajectory for training, or plain images for evaluation and use.

Dimensions: G group size, T sampler steps, J stochastic steps, K trained steps, S latent tokens, C latent channels,
n batch.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from customized_grpo.policies.base import Policy
from customized_grpo.sampling.caching import RolloutCache
from customized_grpo.sampling.clock import Clock
from customized_grpo.sampling.dynamics import Transition, log_prob
from customized_grpo.sampling.schedule import StepPlan
from customized_grpo.sampling.solver import SolverName, Velocity, ode_steps
from customized_grpo.seeding import generator
from customized_grpo.types import Conditioning, Example, Trajectory


def initial_noise(
    latent_shape: tuple[int, int], group_size: int, *, seed: int, step: int, group: int, shared: bool
) -> Float[Tensor, "g s c"]:
    """float32 noise at sigma = 1, a function of (seed, step, global index) only.

    Args:
        latent_shape: (S, C).
        group_size: G.
        seed: the run's seed.
        step: the GRPO step.
        group: global index of the group in this GRPO step, over all ranks.
        shared: one draw for the whole group; else one per sample.
    """
    if shared:
        draw = torch.randn(latent_shape, generator=generator(seed, "shared-noise", step, group))
        return draw.expand(group_size, *latent_shape)
    first = group * group_size
    return torch.stack(
        [torch.randn(latent_shape, generator=generator(seed, "noise", step, first + g)) for g in range(group_size)]
    )


def transition_noise(
    latent_shape: tuple[int, int], group_size: int, num_draws: int, *, seed: int, step: int, group: int
) -> Float[Tensor, "g j s c"]:
    """float32 noise of the J = ``num_draws`` stochastic transitions of each sample, in the order they happen."""
    return noise_of_samples("transition", latent_shape, group_size, num_draws, seed=seed, step=step, group=group)


def noise_of_samples(
    purpose: str,
    latent_shape: tuple[int, int],
    group_size: int,
    num_draws: int,
    *,
    seed: int,
    step: int,
    group: int,
) -> Float[Tensor, "g j s c"]:
    """float32 noise, J = ``num_draws`` draws of each sample, a function of purpose, seed, step and global index."""
    first = group * group_size
    return torch.stack(
        [
            torch.randn((num_draws, *latent_shape), generator=generator(seed, purpose, step, first + g))
            for g in range(group_size)
        ]
    )


@torch.no_grad()
def sample_group(
    policy: Policy,
    example: Example,
    cond: Conditioning,
    *,
    sigmas: Float[Tensor, " t_plus_1"],
    plan: StepPlan,
    transition: Transition,
    noise: Float[Tensor, "g s c"],
    draws: Float[Tensor, "g j s c"],
    shared_noise: bool,
    clock: Clock | None = None,
    batch: int | None = None,
    keep_mean: bool = False,
) -> Trajectory:
    """Sample G images of one example and record the trained transitions.

    Steps that the plan does not make stochastic follow the flow. With shared noise the steps before the
    first stochastic one are the same for all samples, so they are computed once. The state is rounded to the policy's
    storage dtype *before* its log-probability is taken: with float32 there and bfloat16 in the replay the log-ratio
    would move by far more than the clip.

    Args:
        policy: the policy, whose ``velocity`` the replay uses too.
        example: prompt and references; it is passed on to the rewards in the trajectory.
        cond: ``policy.encode`` of the example.
        sigmas: the grid, float32 from 1 to 0.
        plan: which steps are stochastic and which of them are trained.
        transition: the dynamics of the stochastic steps.
        noise: state at sigma = 1, see ``initial_noise``.
        draws: noise of the stochastic transitions, see ``transition_noise``.
        shared_noise: ``noise`` is the same for all samples.
        clock: gets the phases ``rollout`` and ``decode``, where there is one.
        batch: samples per forward; None: the whole group.
        keep_mean: record the mean of each trained transition, too.
    """
    clock = clock or Clock(policy.device)
    noisy = Noisy(plan=plan, transition=transition, draws=draws, shared_noise=shared_noise)
    with clock.phase("rollout"):
        sigmas = sigmas.to(policy.device)
        cond = policy.on_grid(cond, sigmas)
        velocity = partial(_in_batches, policy, policy.prefill(cond), batch)
        x, recorded = _noisy_steps(policy, velocity, noise, sigmas, noisy, record="means" if keep_mean else "states")
        before, after, scores, *means = (torch.stack(one, dim=1) for one in zip(*recorded, strict=True))
    with clock.phase("decode"):
        images = policy.decode(x)
    return Trajectory(
        example=example,
        cond=cond,
        sigmas=sigmas,
        steps=torch.tensor(plan.trained, device=policy.device),
        x=before,
        x_next=after,
        log_prob=scores,
        mean=means[0] if means else None,
        images=images,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Noisy:
    """Sampling with noise on the way; see ``sample_group``."""

    plan: StepPlan
    transition: Transition
    draws: Float[Tensor, "g j s c"]
    shared_noise: bool


def _noisy_steps(
    policy: Policy,
    velocity: Velocity,
    noise: Float[Tensor, "g s c"],
    sigmas: Float[Tensor, " t_plus_1"],
    noisy: Noisy,
    *,
    record: Literal["nothing", "states", "means"],
) -> tuple[Float[Tensor, "g s c"], list[tuple[Tensor, ...]]]:
    """Final latents, and of each trained step the states before and after, the log-probability, and the mean."""
    plan = noisy.plan
    # non_blocking: a copy from pageable memory is staged before the call returns, so no wait is needed
    draws = noisy.draws.to(policy.device, non_blocking=True)
    x = noise.to(policy.device, policy.dtype, non_blocking=True)
    k = plan.stochastic[0] if noisy.shared_noise else 0  # until then the samples are equal
    x = ode_steps(velocity, x[:1] if k else x, _at(sigmas, plan.path(0, k)), plan.solver).expand_as(x)
    recorded: list[tuple[Tensor, ...]] = []
    while k < plan.num_steps:
        if k not in plan.stochastic:
            ahead = plan.next_stochastic(k)
            x, k = ode_steps(velocity, x, _at(sigmas, plan.path(k, ahead)), plan.solver), ahead
            continue
        gaussian = noisy.transition(velocity(x, sigmas[k]), x.float(), sigmas[k], sigmas[k + 1], sigma_max=sigmas[1])
        x_next = (gaussian.mean + gaussian.std * draws[:, plan.stochastic.index(k)]).to(policy.dtype)
        if k in plan.trained and record != "nothing":
            states = (x, x_next, log_prob(x_next.float(), gaussian))
            recorded.append((*states, gaussian.mean) if record == "means" else states)
        x, k = x_next, k + 1
    return x, recorded


@torch.no_grad()
def sample_final(
    policy: Policy,
    cond: Conditioning,
    *,
    sigmas: Float[Tensor, " t_plus_1"],
    noise: Float[Tensor, "g s c"],
    by: SolverName | Noisy,
    clock: Clock,
    batch: int | None = None,
    cache: RolloutCache | None = None,
) -> tuple[Float[Tensor, "g s c"], UInt8[Tensor, "g h w 3"]]:
    """Final latents, in the storage dtype, and images of G samples of one example.

    Args:
        policy: the policy.
        cond: ``policy.encode`` of the example.
        sigmas: the grid, on the policy's device.
        noise: state at sigma = 1.
        by: a solver of the flow, or noise on the way.
        clock: gets the phases ``rollout`` and ``decode``.
        batch: samples per forward; None: the whole group.
        cache: lets the steps reuse what earlier ones computed.
    """
    with clock.phase("rollout"):
        plain: Velocity = partial(_in_batches, policy, policy.prefill(policy.on_grid(cond, sigmas)), batch)
        with nullcontext(plain) if cache is None else cache.over(plain) as velocity:
            if isinstance(by, Noisy):
                x, _ = _noisy_steps(policy, velocity, noise, sigmas, by, record="nothing")
            else:
                x = ode_steps(velocity, noise.to(policy.device, policy.dtype, non_blocking=True), sigmas, by)
    with clock.phase("decode"):
        return x, policy.decode(x)


def _at(sigmas: Float[Tensor, " t_plus_1"], points: Sequence[int]) -> Float[Tensor, " m"]:
    """Points of the grid. Indexing by a list would copy it to the device first, and wait for that."""
    return torch.stack([sigmas[k] for k in points])


def _in_batches(
    policy: Policy,
    cond: Conditioning,
    size: int | None,
    x: Float[Tensor, "n s c"],
    sigma: Float[Tensor, ""],
) -> Float[Tensor, "n s c"]:
    """The velocity of any number of samples of one prompt, at most ``size`` per forward."""
    if size is None or len(x) <= size:
        return policy.velocity(x, sigma, cond)
    return torch.cat([policy.velocity(part, sigma, cond) for part in x.split(size)])


@torch.no_grad()
def sample_images(
    policy: Policy, cond: Conditioning, noise: Float[Tensor, "n s c"], sigmas: Float[Tensor, " t_plus_1"]
) -> UInt8[Tensor, "n h w 3"]:
    """Deterministic sampling of n images of one prompt, or of a stack of n, from ``noise`` at sigma = 1."""
    x, sigmas = noise.to(policy.device, policy.dtype), sigmas.to(policy.device)
    kept = policy.prefill(policy.on_grid(cond, sigmas))
    return policy.decode(ode_steps(lambda x, sigma: policy.velocity(x, sigma, kept), x, sigmas))
