"""What ranks agree on. Nothing here assumes one process, and nothing needs more than accelerate's collectives.

Dimensions: P ranks.
"""

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

Row = TypeVar("Row")


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

    The groups of two ranks may have trained different steps, so a name counts where it is there and finite.
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
