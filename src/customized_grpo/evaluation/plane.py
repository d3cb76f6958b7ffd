"""The identity-versus-prompt plane: each run's path, with intervals at its ends, and the baselines beside it."""

from collections.abc import Mapping, Sequence
from typing import Any

from customized_grpo.evaluation.folders import RunFolder
from customized_grpo.evaluation.plots import FigureView, Path2D, Point2D, plane
from customized_grpo.evaluation.statistics import Interval


def plane_figure(
    runs: Sequence[RunFolder], summaries: Sequence[Mapping[str, Any] | None], axes: Mapping[str, str]
) -> FigureView | None:
    """The figure, or None where a run has no held-out column for one of the axes.

    A run's path is that of its evaluations during training, or base to tuned of its summary.
    """
    if set(axes) != {"identity", "prompt"}:
        return None
    columns = (axes["identity"], axes["prompt"])
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
        for name, metrics in rows.items():
            x, y = (metrics.get(column, {}).get("mean") for column in columns)
            label = name.replace("_", " ")
            if (
                name not in ("base", "tuned")
                and None not in (x, y)
                and label not in {p.label for p in points}
            ):
                points.append(Point2D(label=label, x=x, y=y))
    if not paths:
        return None
    svg = plane(
        "plane", paths, points, x=f"{columns[0].replace('_', ' ')} →", y=f"↑ {columns[1].replace('_', ' ')}"
    )
    ends = "; ".join(
        f"{p.label}: from ({p.x[0]:.3f}, {p.y[0]:.3f}) to ({p.x[-1]:.3f}, {p.y[-1]:.3f})" for p in paths
    )
    caption = (
        "Up and to the right is better on both. Hollow circle: the base; dots: evaluations during training; "
        "filled circle: the last one. "
        "Bars are 95 % intervals. A path that runs to the right and down buys identity with prompt following."
    )
    return FigureView(
        "identity against prompt", svg, caption, f"Path of each run as (identity, prompt). {ends}."
    )


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
