"""Agreement between ranks: errors, flags, metrics and rows, by accelerate's collectives, for any number of processes.

Dimensions: P ranks.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar, final

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

Row = TypeVar("Row")


class RanksDifferError(RuntimeError):
    """Ranks that should hold the same adapter don't."""


@contextmanager
def together(accelerator: Accelerator, kind: type[Exception]) -> Iterator[None]:
    """Raise an error of one rank in this block on all ranks at its end, so that none waits for it.

    Nothing inside may be collective. The rank that failed raises its own error, the others a ``kind`` that quotes it.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as caught:
        error = caught
    said = gather_rows(["" if error is None else str(error) or type(error).__name__])
    if error is not None:
        raise error
    if failed := [f"rank {rank}: {text}" for rank, text in enumerate(said) if text]:
        raise kind(failed[0])


def check_ranks(accelerator: Accelerator, parameters: Mapping[str, Tensor], done: int) -> None:
    """Check that every rank has the same bits of the adapter: one integer sum per parameter, and one small gather.

    Shards of one whole can't differ, so there is nothing to compare under FSDP2 and ZeRO-3.

    Raises:
        RanksDifferError: on all ranks; it names the first parameter that differs.
    """
    mine = [one.detach() for one in parameters.values() if not isinstance(one, DTensor) and one.numel()]
    if accelerator.num_processes == 1 or not mine:
        return
    sums = torch.stack([one.view(_INTEGER[one.element_size()]).sum(dtype=torch.int64) for one in mine])
    every = accelerator.gather(sums[None])
    if differs := (every != every[0]).any(0).nonzero().flatten().tolist():
        name = list(parameters)[differs[0]]
        odd = (every[:, differs[0]] != every[0, differs[0]]).nonzero().flatten().tolist()
        raise RanksDifferError(
            f"after step {done} ranks 0 and {odd[0]} hold different adapters ({len(differs)} of {len(mine)} tensors, "
            f"the first is {name}): gradients were not exchanged, or the nodes read different checkpoints. Nothing was "
            "saved; go on from the last checkpoint with run.resume=latest, and see that run.dir is the same disk "
            "on every node"
        )


_INTEGER = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integer dtype of a float's size in bytes, to read its bits."""


def any_rank(accelerator: Accelerator, flag: bool) -> bool:
    """True on every rank where it is true on one."""
    mine = torch.tensor([int(flag)], device=accelerator.device)
    return bool(accelerator.reduce(mine, reduction="sum").item())


def largest(accelerator: Accelerator, value: float) -> float:
    """The largest of the ranks' values; NaN on one rank is NaN on all."""
    mine = torch.tensor([value], dtype=torch.float32, device=accelerator.device)
    gathered: Tensor = accelerator.gather(mine)
    return float(gathered.max())


def mean_metrics(accelerator: Accelerator, metrics: dict[str, float]) -> dict[str, float]:
    """Metrics over all ranks, equal on all of them: the largest of each ``.../max...`` and the mean of every other.

    The groups of two ranks may have trained different steps, so only present and finite values count.
    """
    every = gather_rows([metrics])
    names = sorted({name for one in every for name in one})
    return {name: _joined(name, [one[name] for one in every if name in one]) for name in names}


def _joined(name: str, values: Sequence[float]) -> float:
    if name.rpartition("/")[2].startswith("max"):
        return math.nan if any(math.isnan(value) for value in values) else max(values)
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def gather_rows(rows: Sequence[Row]) -> list[Row]:
    """Every rank's rows, in rank order, on every rank."""
    gathered: list[Row] = gather_object(list(rows))
    return gathered


@final
class Lockstep:
    """Synchronises forwards that need all ranks when ranks have different numbers of them.

    FSDP2 and ZeRO-3 gather a block's weights from all ranks in every forward, DDP sends buffers. So every rank
    announces each of its own, and one that has none left joins those of the others until nobody has any.
    """

    def __init__(self, accelerator: Accelerator, model: nn.Module) -> None:
        self._accelerator = accelerator
        self._own, self._answered = True, False
        self._hook = model.register_forward_pre_hook(self._announce, prepend=True)  # before weights are gathered

    def _announce(self, *_: object) -> None:
        if self._own:
            any_rank(self._accelerator, True)
        elif self._answered:  # a velocity with guidance is two forwards, and the others announce both
            any_rank(self._accelerator, False)
        self._answered = True

    def finish(self, forward: Callable[[], object]) -> None:
        """Join the others' velocities until no rank has one of its own.

        Args:
            forward: one velocity, of as many forwards of the model as any other.
        """
        self._own = False
        while any_rank(self._accelerator, False):
            self._answered = False
            forward()
        self._hook.remove()
