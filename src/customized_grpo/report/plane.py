"""The identity-versus-prompt plane: path of each run with intervals at its ends, and baselines."""

from collections.abc import Mapping, Sequence
from typing import Any

from customized_grpo.evaluation.statistics import Interval
from customized_grpo.report.folders import RunFolder
from customized_grpo.report.plots import FigureView, Path2D, Point2D, plane


def plane_figure(
    runs: Sequence[RunFolder],
    summaries: Sequence[Mapping[str, Any] | None],
    columns: tuple[str, str],
    name: str,
) -> FigureView | None:
    """The figure, or None if no run has both columns.

    A run's path goes through its evaluations during training, or from base to tuned of its summary.

    Args:
        columns: held-out columns of identity and prompt.
        name: name of the figure, unique on the page.
    """
    paths: list[Path2D] = []
    points: list[Point2D] = []
    for colour, (run, summary) in enumerate(zip(runs, summaries, strict=True)):
        rows = {row["name"]: row["metrics"] for row in (summary or {"rows": []})["rows"]}
        if way := _way(run, rows, columns):
            identity, prompt = zip(*way, strict=True)
            paths.append(
                Path2D(
                    label=run.name,
                    x=[value.mean for value in identity],
                    y=[value.mean for value in prompt],
                    x_bounds=[(value.low, value.high) for value in identity],
                    y_bounds=[(value.low, value.high) for value in prompt],
                    colour=colour,
                )
            )
        for row, metrics in rows.items():
            label = row.replace("_", " ")
            if row not in ("base", "tuned") and label not in {p.label for p in points}:
                found = [metrics.get(column) for column in columns]
                if found[0] and found[0]["mean"] is not None:
                    points.append(_baseline(label, found[0], found[1]))
        points += _published(summary or {}, columns, {point.label for point in points})
    if not paths:
        return None
    first, second = (column.replace("_", " ") for column in columns)
    svg = plane(name, paths, points, x=f"{first} →", y=f"↑ {second}")
    ends = "; ".join(
        f"{p.label}: from ({p.x[0]:.3f}, {p.y[0]:.3f}) to ({p.x[-1]:.3f}, {p.y[-1]:.3f})" for p in paths
    )
    caption = (
        "Up and to the right is better on both. Hollow circle: the base; dots: evaluations during training; "
        "filled circle: the last one. "
        "Bars are 95 % intervals. A path that runs to the right and down buys identity with prompt following."
    )
    if any(point.y is None for point in points):
        caption += " A dashed line has no prompt: it is the identity of real photos with each other."
    if any(point.published for point in points):
        caption += " Squares are published numbers, not measured here."
    return FigureView(
        f"{first} against {second}", svg, caption, f"Path of each run as ({first}, {second}). {ends}."
    )


def _baseline(label: str, identity: Mapping[str, Any], prompt: Mapping[str, Any] | None) -> Point2D:
    x, y = _interval(identity), _interval(prompt) if prompt and prompt["mean"] is not None else None
    return Point2D(
        label=label,
        x=x.mean,
        y=None if y is None else y.mean,
        x_bounds=(x.low, x.high),
        y_bounds=None if y is None else (y.low, y.high),
    )


def _published(summary: Mapping[str, Any], columns: tuple[str, str], taken: set[str]) -> list[Point2D]:
    """Published numbers, if they are comparable with the measured ones."""
    if summary.get("departures"):
        return []
    return [
        Point2D(label=one["name"], x=one["metrics"][columns[0]], y=one["metrics"][columns[1]], published=True)
        for one in summary.get("published", [])
        if set(columns) <= one["metrics"].keys() and one["name"] not in taken
    ]


def _way(
    run: RunFolder, rows: Mapping[str, Mapping[str, Any]], columns: tuple[str, str]
) -> list[tuple[Interval, Interval]]:
    first, second = columns
    way = [(values[first], values[second]) for _, values in run.curve if set(columns) <= values.keys()]
    if len(way) > 1:
        return way
    ends = [rows[name] for name in ("base", "tuned") if name in rows and set(columns) <= rows[name].keys()]
    return [(_interval(metrics[first]), _interval(metrics[second])) for metrics in ends] or way


def _interval(metrics: Mapping[str, Any]) -> Interval:
    nan = float("nan")
    mean, low, high = (
        nan if metrics[key] is None else float(metrics[key]) for key in ("mean", "low", "high")
    )
    return Interval(mean, low, high, int(metrics["n"]))
