"""Autotuning in the first step: rollout batch size and the source of the old log-probabilities.

Both are in every checkpoint (``RunState``), so that a resumed run sums in the same order and compares with the same
numbers. Dimensions: G group size, K trained steps, n samples in a forward, P ranks.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor

from customized_grpo.memory.parameters import optimizer_bytes
from customized_grpo.training import averages
from customized_grpo.training.distributed import any_rank, largest
from customized_grpo.training.engine import micro_batch
from customized_grpo.training.parts import Parts
from customized_grpo.training.replay import micro_batches
from customized_grpo.types import Conditioning, Noised, Rollout, Trajectory

R = TypeVar("R", bound=Rollout)

_OF_CLIP = 0.1
"""Allowed difference of two log-probabilities, as a share of ``objective.clip``, so that rounding hardly clips."""


def rollout_batch(parts: Parts, cond: Conditioning) -> int | None:
    """Samples per rollout forward; None: the whole group. ``auto`` is resolved at its first call, by all ranks.

    Raises:
        torch.OutOfMemoryError: on all ranks, if one sample is too much on any of them.
    """
    asked = parts.recipe.sampling.batch
    if asked != "auto":
        return asked
    if parts.state.rollout_batch is None:
        parts.state.rollout_batch = _largest_batch(parts, cond)
        parts.state.news.append(
            f"sampling.batch: auto found {parts.state.rollout_batch} of {parts.recipe.train.group_size} samples in "
            "one forward; the run keeps it"
        )
    return parts.state.rollout_batch


def _largest_batch(parts: Parts, cond: Conditioning) -> int:
    """The group size, halved until a forward fits on every rank."""
    size = parts.recipe.train.group_size
    while True:
        said = _out_of_memory(parts, cond, size)
        if not any_rank(parts.accelerator, said is not None):
            return size
        if size == 1:
            raise torch.OutOfMemoryError(said or "another process is out of memory. See its own message.")
        clear_device_cache(garbage_collection=True)
        size = -(-size // 2)


@torch.no_grad()
def _out_of_memory(parts: Parts, cond: Conditioning, size: int) -> str | None:
    """Error message if a forward of ``size`` samples doesn't fit, else None; all its memory is freed.

    The optimizer's moments come with the first update, so their memory is reserved here for later rollouts.
    """
    policy = parts.policy
    local = [one.numel() for one in parts.parameters.values()]
    moments = 0 if parts.optimizer.state else optimizer_bytes(local, parts.recipe.train.optimizer)
    try:
        room = torch.empty(moments, dtype=torch.uint8, device=policy.device)
        x = torch.zeros(size, *policy.latent_shape, dtype=policy.dtype, device=policy.device)
        policy.velocity(x, parts.sigmas[0], policy.prefill(cond))
        del room
    except RuntimeError as error:  # a base class of torch.OutOfMemoryError
        if not (isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)):
            raise
        return str(error)
    return None


def is_recomputed(parts: Parts) -> bool:
    """True if what a loss compares with is recomputed, with the weights before a rollout's first update."""
    if not parts.objective.records_old:
        return True
    asked = parts.recipe.train.old_log_probs
    return (parts.state.old_log_probs if asked == "auto" else asked) == "replay"


def is_on_policy(parts: Parts, *, first: bool) -> bool:
    """True if an update's own forward, before its step, is what its loss compares with."""
    return first and not parts.lags and is_recomputed(parts)


def with_old(parts: Parts, groups: Sequence[Rollout], shares: Sequence[range]) -> list[Rollout]:
    """Rollouts with what the updates after the first compare with: the old policy's log-probabilities or velocities.

    The first update's own forward gives its old values for free (``new.detach()``) unless the sampler lags behind, so
    only the shares of later updates are computed here. Under ``train.old_log_probs: auto`` all of them are, once, to
    compare them with the rollout's.

    Args:
        parts: parts of the run, with the weights that sampled the groups.
        groups: of the rollout.
        shares: samples of each update.
    """
    if parts.recipe.train.old_log_probs == "auto" and parts.state.old_log_probs is None:
        differ = [_recomputed(parts, one, shares).log_prob - one.log_prob for one in map(_recorded, groups)]
        _decide(parts, largest(parts.accelerator, float(torch.stack(differ).abs().max())))
    if not is_recomputed(parts):
        return list(groups)
    return [_recomputed(parts, group, shares if parts.lags else shares[1:]) for group in groups]


def with_average(parts: Parts, groups: Sequence[Rollout], shares: Sequence[range]) -> list[Rollout]:
    """Rollouts with the velocities of the running average of the weights that the loss holds on to, if there is one."""
    if parts.old is None or parts.objective.old_samples:
        return list(groups)
    with averages.in_place(parts.old, parts.parameters, parts.policy):
        return [_recomputed(parts, _noised(group), shares, Noised.with_average) for group in groups]


def with_compared(parts: Parts, groups: Sequence[Rollout], shares: Sequence[range]) -> list[Rollout]:
    """Rollouts with all that their losses compare with: values of the policy that sampled, and of a running average."""
    with parts.sampling():
        groups = with_old(parts, groups, shares)
    return with_average(parts, groups, shares)


def _recorded(group: Rollout) -> Trajectory:
    assert isinstance(group, Trajectory), "only transitions have recorded log-probabilities"
    return group


def _noised(group: Rollout) -> Noised:
    assert isinstance(group, Noised), "only noised samples have velocities to hold on to"
    return group


def _decide(parts: Parts, differ: float) -> None:
    allowed = parts.recipe.train.ratio_guard
    if (clip := parts.objective.ratio_clip) is not None:
        allowed = min(allowed, _OF_CLIP * clip)
    trusted = differ <= allowed
    parts.state.old_log_probs = "rollout" if trusted else "replay"
    parts.state.news.append(
        f"train.old_log_probs: auto took the {parts.state.old_log_probs}'s: the two differ by at most {differ:.3g} "
        f"(allowed: {allowed:g}); the run keeps it"
    )


def _recomputed(
    parts: Parts, group: R, shares: Sequence[range], put: Callable[[R, range, Tensor], R] | None = None
) -> R:
    """A rollout with the old values of adjoining shares, by the weights as they are, computed as an update does.

    Uses the same micro-batches, and gradients whose graph is dropped: torch.compile generates other code without.
    """
    num_levels, found = len(group.progress), list[Tensor]()
    for samples in shares:
        of_share: list[Tensor] = []
        with parts.clock.phase("replay"):
            advantage = torch.zeros(samples.stop, num_levels, device=parts.accelerator.device)
            for pairs in micro_batches([group], [advantage], samples, parts.recipe.pairs_per_backward):
                with micro_batch(parts.accelerator, parts.policy.transformer, last=False):
                    of_share.append(parts.objective_of(group.example).old(pairs))
        old = torch.cat(of_share)
        found.append(old.view(num_levels, len(samples), *old.shape[1:]).transpose(0, 1))
    if not found:
        return group
    put = put or type(group).with_old
    return put(group, range(shares[0].start, shares[-1].stop), torch.cat(found))
