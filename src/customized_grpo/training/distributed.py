"""What ranks agree on. Nothing here assumes one process, and nothing needs more than accelerate's collectives.

Dimensions: P ranks.
"""

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
    """Metrics over all ranks: the largest of each ``.../max...`` and the mean of every other. Every rank holds the same keys."""
    names = sorted(metrics)
    mine = torch.tensor(
        [[metrics[name] for name in names]],
        dtype=torch.float64 if accelerator.device.type == "cpu" else torch.float32,
    )
    every: Tensor = accelerator.gather(mine.to(accelerator.device))
    return {
        name: float(column.max() if name.rpartition("/")[2].startswith("max") else column.mean())
        for name, column in zip(names, every.T, strict=True)
    }


def gather_rows(rows: Sequence[Row]) -> list[Row]:
    """Every rank's rows, in rank order, on every rank."""
    gathered: list[Row] = gather_object(list(rows))
    return gathered
