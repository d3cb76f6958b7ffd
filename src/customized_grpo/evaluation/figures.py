"""Which figures the report has, from the data of the runs: each with title, caption and a text alternative."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

from customized_grpo.config import AXES
from customized_grpo.evaluation.folders import RunFolder
from customized_grpo.evaluation.plots import Line, LineStyle, Path2D, Point2D, lines, plane, smooth
from customized_grpo.evaluation.statistics import Interval

_SHARES: Final = (
    ("advantage/share_synergy", "both up"),
    ("advantage/share_conflict", "in conflict"),
    ("advantage/share_both_down", "both down"),
)
_HEALTH: Final = (
    (
        "ratio/max_abs_log",
        "Largest |log-ratio|",
        "How far an update moves from the policy that sampled, at most.",
    ),
    ("ratio/clip_share", "Share of clipped ratios", "Samples that the clip keeps out of the gradient."),
    ("grad/norm", "Gradient norm", "Before clipping."),
)
_CONFLICT: Final = (
    (
        "advantage/correlation",
        "Correlation of the two advantages",
        "Prompt against identity inside a group. Below zero the goals pull apart.",
    ),
    (
        "advantage/bonus_mean",
        "Mean synergy bonus",
        "What SARS adds to the weighted sum; below zero it mostly penalises.",
    ),
)
_AXIS_STYLES: Final[tuple[tuple[str, LineStyle], ...]] = (("prompt", "-"), ("identity", "--"))
_WEIGHTS: Final = (
    (
        "weight",
        "Time weights",
        "How much each goal counts at each trained step. TDW weights the prompt early, while the layout "
        "forms, and identity after.",
    ),
    (
        "weight_effective",
        "Effective weights",
        "The same times the step's pull on the gradient: what the update really follows. Scaled so that both "
        "together have mean 1.",
    ),
)


@final
@dataclass(frozen=True, slots=True)
class FigureView:
    """A figure of the page. ``svg`` is markup made here and safe as it is; all other fields are plain text."""

    title: str
    svg: str
    caption: str
    alt: str


def all_figures(
    runs: Sequence[RunFolder], summaries: Sequence[Mapping[str, Any] | None], axes: Mapping[str, str]
) -> dict[str, Any]:
    """Figures by section; a section without data is an empty list (or None for the plane)."""
    return {
        "heldout": _heldout(runs, axes),
        "rewards": _rewards(runs),
        "plane": _plane(runs, summaries, axes),
        "conflict": _conflict(runs),
        "weights": _weights(runs),
        "health": [
            view
            for key, title, note in _HEALTH
            if (view := _over_steps(runs, key, title, note, log=key == "ratio/max_abs_log")) is not None
        ],
    }


def _heldout(runs: Sequence[RunFolder], axes: Mapping[str, str]) -> list[FigureView]:
    columns = list(dict.fromkeys(column for run in runs for _, values in run.curve for column in values))
    columns.sort(key=lambda column: [*axes.values(), column].index(column))
    views = []
    for i, column in enumerate(columns):
        curves = []
        for colour, run in enumerate(runs):
            points = [(step, values[column]) for step, values in run.curve if column in values]
            if points:
                curves.append(_interval_line(run.name, points, colour))
        title = column.replace("_", " ").capitalize()
        ends = "; ".join(
            f"{line.label}: {line.y[0]:.3f} at step {line.x[0]}, {line.y[-1]:.3f} at step {line.x[-1]}"
            for line in curves
        )
        svg = lines(f"heldout{i}", curves, x="GRPO step", y="mean, band: 95 % interval")
        views.append(FigureView(title, svg, "", f"Held-out {title} over the steps. {ends}."))
    return views


def _interval_line(name: str, points: Sequence[tuple[int, Interval]], colour: int) -> Line:
    values = [value for _, value in points]
    return Line(
        label=name,
        x=[step for step, _ in points],
        y=[value.mean for value in values],
        colour=colour,
        low=[value.low for value in values],
        high=[value.high for value in values],
        markers=True,
    )


def _rewards(runs: Sequence[RunFolder]) -> list[FigureView]:
    # An axis' mean repeats its reward's where it has one; what is optimised is the reward.
    axes = {f"reward/{axis}/mean" for axis in AXES}
    keys = [key for run in runs for key in run.keys("reward/") if key.endswith("/mean") and key not in axes]
    found = [
        _over_steps(runs, key, _reward_title(runs, key), "", unit="mean of the step")
        for key in dict.fromkeys(keys)
    ]
    return [view for view in found if view is not None]


def _reward_title(runs: Sequence[RunFolder], key: str) -> str:
    """A reward's key in the recipe and the axis that it feeds."""
    name = key.split("/")[1]
    for run in runs:
        rewards = run.config.get("rewards")
        spec = rewards.get(name) if isinstance(rewards, dict) else None
        if isinstance(spec, dict) and "axis" in spec:
            return f"{name} ({spec['axis']})"
    return name


def _over_steps(
    runs: Sequence[RunFolder],
    key: str,
    title: str,
    caption: str,
    *,
    log: bool = False,
    zero: bool = False,
    unit: str = "",
) -> FigureView | None:
    """One key of ``metrics.jsonl`` over the steps, raw and smoothed, a colour a run."""
    curves = []
    for colour, run in enumerate(runs):
        x, y = run.series(key)
        if x and (not log or max(y) > 0.0):
            shown = [value if value > 0.0 else float("nan") for value in y] if log else y
            curves.append(Line(label=run.name, x=x, y=smooth(shown), faint=shown, colour=colour))
    if not curves:
        return None
    name = "".join(letter for letter in key if letter.isalnum())
    ends = "; ".join(f"{line.label}: from {line.y[0]:.3g} to {line.y[-1]:.3g}" for line in curves)
    svg = lines(name, curves, x="GRPO step", y=unit, log=log, zero=zero)
    return FigureView(title, svg, caption, f"{title} over the steps. {ends}.")


def _conflict(runs: Sequence[RunFolder]) -> list[FigureView]:
    views = [_over_steps(runs, key, title, note, zero=True) for key, title, note in _CONFLICT]
    if len(runs) == 1:
        curves = []
        styles: tuple[LineStyle, ...] = ("-", "--", ":")
        for i, (key, name) in enumerate(_SHARES):
            x, y = runs[0].series(key)
            if x:
                curves.append(Line(label=name, x=x, y=smooth(y), colour=i, style=styles[i]))
        if curves:
            svg = lines("shares", curves, x="GRPO step", y="share of the samples", legend=True)
            last = ", ".join(f"{line.label} {line.y[-1]:.0%}" for line in curves)
            note = "Samples that are above their group's mean on both axes, on one, or on none."
            views.append(
                FigureView("Synergy and conflict", svg, note, f"Shares of the samples; at the end {last}.")
            )
    else:
        views += [_over_steps(runs, key, f"Share {name}", "") for key, name in _SHARES]
    note = "Groups in which this reward is constant, so that it teaches nothing."
    rewards = dict.fromkeys(key for run in runs for key in run.keys("reward/"))
    for key in (key for key in rewards if key.endswith("/zero_variance_share")):
        if any(value > 0.0 for run in runs for value in run.series(key)[1]):
            views.append(_over_steps(runs, key, f"Groups without variance: {key.split('/')[1]}", note))
    return [view for view in views if view is not None]


def _weights(runs: Sequence[RunFolder]) -> list[FigureView]:
    """Weight and effective weight of each axis at each trained sampler step, as last seen."""
    views = []
    for name, title, caption in _WEIGHTS:
        curves = [
            line
            for i, run in enumerate(runs)
            for j, (axis, style) in enumerate(_AXIS_STYLES)
            if (line := _weight_line(run, f"{name}/{axis}/step_", axis, style, i, j, alone=len(runs) == 1))
            is not None
        ]
        if curves:
            alone = len(runs) == 1
            svg = lines(
                name, curves, x="sampler step, from noise to image", y="weight in the advantage", legend=alone
            )
            caption += "" if alone else " Solid: prompt, dashed: identity."
            ends = "; ".join(f"{line.label}: from {line.y[0]:.2f} to {line.y[-1]:.2f}" for line in curves)
            views.append(FigureView(title, svg, caption, f"{title} over the sampler's steps. {ends}."))
    return views


def _weight_line(
    run: RunFolder,
    prefix: str,
    axis: str,
    style: LineStyle,
    run_colour: int,
    axis_colour: int,
    *,
    alone: bool,
) -> Line | None:
    last = {
        int(key.removeprefix(prefix)): run.series(key)[1][-1:]
        for key in run.keys(prefix)
        if key.removeprefix(prefix).isdecimal()
    }
    points = sorted((step, values[0]) for step, values in last.items() if values)
    if not points:
        return None
    return Line(
        label=axis if alone else f"{run.name}, {axis}",
        x=[step for step, _ in points],
        y=[weight for _, weight in points],
        colour=axis_colour if alone else run_colour,
        style=style,
        markers=True,
    )


def _plane(
    runs: Sequence[RunFolder], summaries: Sequence[Mapping[str, Any] | None], axes: Mapping[str, str]
) -> FigureView | None:
    if set(axes) != {"identity", "prompt"}:
        return None
    columns = (axes["identity"], axes["prompt"])
    paths: list[Path2D] = []
    points: list[Point2D] = []
    for colour, (run, summary) in enumerate(zip(runs, summaries, strict=True)):
        rows = {row["name"]: row["metrics"] for row in (summary or {"rows": []})["rows"]}
        way = [
            tuple(values[column] for column in columns)
            for _, values in run.curve
            if set(columns) <= values.keys()
        ]
        if len(way) < 2:
            named = [
                rows[name] for name in ("base", "tuned") if name in rows and set(columns) <= rows[name].keys()
            ]
            way = [tuple(_interval(metrics[column]) for column in columns) for metrics in named] or way
        if way:
            bounds = [[(value.low, value.high) for value in axis] for axis in zip(*way, strict=True)]
            paths.append(
                Path2D(
                    label=run.name,
                    x=[i.mean for i, _ in way],
                    y=[p.mean for _, p in way],
                    x_bounds=bounds[0],
                    y_bounds=bounds[1],
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


def _interval(metrics: Mapping[str, Any]) -> Interval:
    nan = float("nan")
    mean, low, high = (
        nan if metrics[key] is None else float(metrics[key]) for key in ("mean", "low", "high")
    )
    return Interval(mean, low, high, int(metrics["n"]))
