"""Autotuning in the first step: rollout batch size and the source of the old log-probabilities.

Both are in every checkpoint (``RunState``), so that a resumed run sums in the same order and compares with the same
numbers. Dimensions: G group size, K trained steps, n samples in a forward, P ranks.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor

from customized_grpo.memory.parameters import optimizer_bytes
from customized_grpo.training.distributed import any_rank, largest
from customized_grpo.training.engine import micro_batch
from customized_grpo.training.replay import micro_batches, replay
from customized_grpo.training.setup import Parts
from customized_grpo.types import Conditioning, Trajectory

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
        policy.velocity(x, parts.sigmas[0], cond)
        del room
    except RuntimeError as error:  # a base class of torch.OutOfMemoryError
        if not (isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)):
            raise
        return str(error)
    return None


def is_recomputed(parts: Parts) -> bool:
    """True if old log-probabilities are recomputed by the replay, with the weights before a rollout's first update."""
    asked = parts.recipe.train.old_log_probs
    return (parts.state.old_log_probs if asked == "auto" else asked) == "replay"


def with_old_log_probs(parts: Parts, groups: Sequence[Trajectory], shares: Sequence[range]) -> list[Trajectory]:
    """Trajectories with the old log-probabilities for the updates after the first.

    The first update's own forward gives its old values for free (``new.detach()``), so only the shares of later
    updates are computed here. Under ``auto`` all of them are, once, to compare them with the rollout's.

    Args:
        parts: parts of the run, with the weights that sampled the groups.
        groups: trajectories of the rollout.
        shares: samples of each update.
    """
    if parts.recipe.train.old_log_probs == "auto" and parts.state.old_log_probs is None:
        again = [_recomputed(parts, group, shares) for group in groups]
        differ = [one.log_prob - group.log_prob for one, group in zip(again, groups, strict=True)]
        _decide(parts, largest(parts.accelerator, float(torch.stack(differ).abs().max())))
    if not is_recomputed(parts) or len(shares) == 1:
        return list(groups)
    return [_recomputed(parts, group, shares[1:]) for group in groups]


def _decide(parts: Parts, differ: float) -> None:
    allowed = min(parts.recipe.train.ratio_guard, _OF_CLIP * parts.recipe.objective.clip)
    trusted = differ <= allowed
    parts.state.old_log_probs = "rollout" if trusted else "replay"
    parts.state.news.append(
        f"train.old_log_probs: auto took the {parts.state.old_log_probs}'s: the two differ by at most {differ:.3g} "
        f"(allowed: {allowed:g}); the run keeps it"
    )


def _recomputed(parts: Parts, group: Trajectory, shares: Sequence[range]) -> Trajectory:
    """A trajectory with the log-probabilities (G, K) of the given samples computed as an update computes them.

    Uses the same micro-batches, and gradients whose graph is dropped: torch.compile generates other code without.
    """
    log_prob, nothing = group.log_prob.clone(), torch.zeros_like(group.log_prob)
    for samples in shares:
        found: list[Tensor] = []
        with parts.clock.phase("replay"):
            for pairs in micro_batches([group], [nothing], samples, parts.recipe.train.pairs_per_backward):
                with micro_batch(parts.accelerator, parts.policy.transformer, last=False):
                    found.append(replay(parts.policy, parts.transition, pairs)[0].detach())
        again = torch.cat(found).view(len(group.steps), len(samples)).T
        log_prob[samples.start : samples.stop] = again
    return replace(group, log_prob=log_prob)
