"""The plane of identity against the prompt or another axis: path of each run, intervals at its ends, baselines."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from customized_grpo.evaluation.statistics import Interval
from customized_grpo.report.folders import RunFolder
from customized_grpo.report.plots import FigureView, Path2D, Point2D, plane
from customized_grpo.report.slider import along, name_of

_TRAINED: Final = "Hollow circle: the base; dots: evaluations during training; filled circle: the last one. "
_SLIDER: Final = "Dots: one balanced adapter at several b, from the prompt's side to the identity's. "


def plane_figure(
    runs: Sequence[RunFolder],
    summaries: Sequence[Mapping[str, Any] | None],
    columns: tuple[str, str],
    name: str,
) -> list[FigureView]:
    """The figure; empty if no run has both columns.

    A run's path goes through its evaluations during training, or from base to tuned of its summary.

    Args:
        columns: held-out columns of identity and of another axis.
        name: name of the figure, unique on the page.
    """
    paths: list[Path2D] = []
    points: list[Point2D] = []
    slider = along(runs)
    for colour, (run, summary) in enumerate(zip(runs, summaries, strict=True)):
        rows = {row["name"]: row["metrics"] for row in (summary or {"rows": []})["rows"]}
        if not slider and (way := _way(run, rows, columns)):
            paths.append(Path2D(label=run.name, points=way, colour=colour))
        for row, metrics in rows.items():
            label = row.replace("_", " ")
            # beside a path over b a copied reference would be so far away that the path is a spot
            aside = row in ("base", "tuned") if not slider else row != "base"
            if not aside and label not in {p.label for p in points}:
                x, y = (_interval(metrics.get(column)) for column in columns)
                if x is not None:
                    points.append(Point2D(label=label, x=x, y=y))
        points += [] if slider else _published(summary or {}, columns, {point.label for point in points})
    if slider:
        paths += _over_balances(slider, [summaries[runs.index(run)] for run in slider], columns)
    if not paths:
        return []
    first, second = (column.replace("_", " ") for column in columns)
    svg = plane(name, paths, points, x=f"{first} →", y=f"↑ {second}")
    ends = "; ".join(f"{path.label}: from {_at(path.points[0])} to {_at(path.points[-1])}" for path in paths)
    caption = f"Up and to the right is better on both. {_SLIDER if slider else _TRAINED}Bars are 95 % intervals."
    if not slider:
        caption += f" A path that runs to the right and down buys {first} with {second}."
    if any(point.y is None for point in points):
        caption += " A dashed line has no second axis: it is the identity of real photos with each other."
    if any(point.published for point in points):
        caption += " Squares are published numbers, not measured here."
    alt = f"Path of each run as ({first}, {second}). {ends}."
    return [FigureView(f"{first} against {second}", svg, caption, alt)]


def _over_balances(
    runs: Sequence[RunFolder], summaries: Sequence[Mapping[str, Any] | None], columns: tuple[str, str]
) -> list[Path2D]:
    """The path of one balanced adapter over b; none where a point was not measured."""
    points = []
    for summary in summaries:
        metrics = {row["name"]: row["metrics"] for row in (summary or {"rows": []})["rows"]}.get("tuned", {})
        x, y = (_interval(metrics.get(column)) for column in columns)
        if x is None or y is None:
            return []
        points.append((x, y))
    marks = [name_of(run) for run in runs]
    return [Path2D(label=f"{marks[0]} to {marks[-1]}", points=points, colour=0, marks=marks)]


def _at(point: tuple[Interval, Interval]) -> str:
    return f"({point[0].mean:.3f}, {point[1].mean:.3f})"


def _published(summary: Mapping[str, Any], columns: tuple[str, str], taken: set[str]) -> list[Point2D]:
    """Published numbers, if they are comparable with the measured ones."""
    if summary.get("departures"):
        return []
    first, second = columns
    return [
        Point2D(label=one["name"], x=_exact(numbers[first]), y=_exact(numbers[second]), published=True)
        for one in summary.get("published", [])
        if set(columns) <= (numbers := one["metrics"]).keys() and one["name"] not in taken
    ]


def _way(
    run: RunFolder, rows: Mapping[str, Mapping[str, Any]], columns: tuple[str, str]
) -> list[tuple[Interval, Interval]]:
    first, second = columns
    way = [(values[first], values[second]) for _, values in run.curve if set(columns) <= values.keys()]
    if len(way) > 1:
        return way
    ends = [rows[name] for name in ("base", "tuned") if name in rows]
    found = [(_interval(metrics.get(first)), _interval(metrics.get(second))) for metrics in ends]
    return [(x, y) for x, y in found if x is not None and y is not None] or way


def _exact(value: float) -> Interval:
    return Interval(value, math.nan, math.nan, 0)


def _interval(metrics: Mapping[str, Any] | None) -> Interval | None:
    """None if nothing was measured."""
    if metrics is None or metrics["mean"] is None:
        return None
    mean, low, high = (math.nan if metrics[key] is None else float(metrics[key]) for key in ("mean", "low", "high"))
    return Interval(mean, low, high, int(metrics["n"]))
