"""Inputs of the objectives' golden numbers, all made from seeds, and the numbers of the public trainers on them.

The numbers in ``objective_golden.json`` are what the public code gave on these inputs in float64, each with the
repository and commit. A loss is one number per pair, and a
gradient is that of the loss's sum, flat.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

GOLDEN = Path(__file__).with_suffix(".json")
NUM_PAIRS, TOKENS, CHANNELS = 6, 2, 3
BETAS = (0.1, 1.0)
MAX_ADVANTAGE = 5.0
WEIGHTINGS = {"uniform": "Uniform", "sigma": "t", "sigma2": "t**2", "huber": "huber", "ghuber": "ghuber"}
"""Ours, and the name in the public code."""
POWERS = (0.25, 0.4)
THRESHOLD = 2e-3
DECAY_STEPS = (0, 1, 60, 75, 76, 110, 299, 301, 499, 600, 2000)
SCHEDULES = {"copy": (0, 0.0, 0.0), "linear": (0, 0.001, 0.5), "delayed": (75, 0.0075, 0.999)}
"""DiffusionNFT's decay types 0, 1 and 2: updates without decay, rise per update, limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardCase:
    """Pairs of the forward process."""

    velocity: Tensor
    old_velocity: Tensor
    x0: Tensor
    noise: Tensor
    sigma: Tensor
    advantage: Tensor

    @property
    def x_t(self) -> Tensor:
        s = self.sigma[:, None, None]
        return (1 - s) * self.x0 + s * self.noise

    @property
    def target(self) -> Tensor:
        return self.noise - self.x0


@dataclass(frozen=True, slots=True, kw_only=True)
class TransitionCase:
    """Transitions of an SDE, replayed under another policy."""

    x_next: Tensor
    mean: Tensor
    old_mean: Tensor
    std: Tensor
    sigma: Tensor
    sigma_next: Tensor
    advantage: Tensor


def _noise(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(NUM_PAIRS, TOKENS, CHANNELS, generator=generator, dtype=torch.float64)


def forward_case() -> ForwardCase:
    """A velocity near the target; levels from 0.02 to 1; advantages at 0, inside the range, at its end and beyond."""
    x0, noise = _noise(1), _noise(2)
    old = noise - x0 + 0.6 * _noise(3)
    return ForwardCase(
        velocity=old + 0.3 * _noise(4),
        old_velocity=old,
        x0=x0,
        noise=noise,
        sigma=torch.tensor([0.02, 0.25, 0.5, 0.75, 0.9, 1.0], dtype=torch.float64),
        advantage=torch.tensor([1.3, 0.0, -0.8, 5.0, -2.4, 11.0], dtype=torch.float64),
    )


def transition_case() -> TransitionCase:
    """A policy that moved; the KL of pair 1 is small. Both signs of the advantage, and of where the ratio went."""
    old_mean = _noise(5)
    sigma = torch.tensor([1.0, 0.9, 0.75, 0.6, 0.4, 0.2], dtype=torch.float64)
    sigma_next = torch.tensor([0.9, 0.75, 0.6, 0.4, 0.2, 0.05], dtype=torch.float64)
    std = 0.4 * (sigma - sigma_next).sqrt()
    size = torch.tensor([0.05, 1e-4, 0.03, 0.05, -0.02, 0.04], dtype=torch.float64)
    return TransitionCase(
        x_next=old_mean + std[:, None, None] * _noise(6),
        mean=old_mean + size[:, None, None] * _noise(7),
        old_mean=old_mean,
        std=std,
        sigma=sigma,
        sigma_next=sigma_next,
        advantage=torch.tensor([1.0, 1.0, -1.0, -0.5, 2.0, -2.0], dtype=torch.float64),
    )


def golden() -> dict[str, dict[str, list[float]]]:
    """The recorded numbers by case, without their sources."""
    numbers: dict[str, dict[str, list[float]]] = json.loads(GOLDEN.read_text())["numbers"]
    return numbers
