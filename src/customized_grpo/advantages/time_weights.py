"""Time weights: how much each axis counts at each step of the sampler. Each is ``num_steps -> [T, Q]``.

Dimensions: T sampler steps, k = 0 .. T-1 from noise to data; Q axes (prompt, identity), in this order.
"""

from typing import Literal, Self

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, model_validator
from torch import Tensor


def tdw(
    num_steps: int,
    *,
    high: float = 0.7,
    low: float = 0.3,
    final: float = 0.5,
    start: float = 0.24,
    stop: float = 0.56,
    integrate: float = 0.88,
    slope: float = 20.0,
) -> Float[Tensor, "t q"]:
    """Time-aware dynamic weighting (Customized-GRPO, arXiv 2510.18263): prompt first, then identity, then both.

    With progress u = k / T, w_prompt is ``high`` for u < start, ``final`` for u >= integrate, and between them
    low + (high - low) (1 - sigmoid(slope (u - (start + stop) / 2))); w_identity = 1 - w_prompt. At T = 25 the
    defaults are the paper's table: 0.7 below step 6, 0.5 from step 22 on, and in between a sigmoid of 0.8 a step
    around step 10.
    """
    k = torch.arange(num_steps, dtype=torch.float64)
    u = k / num_steps
    prompt = low + (high - low) * (1 - torch.sigmoid(slope * (u - (start + stop) / 2)))
    # a break point that is a whole step belongs to the later stage, whichever way start * T was rounded
    prompt = torch.where(k < start * num_steps - 1e-9, high, prompt)
    prompt = torch.where(k < integrate * num_steps - 1e-9, prompt, final)
    return torch.stack([prompt, 1 - prompt], dim=1).float()


def constant(num_steps: int, *, prompt: float = 0.5, identity: float = 0.5) -> Float[Tensor, "t q"]:
    """The same weights at every step, as they are: 0.4 and 0.6 is the ratio 1:1.5 at the size of 0.5 and 0.5."""
    return torch.tensor([[prompt, identity]], dtype=torch.float32).repeat(num_steps, 1)


def table(num_steps: int, *, rows: tuple[tuple[float, float], ...]) -> Float[Tensor, "t q"]:
    """Any weights, one (prompt, identity) row a step.

    Raises:
        ValueError: not one row for each of the ``num_steps`` steps.
    """
    if len(rows) != num_steps:
        raise ValueError(
            f"time_weights.rows: given {len(rows)} rows for {num_steps} sampler steps; "
            "give one [prompt, identity] row a step, or change sampling.steps"
        )
    return torch.tensor(rows, dtype=torch.float32)


class _TimeWeights(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TDW(_TimeWeights):
    """Time-aware dynamic weighting (the paper): the prompt early, the identity later."""

    type: Literal["tdw"] = "tdw"
    high: float = Field(default=0.7, ge=0.0, le=1.0, description="prompt's weight at the start")
    low: float = Field(default=0.3, ge=0.0, le=1.0, description="what it falls towards")
    final: float = Field(default=0.5, ge=0.0, le=1.0, description="prompt's weight at the end")
    start: float = Field(default=0.24, ge=0.0, le=1.0)
    stop: float = Field(default=0.56, ge=0.0, le=1.0)
    integrate: float = Field(default=0.88, ge=0.0, le=1.0)
    slope: PositiveFloat = 20.0

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not self.start <= self.stop <= self.integrate:
            raise ValueError(
                f"start <= stop <= integrate is needed; given {self.start}, {self.stop}, {self.integrate}"
            )
        return self

    def __call__(self, num_steps: int) -> Float[Tensor, "t q"]:
        """``tdw``."""
        return tdw(
            num_steps,
            high=self.high,
            low=self.low,
            final=self.final,
            start=self.start,
            stop=self.stop,
            integrate=self.integrate,
            slope=self.slope,
        )


class Constant(_TimeWeights):
    """The same weights at every step."""

    type: Literal["constant"] = "constant"
    prompt: NonNegativeFloat = 0.5
    identity: NonNegativeFloat = 0.5

    def __call__(self, num_steps: int) -> Float[Tensor, "t q"]:
        """``constant``."""
        return constant(num_steps, prompt=self.prompt, identity=self.identity)


class Table(_TimeWeights):
    """Your own weights, one row a step."""

    type: Literal["table"] = "table"
    rows: tuple[tuple[NonNegativeFloat, NonNegativeFloat], ...]

    def __call__(self, num_steps: int) -> Float[Tensor, "t q"]:
        """``table``."""
        return table(num_steps, rows=self.rows)
