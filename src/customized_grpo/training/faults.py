"""Turn out-of-memory and disk errors into advice, stop what has diverged, warn about rewards without signal."""

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, final

import torch

from customized_grpo.identity.runs import goes_on
from customized_grpo.recipe.config import Recipe
from customized_grpo.training import checkpoint


class DivergedError(RuntimeError):
    """The run can't go on: a replay that differs from its rollout, or gradients that are not finite."""


class MemoryFullError(RuntimeError):
    """The device's memory is full; the message names the keys that need less of it."""


class DiskError(RuntimeError):
    """The run's folder can't be written any more: the disk is full or has become read-only."""


_DISK: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


@contextmanager
def explained(recipe: Recipe, folder: Path) -> Iterator[None]:
    """Turn out-of-memory and disk errors into ones that say what to do, and from which checkpoint to continue.

    Raises:
        MemoryFullError: in place of torch's error.
        DiskError: in place of an OSError that speaks of the disk.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MemoryFullError(
            f"out of memory: {str(error).splitlines()[0]} What needs less: {'; '.join(_knobs(recipe))}. {_rest(folder)}"
        ) from error
    except OSError as error:
        if error.errno not in _DISK:
            raise
        raise DiskError(
            f"{error.filename or folder}: {error.strerror}. Make room there, or give write access. {_rest(folder)}"
        ) from error


def check_replay(log_ratio: float, allowed: float) -> None:
    """Raise unless the first replay of a rollout reproduces its log-probabilities.

    Args:
        log_ratio: the largest |log-ratio|, over all ranks.
        allowed: ``train.ratio_guard``.
    """
    if not log_ratio <= allowed:
        raise DivergedError(
            f"the first replay's largest |log-ratio| is {log_ratio:.3g}, where it should be 0 "
            f"(train.ratio_guard={allowed:g}): rollout and replay don't compute the same; "
            "use the same batch size in both (train.microbatch, sampling.batch), train.old_log_probs=replay, or "
            "raise this knowingly, and resume"
        )


def _knobs(recipe: Recipe) -> list[str]:
    """Overrides that need less memory, the cheapest first, without those already at their limit."""
    train, policy = recipe.train, recipe.policy
    knobs = []
    if recipe.pairs_per_backward > 1:
        knobs.append(
            f"a smaller train.microbatch (now {recipe.pairs_per_backward}; the gradient is the same up to rounding)"
        )
    if not recipe.sampling.batch_decides and recipe.sampling.batch != 1:
        now = recipe.sampling.batch or "the whole group"
        knobs.append(f"a smaller sampling.batch (now {now})")
    if policy.gradient_checkpointing < 1:
        knobs.append("policy.gradient_checkpointing=true")
    if policy.recompute == "cheap":
        knobs.append("policy.recompute=all")
    if recipe.evaluate is not None and recipe.evaluate.batch > 1:
        knobs.append(f"a smaller evaluate.batch (now {recipe.evaluate.batch})")
    knobs.append("weights cut over several GPUs (accelerate launch --config_file config/accelerate/fsdp2.yaml)")
    precision = "" if recipe.run.precision == "bf16" else ", run.precision=bf16"
    knobs.append(
        f"a smaller train.group_size (now {train.group_size}) or policy.height and width "
        f"(now {policy.height} x {policy.width}){precision}, which change the training and need a new run"
    )
    return knobs


def _rest(folder: Path) -> str:
    newest = checkpoint.newest(folder / "checkpoints")
    if newest is None:
        return "The run has no checkpoint yet"
    return f"Checkpoint {newest.name} is untouched: go on by: {goes_on(folder)}"


@final
class SignalWarnings:
    """Warnings about rewards without signal and clipping by rounding, from a step's metrics; each given once.

    Args:
        names: names of the rewards.
        clip: ``objective.clip``; None of an objective without a ratio.
    """

    FLAT: Final = 0.5
    """Share of groups in which a reward gave all samples the same score."""
    THIN: Final = 1e-4
    """Spread within a group relative to the reward's size, below which advantages are mostly rounding."""

    def __init__(self, names: list[str], clip: float | None) -> None:
        self._names = names
        self._clip = clip
        self._said: set[tuple[str, str]] = set()

    def of_step(self, metrics: Mapping[str, float]) -> list[str]:
        """New warnings of this step."""
        found = {}
        differs = metrics.get("ratio/max_abs_log_first", 0.0)
        if self._clip is not None and differs > self._clip:
            found["ratio", "clipped"] = (
                f"the first replay's largest |log-ratio| is {differs:.3g}, more than objective.clip={self._clip:g}: "
                "terms are clipped though nothing was updated yet; use the rollout's batch in the replay "
                "(sampling.batch and train.microbatch), or train.old_log_probs=replay"
            )
        for name in self._names:
            flat = metrics[f"reward/{name}/zero_variance_share"]
            mean, std = metrics[f"reward/{name}/mean"], metrics[f"reward/{name}/std"]
            if flat > self.FLAT:
                found[name, "flat"] = (
                    f"rewards.{name} gave all samples of a group the same score in {flat:.0%} of the groups: such a "
                    "group teaches nothing; is the scale too coarse, or the reward saturated?"
                )
            elif std < self.THIN * abs(mean):
                found[name, "thin"] = (
                    f"rewards.{name} differs inside a group by {std:.2g} at a mean of {mean:.4g}: advantages are "
                    "scaled by that spread, so they may be rounding noise; subtract the offset in the reward"
                )
        new = [text for key, text in found.items() if key not in self._said]
        self._said |= found.keys()
        return new
