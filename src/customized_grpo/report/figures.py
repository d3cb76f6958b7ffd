"""Figures of the report, made from the data of the runs, each with title, caption and text alternative."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from customized_grpo.report.folders import RunFolder
from customized_grpo.report.plane import plane_figure
from customized_grpo.report.plots import FigureView, Line, LineStyle, lines, smooth

_SHARES: Final = (
    ("advantage/share_synergy", "both up"),
    ("advantage/share_conflict", "in conflict"),
    ("advantage/share_both_down", "both down"),
)
_HEALTH: Final = (
    (
        "ratio/max_abs_log",
        "Largest |log-ratio|",
        "Largest distance of the updated policy from the one that sampled.",
    ),
    ("ratio/clip_share", "Share of clipped ratios", "Samples that the clip keeps out of the gradient."),
    ("grad/norm", "Gradient norm", "Before clipping."),
)
_LEARNT: Final = (
    ("loss/surrogate", "Loss", "Of the pictures that a supervised run learns from, each step at other noise levels."),
    ("dpo/margin", "Margin", "By how much likelier the chosen picture became than the rejected one, against the base."),
    ("dpo/accuracy", "Pairs in order", "Share of the pairs whose chosen picture became the likelier one."),
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
_AXIS_STYLES: Final[tuple[tuple[LineStyle, str], ...]] = (
    ("-", "Solid"),
    ("--", "dashed"),
    (":", "dotted"),
    ("-.", "dash-dotted"),
)
"""Styles of prompt, identity, and further axes in their order, which share the last one where they are many."""
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
        "The same times the step's pull on the gradient: what the update really follows. Scaled so that all "
        "axes together have mean 1.",
    ),
)


def all_figures(
    runs: Sequence[RunFolder],
    summaries: Sequence[Mapping[str, Any] | None],
    axes: Mapping[str, str],
    sections: Collection[str] | None = None,
) -> dict[str, list[FigureView]]:
    """Figures by section; a section without data is an empty list.

    Args:
        runs: to draw.
        summaries: of their evaluations.
        axes: axis to its held-out column.
        sections: which are drawn; None: all.
    """
    rewards = _rewards(runs)
    makers: dict[str, Callable[[], list[FigureView]]] = {
        "heldout": lambda: _heldout(runs, axes),
        "rewards": lambda: rewards,
        "learnt": lambda: [] if rewards else _learnt(runs),
        "planes": lambda: _planes(runs, summaries, axes),
        "conflict": lambda: _conflict(runs),
        "weights": lambda: _weights(runs),
        "health": lambda: [
            view
            for key, title, note in _HEALTH
            if any(len(set(run.series(key)[1])) > 1 for run in runs)  # a constant needs no chart
            for view in _over_steps(runs, key, title, note, log=key == "ratio/max_abs_log")
        ],
    }
    return {name: make() for name, make in makers.items() if sections is None or name in sections}


def _planes(
    runs: Sequence[RunFolder], summaries: Sequence[Mapping[str, Any] | None], axes: Mapping[str, str]
) -> list[FigureView]:
    """Identity against every metric of the prompt, as the paper's figure uses HPSv3 and UNO's table CLIP-T; and against
    those of further axes.
    """
    if "identity" not in axes:
        return []
    others = [axis for axis in axes if axis != "identity"]
    columns = [one for axis in others for one in (axes[axis], *(c for run in runs for c in run.axis_columns(axis)))]
    return [
        view
        for number, column in enumerate(dict.fromkeys(columns))
        for view in plane_figure(runs, summaries, (axes["identity"], column), f"plane{number or ''}")
    ]


def _heldout(runs: Sequence[RunFolder], axes: Mapping[str, str]) -> list[FigureView]:
    columns = list(dict.fromkeys(column for run in runs for _, values in run.curve for column in values))
    columns.sort(key=lambda column: [*axes.values(), column].index(column))
    views = []
    for i, column in enumerate(columns):
        curves = []
        for colour, run in enumerate(runs):
            points = [(step, values[column]) for step, values in run.curve if column in values]
            if points:
                steps, bounds = zip(*points, strict=True)
                means = [value.mean for value in bounds]
                curves.append(Line(label=run.name, x=steps, y=means, colour=colour, bounds=bounds, markers=True))
        title = column.replace("_", " ").capitalize()
        ends = "; ".join(
            f"{line.label}: {line.y[0]:.3f} at step {line.x[0]}, {line.y[-1]:.3f} at step {line.x[-1]}"
            for line in curves
        )
        svg = lines(f"heldout{i}", curves, x="training step", y="mean, band: 95 % interval")
        views.append(FigureView(title, svg, "", f"Held-out {title} over the steps. {ends}."))
    return views


def _rewards(runs: Sequence[RunFolder]) -> list[FigureView]:
    # The mean of an axis with one reward repeats that reward; the reward is what is optimised.
    axes = {f"reward/{axis}/mean" for run in runs for axis in run.axes}
    keys = [key for run in runs for key in run.keys("reward/") if key.endswith("/mean") and key not in axes]
    return [
        view
        for key in dict.fromkeys(keys)
        for view in _over_steps(runs, key, _reward_title(runs, key), "", unit="mean of the step")
    ]


def _learnt(runs: Sequence[RunFolder]) -> list[FigureView]:
    """What a supervised run has in place of rewards."""
    return [view for key, title, note in _LEARNT for view in _over_steps(runs, key, title, note)]


def _reward_title(runs: Sequence[RunFolder], key: str) -> str:
    """Title of a reward: its key in the recipe and its axis."""
    name = key.split("/")[1]
    axes = (run.get("rewards", name, "axis") for run in runs)
    return next((f"{name} ({axis})" for axis in axes if axis), name)


def _over_steps(
    runs: Sequence[RunFolder],
    key: str,
    title: str,
    caption: str,
    *,
    log: bool = False,
    zero: bool = False,
    unit: str = "",
) -> list[FigureView]:
    """One key of ``metrics.jsonl`` over the steps, raw and smoothed, one colour per run; empty without data."""
    curves = []
    for colour, run in enumerate(runs):
        x, y = run.series(key)
        if x and (not log or max(y) > 0.0):
            shown = [value if value > 0.0 else float("nan") for value in y] if log else y
            curves.append(Line(label=run.name, x=x, y=smooth(shown), faint=shown, colour=colour))
    if not curves:
        return []
    name = "".join(letter for letter in key if letter.isalnum())
    ends = "; ".join(f"{line.label}: from {line.y[0]:.3g} to {line.y[-1]:.3g}" for line in curves)
    svg = lines(name, curves, x="training step", y=unit, log=log, zero=zero)
    return [FigureView(title, svg, caption, f"{title} over the steps. {ends}.")]


def _conflict(runs: Sequence[RunFolder]) -> list[FigureView]:
    views = [view for key, title, note in _CONFLICT for view in _over_steps(runs, key, title, note, zero=True)]
    for key in dict.fromkeys(key for run in runs for key in run.keys("advantage/correlation/")):
        one, other = key.split("/")[2:]
        views += _over_steps(runs, key, f"Correlation of {one} and {other}", "Inside a group.", zero=True)
    if len(runs) == 1:
        curves = []
        styles: tuple[LineStyle, ...] = ("-", "--", ":")
        for i, (key, name) in enumerate(_SHARES):
            x, y = runs[0].series(key)
            if x:
                curves.append(Line(label=name, x=x, y=smooth(y), colour=i, style=styles[i]))
        if curves:
            svg = lines("shares", curves, x="training step", y="share of the samples", legend=True)
            last = ", ".join(f"{line.label} {line.y[-1]:.0%}" for line in curves)
            note = "Samples that are above their group's mean on both axes, on one, or on none."
            views.append(FigureView("Synergy and conflict", svg, note, f"Shares of the samples; at the end {last}."))
    else:
        for key, name in _SHARES:
            views += _over_steps(runs, key, f"Share {name}", "")
    note = "Groups in which this reward is constant, so that it teaches nothing."
    rewards = dict.fromkeys(key for run in runs for key in run.keys("reward/"))
    for key in (key for key in rewards if key.endswith("/zero_variance_share")):
        if any(value > 0.0 for run in runs for value in run.series(key)[1]):
            views += _over_steps(runs, key, f"Groups without variance: {key.split('/')[1]}", note)
    return views


def _weights(runs: Sequence[RunFolder]) -> list[FigureView]:
    """Last logged weight and effective weight of each axis at each trained sampler step."""
    views: list[FigureView] = []
    drawn: list[list[float]] = []
    alone = len(runs) == 1
    axes = dict.fromkeys(axis for run in runs for axis in run.axes)
    styles = {axis: _AXIS_STYLES[min(j, len(_AXIS_STYLES) - 1)] for j, axis in enumerate(axes)}
    for name, title, caption in _WEIGHTS:
        curves = []
        for i, run in enumerate(runs):
            for j, (axis, (style, _)) in enumerate(styles.items()):
                if points := _last_weights(run, f"{name}/{axis}/step_"):
                    label, colour = (axis, j) if alone else (f"{run.name}, {axis}", i)
                    steps, weights = zip(*points, strict=True)
                    curves.append(Line(label=label, x=steps, y=weights, colour=colour, style=style, markers=True))
        points_of = [round(y, 2) for line in curves for y in line.y]
        if curves and points_of in drawn:  # steps that pull alike
            views[-1] = replace(views[-1], caption=f"{views[-1].caption} The {title.lower()} are the same.")
        elif curves:
            drawn.append(points_of)
            svg = lines(name, curves, x="sampler step, from noise to image", y="weight in the advantage", legend=alone)
            caption += "" if alone else f" {', '.join(f'{word}: {axis}' for axis, (_, word) in styles.items())}."
            ends = "; ".join(f"{line.label}: from {line.y[0]:.2f} to {line.y[-1]:.2f}" for line in curves)
            views.append(FigureView(title, svg, caption, f"{title} over the sampler's steps. {ends}."))
    return views


def _last_weights(run: RunFolder, prefix: str) -> list[tuple[int, float]]:
    """(sampler step, weight) in order, of the keys that are ``prefix`` and a step's number."""
    found = ((key.removeprefix(prefix), run.series(key)[1]) for key in run.keys(prefix))
    return sorted((int(step), values[-1]) for step, values in found if step.isdecimal() and values)
