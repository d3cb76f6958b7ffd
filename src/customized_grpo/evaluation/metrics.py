"""Metrics on held-out images: each gives several named values; every reward is a metric of one value."""

import asyncio
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float, UInt8
from pydantic import BaseModel
from torch import Tensor

from customized_grpo import registry
from customized_grpo.rewards.base import AsyncGroupReward, AsyncReward, Reward, RewardFailure, close
from customized_grpo.rewards.features import to_pil
from customized_grpo.scoring import requests
from customized_grpo.scoring.requests import Outcome
from customized_grpo.scoring.scorer import score_locally
from customized_grpo.types import Example


class Metric(ABC):
    """A metric with one or several named values per image. Training never sees it.

    Example:
        ``MiniOracle(config, device=device)(example, images)["identity_accuracy"]`` has shape (g,).
    """

    Config: ClassVar[type[BaseModel]]

    @abstractmethod
    def __init__(self, config: Any, *, device: torch.device) -> None:
        """Load the frozen model named by ``config`` onto ``device``."""

    @abstractmethod
    def __call__(self, example: Example, images: UInt8[Tensor, "g h w 3"]) -> Mapping[str, Float[Tensor, " g"]]:
        """Column name to one float32 value per image, on the CPU; NaN where an image is not measurable."""


AnyMetric = Metric | Reward | AsyncReward | AsyncGroupReward


def build_metrics(specs: Mapping[str, BaseModel], device: torch.device) -> dict[str, AnyMetric]:
    """Build the metrics of ``evaluate.metrics``; a type is looked up among metrics first, then among rewards.

    Raises:
        ValueError: the plug-in is neither a ``Metric`` nor a reward, or its model is missing.
    """
    built: dict[str, AnyMetric] = {}
    for name, spec in specs.items():
        given = registry.type_of(spec)
        kind: registry.Kind = "metrics" if given in registry.available("metrics") else "rewards"
        try:
            plugin = registry.resolve(kind, given)(spec, device=device)
        except BaseException as error:
            close(built)
            if isinstance(error, ValueError):
                raise ValueError(f"evaluate.metrics.{name}: {error}") from error
            raise
        if not isinstance(plugin, AnyMetric):
            raise ValueError(
                f"evaluate.metrics.{name}: {given!r} is a {type(plugin).__name__}; "
                "a metric is a subclass of Metric, Reward, AsyncReward or AsyncGroupReward"
            )
        built[name] = plugin
        if isinstance(plugin, AsyncGroupReward) and plugin.relative:
            close(built)
            raise ValueError(
                f"evaluate.metrics.{name}: {given!r} compares the images of an example with each other, so its mean is "
                "the same for every model; take a metric that scores each image, such as 'vlm'"
            )
    return built


@final
@dataclass(frozen=True, slots=True)
class Scores:
    """Metric values of one example's images.

    Attributes:
        values: column to g values, NaN where not measurable; the mean over successful runs if there are several.
        runs: column to g lists of one value per run, for metrics with several runs.
        errors: metric to the first reason for a missing value, for metrics with missing values.
    """

    values: Mapping[str, Sequence[float]]
    runs: Mapping[str, Sequence[Sequence[float]]]
    errors: Mapping[str, str]


def score(
    metrics: Mapping[str, AnyMetric],
    example: Example,
    images: UInt8[Tensor, "g h w 3"],
    *,
    runs: Mapping[str, int] | None = None,
    products: Mapping[str, tuple[str, str]] | None = None,
    known: Mapping[str, list[list[float]]] | None = None,
) -> Scores:
    """Compute every column of every metric on the g images of one example.

    A reward gives one column, named by its key in the recipe; a ``Metric`` gives the columns that it returns.

    Args:
        runs: number of runs of a stochastic metric. The run's number is in ``example.extra["run"]``, so that a metric
            that caches its answers can tell the runs apart.
        products: name of a derived column to the two columns that are multiplied, per image and per run.
        known: answers of metrics that aren't asked again: metric to one list of runs per image.

    Raises:
        ValueError: two metrics give a column of the same name, or a product names unknown columns.
    """
    columns: dict[str, list[list[float]]] = {}
    errors: dict[str, str] = {}
    for name, metric in metrics.items():
        if known is not None and name in known:
            columns[name] = known[name]
            continue
        count = (runs or {}).get(name, 1)
        for column, values in _all_runs(name, metric, example, images, count, errors).items():
            if column in columns:
                raise ValueError(f"evaluate.metrics.{name}: the column {column!r} is already given by another metric")
            columns[column] = values
    for name, pair in (products or {}).items():
        columns[name] = _product(name, pair, columns)
    return Scores(
        values={column: [_mean(one) for one in values] for column, values in columns.items()},
        runs={column: values for column, values in columns.items() if values and len(values[0]) > 1},
        errors=errors,
    )


def _all_runs(
    name: str, metric: AnyMetric, example: Example, images: Tensor, count: int, errors: dict[str, str]
) -> dict[str, list[list[float]]]:
    """Column to one list of runs per image."""
    if isinstance(metric, AsyncReward):
        # All requests of an example are concurrent, up to the judge's own limit.
        questions = [(one.copy(), picture.copy()) for picture in to_pil(images) for one in _numbered(example, count)]
        outcome = asyncio.run(requests.ask_singly(metric, questions, requests.limit(metric)))
        values = _values(name, outcome, errors)
        return {name: [values[at : at + count] for at in range(0, len(values), count)]}
    answers = [_columns(name, metric, one, images, errors) for one in _numbered(example, count)]
    return {
        column: [list(one) for one in zip(*(answer[column] for answer in answers), strict=True)]
        for column in answers[0]
    }


def _numbered(example: Example, count: int) -> list[Example]:
    """One copy of the example per run, numbered if there are several."""
    if count == 1:
        return [example]
    return [replace(example, extra={**example.extra, "run": run}) for run in range(count)]


def _product(name: str, pair: tuple[str, str], columns: Mapping[str, Sequence[Sequence[float]]]) -> list[list[float]]:
    if lost := [column for column in pair if column not in columns]:
        raise ValueError(
            f"evaluate.products.{name}: there is no column {lost[0]!r};{registry.did_you_mean(lost[0], list(columns))} "
            f"allowed: {', '.join(columns)}"
        )
    first, second = (columns[column] for column in pair)
    if any(len(a) != len(b) for a, b in zip(first, second, strict=True)):
        raise ValueError(
            f"evaluate.products.{name}: {pair[0]!r} and {pair[1]!r} ran a different number of times; set both in runs"
        )
    return [[x * y for x, y in zip(a, b, strict=True)] for a, b in zip(first, second, strict=True)]


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan


def _columns(
    name: str,
    metric: Metric | Reward | AsyncGroupReward,
    example: Example,
    images: Tensor,
    errors: dict[str, str],
) -> dict[str, list[float]]:
    if isinstance(metric, Metric):
        return _measured(name, metric, example, images)
    if isinstance(metric, AsyncGroupReward):
        outcome = asyncio.run(requests.ask_together(metric, example.copy(), to_pil(images), requests.limit(metric)))
    else:
        outcome = score_locally(name, metric, example, images)
    return {name: _values(name, outcome, errors)}


def _measured(name: str, metric: Metric, example: Example, images: Tensor) -> dict[str, list[float]]:
    """Columns of a metric; another package's mistakes are named with the metric and the example."""
    place = f"evaluate.metrics.{name} ({type(metric).__name__})"
    try:
        found = dict(metric(example.copy(), images.clone()))
    except Exception as error:
        raise RewardFailure(f"{place} failed on example {example.key!r}: {requests.describe(error)}") from error
    for column, values in found.items():
        if not isinstance(values, Tensor) or values.shape != (len(images),):
            given = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
            raise RewardFailure(
                f"{place} gave {given} as {column!r} for {len(images)} images; it must give a tensor ({len(images)},)"
            )
    return {column: [float(value) for value in values.tolist()] for column, values in found.items()}


def _values(name: str, outcome: Outcome, errors: dict[str, str]) -> list[float]:
    """Values with NaN where not measurable, which lowers the summary's n, never the mean; keeps the first reason."""
    if reasons := [reason for reason in outcome.reasons() if reason]:
        errors.setdefault(name, reasons[0])
    return [float(score) for score in outcome.scores]
