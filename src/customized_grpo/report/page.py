"""Content of the report's page: plain values for the template, per run and for the comparison."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from customized_grpo.console import duration
from customized_grpo.evaluation.about import starts
from customized_grpo.evaluation.summary import build_summary
from customized_grpo.evaluation.tables import notes, unit_sentence
from customized_grpo.identity.runs import goes_on
from customized_grpo.report import differ, explain
from customized_grpo.report.compare import compare_runs
from customized_grpo.report.folders import RunFolder
from customized_grpo.report.gallery import Card, Group, gallery
from customized_grpo.report.samples import samples_of

_STRIP = 3
"""Examples under the headline."""


def axes_of(runs: Sequence[RunFolder]) -> dict[str, str]:
    """Axis to the held-out column that represents it in every run, identity first as in the paper's plane."""
    found: dict[str, str] = {}
    for axis in dict.fromkeys(("identity", *(axis for run in runs for axis in run.axes))):
        columns = [column for run in runs if (column := run.axis_column(axis))]
        if columns:
            found[axis] = columns[0]
    return found


def summary_of(run: RunFolder) -> Mapping[str, Any] | None:
    """The run's own summary, or, for a run in progress, one made from its rows."""
    if run.summary is not None:
        return run.summary
    base, tuned = run.ends
    if not (base and tuned):
        return None
    return build_summary(run.protocol.name, {"base": base, "tuned": tuned})


def view(run: RunFolder, summary: Mapping[str, Any] | None, axes: Mapping[str, str]) -> dict[str, Any]:
    """Values of one run's section of the page."""
    made = summary or {"rows": [], "differences": []}
    rows, change = _measured(made)
    columns = list(dict.fromkeys(column for metrics in rows.values() for column in metrics))
    # Columns of the axes come first, wherever the metric put them.
    columns.sort(key=lambda column: [*axes.values(), column].index(column))
    units = {column: _unit(rows, column) for column in change}
    bounds = [
        abs(value[end]) / units[column]
        for column, value in change.items()
        for end in ("low", "high")
        if value[end] is not None
    ]
    scale = max(bounds, default=0.0)
    strip, groups = _strip(gallery(run, axes))
    return {
        "name": run.name,
        "facts": facts(run, summary),
        "is_evaluation": run.is_evaluation,
        "warnings": [str(suspicion) for suspicion in run.suspicions()],
        "published": made.get("published", []),
        "unit": unit_sentence(made),
        "units": f"{made.get('unit', 'example')}s",
        "notes": notes(made),
        "headline": _headline(rows, change, axes),
        "missing": list(run.missing),
        "protocol": made.get("protocol"),
        "rows": rows,
        "columns": columns,
        "axes": axes,
        "differences": made["differences"],
        "change": change,
        "forest": {column: _forest(value, units[column] * scale) for column, value in change.items()},
        "scale": scale,
        "visible": explain.visible(run, rows, change),
        "disagreements": explain.disagreements(run, change, axes),
        "strip": strip,
        "gallery": groups,
        "samples": samples_of(run),
        "made": _made(run),
        "next": next_commands(run),
        "config": run.config_text,
    }


def _strip(groups: Sequence[Group]) -> tuple[Sequence[Card], list[Group]]:
    """The first of the examples that were drawn before looking, for the page's top, and what is left of the gallery."""
    if not groups:
        return [], []
    drawn, *others = groups
    rest = [replace(drawn, cards=drawn.cards[_STRIP:])] if len(drawn.cards) > _STRIP else []
    return drawn.cards[:_STRIP], [*rest, *others]


def _made(run: RunFolder) -> dict[str, str]:
    """The first start's command, and its versions: later ones may have added little."""
    noted = starts(run.path)
    if not noted:
        return {}
    versions = noted[0].get("versions")
    shown = ", ".join(f"{name} {one}" for name, one in versions.items()) if isinstance(versions, dict) else ""
    again = f" (started {len(noted)} times)" if len(noted) > 1 else ""
    return {"command": str(noted[0].get("command", "")), "versions": shown, "again": again}


def next_commands(run: RunFolder) -> list[tuple[str, str]]:
    """What one would do next with a run, and the command for it."""
    place = shlex.quote(str(run.path))
    if run.is_evaluation:
        return [("Compare it with another evaluation", f"customized-grpo report {place} OTHER")]
    found = []
    if run.planned_steps is not None and run.last_step < run.planned_steps:
        found.append(("Go on with the training", goes_on(run.path)))
    drawn = next((row for rows in run.ends[::-1] for row in rows if row.get("reference")), None)
    prompt = "..." if drawn is None else str(drawn["prompt"])
    photo = "photo.jpg" if drawn is None else f"{place}/evaluation/{drawn['reference']}"
    found += [
        (
            "Draw with it, base and tuned side by side",
            f"customized-grpo generate --lora {place} --reference {photo} --prompt {shlex.quote(prompt)} --out out.png "
            "--grid grid.png",
        ),
        ("Look and choose in a browser, blind if you like", f"customized-grpo studio {place}"),
        ("Compare it with another run", f"customized-grpo report {place} OTHER_RUN"),
        ("Make a folder for the hub, with a model card", f"customized-grpo publish {place} --out published"),
    ]
    return found


def _measured(summary: Mapping[str, Any]) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """Metrics of each row by its name, and their change from the base."""
    changes = (entry["metrics"] for entry in summary["differences"] if entry["to"] == "base")
    return {row["name"]: row["metrics"] for row in summary["rows"]}, next(changes, {})


def _unit(rows: Mapping[str, Mapping[str, Any]], column: str) -> float:
    """Scale of a column: 1 for shares, 100 for scores out of 100, so that both fit on one track."""
    means = [metrics[column]["mean"] for metrics in rows.values() if column in metrics]
    return 100.0 if any(mean is not None and abs(mean) > 1.5 for mean in means) else 1.0


def _forest(value: Mapping[str, Any], scale: float) -> dict[str, float] | None:
    """Percent positions of an interval on a track from -scale to +scale."""
    if value["low"] is None or value["mean"] is None or scale <= 0.0:
        return None

    def at(x: float) -> float:
        return round(50.0 + 48.0 * x / scale, 2)

    return {
        "low": at(value["low"]),
        "width": round(at(value["high"]) - at(value["low"]), 2),
        "mean": at(value["mean"]),
    }


def facts(run: RunFolder, summary: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """What a run is, as (name, value): of its recipe, and of an evaluation's settings."""
    get, group = run.get, run.get("train", "group_size")
    parts = [get("advantage", part, "type") for part in ("aggregator", "time_weights")]
    steps = f"{run.last_step} of {run.planned_steps}" if run.planned_steps else str(run.last_step or "")
    by_rewards = bool(run.axes_of("rewards"))
    found = {
        "Policy": f"{get('policy', 'type')}, {get('policy', 'model')}" if get("policy", "type") else None,
        "Rewards": ", ".join(f"{name} ({axis})" for name, axis in run.axes_of("rewards").items()),
        "Advantage": " + ".join(str(part) for part in parts if part and by_rewards),
        "GRPO steps" if by_rewards else "Steps": steps if run.steps else None,
        "Group": f"{group} images, {get('train', 'groups_per_step')} prompts per step"
        if group and by_rewards
        else None,
        "Learns from": None if by_rewards or not group else f"{get('train', 'groups_per_step')} examples a step",
        "Seed": get("run", "seed"),
    } | _circumstances(run)
    if run.is_evaluation:
        made = (summary or {}).get("settings", {})
        size = f"{made['width']} x {made['height']}" if {"width", "height"} <= made.keys() else None
        found |= {
            "Adapter": ", ".join(lora) if isinstance(lora := get("lora"), list | tuple) else lora,
            "Examples": f"{made.get('examples')} (images each: {made.get('images_per_prompt')})" if made else None,
            "Size": size,
            "Sampler": f"{made.get('steps')} steps, shift {made.get('shift')}" if made else None,
            "Guidance": made.get("guidance"),
            "Seed": made.get("seed"),
        }
    return [(name, str(value)) for name, value in found.items() if value not in (None, "")]


def _circumstances(run: RunFolder) -> dict[str, str | None]:
    """When and on what a run was made, and how long its steps, evaluations and pictures took."""
    noted = starts(run.path)
    first = noted[0] if noted else {}
    many = f"{first['processes']} processes on " if first.get("processes", 1) != 1 else ""
    phases = [key for key in run.keys("time/") if key != "time/step"]
    took = sum(sum(run.series(key)[1]) for key in phases)
    return {
        "Started": str(first["started"]).replace("T", " ").replace("+00:00", " UTC") if "started" in first else None,
        "Took, without loading": duration(took) if took else None,
        "Device": f"{many}{first['device']}" if "device" in first else None,
    }


def _headline(rows: Mapping[str, Any], change: Mapping[str, Any], axes: Mapping[str, str]) -> list[dict[str, Any]]:
    """Result per axis, as the parts of a sentence; the verb follows the interval, not the mean."""
    found = []
    for axis, column in axes.items():
        base, tuned = (rows.get(name, {}).get(column, {}).get("mean") for name in ("base", "tuned"))
        difference = change.get(column)
        if base is None or tuned is None or difference is None or difference["mean"] is None:
            continue
        verdict = "unclear"
        if difference["low"] is not None:
            verdict = "up" if difference["low"] > 0 else "down" if difference["high"] < 0 else "unclear"
        found.append({"axis": axis, "base": base, "tuned": tuned, "difference": difference, "verdict": verdict})
    return found


def comparison(runs: Sequence[RunFolder], summaries: Sequence[Mapping[str, Any] | None]) -> dict[str, Any]:
    """One line per run (its last numbers and their change from its own base), and the runs against the first."""
    lines: list[dict[str, Any]] = []
    for run, summary in zip(runs, summaries, strict=True):
        rows, change = _measured(summary or {"rows": [], "differences": []})
        lines.append({"name": run.name, "tuned": rows.get("tuned", {}), "change": change})
    columns = list(dict.fromkeys(column for line in lines for column in line["tuned"]))
    try:
        pairs, refused = compare_runs(runs), ""
    except ValueError as error:  # the page still shows each run by itself
        pairs, refused = [], str(error)
    return {
        "columns": columns,
        "lines": lines,
        "pairs": pairs,
        "refused": refused,
        "recipes": differ.differences_of_recipes(runs),
        "beside": differ.side_by_side(runs),
        "seeds": differ.over_seeds(runs, [line["change"] for line in lines]),
    }


def time(run: RunFolder) -> dict[str, Any] | None:
    """Mean seconds per step and phase, largest first."""
    phases = []
    count = len(run.series("time/step")[0])
    for key in run.keys("time/") if count else []:
        # Phases of only some steps (evaluation, checkpoint) are averaged over all steps.
        if key != "time/step":
            phases.append((key.removeprefix("time/"), sum(run.series(key)[1]) / count))
    total = sum(seconds for _, seconds in phases)
    if total <= 0.0:
        return None
    phases.sort(key=lambda phase: -phase[1])
    shown = [
        {"name": name, "seconds": seconds, "share": seconds / total, "colour": i % 8}
        for i, (name, seconds) in enumerate(phases)
    ]
    return {"total": total, "phases": shown}
