"""What is measured on held-out images: metrics with several named values, and every reward as a metric of one value."""

import asyncio
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from pydantic import BaseModel
from torch import Tensor

from customized_grpo import registry
from customized_grpo.rewards.base import AsyncReward, Reward
from customized_grpo.types import Example


class Metric(ABC):
    """A judge that gives one or several named values an image. Training never sees it.

    Example:
        ``MiniOracle(config, device=device)(example, images)["identity_accuracy"]`` has shape (g,).
    """

    Config: ClassVar[type[BaseModel]]

    @abstractmethod
    def __init__(self, config: Any, *, device: torch.device) -> None:
        """Load the frozen judge named by ``config`` onto ``device``."""

    @abstractmethod
    def __call__(
        self, example: Example, images: UInt8[Tensor, "g h w 3"]
    ) -> Mapping[str, Float[Tensor, " g"]]:
        """Column name to one float32 value an image, on the CPU; NaN where an image is not measurable."""


Scorer = Metric | Reward | AsyncReward


def build_metrics(specs: Mapping[str, BaseModel], device: torch.device) -> dict[str, Scorer]:
    """Build what ``evaluate.metrics`` names: a type is looked up among the metrics first, then among the rewards.

    Raises:
        ValueError: the plug-in is neither a ``Metric`` nor a reward, or its model is not there.
    """
    built: dict[str, Scorer] = {}
    for name, spec in specs.items():
        given = registry.type_of(spec)
        kind: registry.Kind = "metrics" if given in registry.available("metrics") else "rewards"
        try:
            plugin = registry.resolve(kind, given)(spec, device=device)
        except ValueError as error:
            raise ValueError(f"evaluate.metrics.{name}: {error}") from error
        if not isinstance(plugin, Metric | Reward | AsyncReward):
            raise ValueError(
                f"evaluate.metrics.{name}: {given!r} is a {type(plugin).__name__}; "
                "a metric is a subclass of Metric, Reward or AsyncReward"
            )
        built[name] = plugin
    return built


def score(
    metrics: Mapping[str, Scorer], example: Example, images: UInt8[Tensor, "g h w 3"]
) -> dict[str, list[float]]:
    """Every column of every metric on the g images of one example.

    Returns:
        Column to g values, NaN where not measurable. A reward gives one column, called by its key in the recipe; a
        ``Metric`` gives the columns that it returns.

    Raises:
        ValueError: two metrics give a column of the same name.
    """
    columns: dict[str, list[float]] = {}
    for name, metric in metrics.items():
        for column, values in _columns(name, metric, example, images).items():
            if column in columns:
                raise ValueError(
                    f"evaluate.metrics.{name}: the column {column!r} is already given by another metric"
                )
            assert len(values) == len(images)
            columns[column] = values
    return columns


def _columns(name: str, metric: Scorer, example: Example, images: Tensor) -> dict[str, list[float]]:
    if isinstance(metric, Metric):
        return {
            column: [float(v) for v in values.tolist()] for column, values in metric(example, images).items()
        }
    if isinstance(metric, Reward):
        return {name: [float(v) for v in metric(example, images).tolist()]}
    return {name: asyncio.run(_judge(metric, example, images))}


async def _judge(judge: AsyncReward, example: Example, images: Tensor) -> list[float]:
    pictures = [Image.fromarray(image.numpy()) for image in images.cpu()]
    answers = await asyncio.gather(*(judge(example, picture) for picture in pictures), return_exceptions=True)
    # A failed call is not measurable; it lowers the n that the summary shows, never the mean.
    return [math.nan if isinstance(answer, BaseException) else float(answer) for answer in answers]
