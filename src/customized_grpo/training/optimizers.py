"""The optimizer of a recipe: AdamW of torch, or with its two moments in 8 bits by bitsandbytes (arXiv 2110.02861)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from customized_grpo.policies.acceleration import need_bitsandbytes
from customized_grpo.recipe.config import Train


def build_optimizer(parameters: Sequence[nn.Parameter], train: Train) -> torch.optim.Optimizer:
    """The optimizer that ``train.optimizer`` names.

    Raises:
        ValueError: it needs bitsandbytes, which isn't installed.
    """
    options: dict[str, Any] = {
        "lr": train.lr,
        "betas": train.betas,
        "eps": train.eps,
        "weight_decay": train.weight_decay,
    }
    if train.optimizer != "adamw_8bit":
        return torch.optim.AdamW(parameters, fused=train.optimizer == "adamw_fused" or None, **options)
    need_bitsandbytes(f"train.optimizer: {train.optimizer}")
    from bitsandbytes.optim import AdamW8bit

    optimizer: torch.optim.Optimizer = AdamW8bit(parameters, **options)
    return optimizer
