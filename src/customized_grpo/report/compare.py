"""Comparison of two runs: paired differences and win rates over the same prompts and noise."""

from collections.abc import Sequence
from typing import Any, Final

from customized_grpo.evaluation.pairing import other_metrics, says_what_it_stands_on, unlike
from customized_grpo.evaluation.summary import Row, differences
from customized_grpo.report.folders import RunFolder

_DECIDES: Final = ("protocol", "seed", "images_per_prompt")
"""Evaluation settings that must agree for the images to form pairs."""


def compare_runs(runs: Sequence[RunFolder]) -> list[dict[str, Any]]:
    """Compare every later run with the first, by its adapter (or its base, if it has none).

    Returns:
        A summary's ``differences``: ``{"of", "to", "metrics", "notes"}``; ``notes`` names other differences.

    Raises:
        ValueError: fewer than two runs, a run without an evaluation, or two that are not comparable.
    """
    if len(runs) < 2:
        raise ValueError(f"--compare: given {len(runs)} run; give the folders of two or more")
    return [_pair(run, runs[0]) for run in runs[1:]]


def _pair(run: RunFolder, first: RunFolder) -> dict[str, Any]:
    ours, theirs = (one.ends[1] or one.ends[0] for one in (run, first))
    if problem := _incomparable(run, first, ours, theirs):
        raise ValueError(f"{run.name} and {first.name} can't be compared: {problem}")
    return {
        "of": run.name,
        "to": first.name,
        "metrics": differences(ours, theirs, unit=run.protocol.unit),
        "notes": _notes(run, first, ours, theirs),
    }


def _incomparable(run: RunFolder, first: RunFolder, ours: Sequence[Row], theirs: Sequence[Row]) -> str:
    for one, rows in ((run, ours), (first, theirs)):
        if not rows:
            return f"{one.name} has no evaluation; run 'customized-grpo evaluate' on it first"
    # Rows say themselves what data and metrics they stand on; of those that don't, the recipe must say the same.
    known = all(says_what_it_stands_on(rows[0]) for rows in (ours, theirs))
    for key in (*_DECIDES, *([] if known else ["data"])):
        a, b = (_without_path(one.get("evaluate", key)) for one in (run, first))
        if a != b:
            return f"evaluate.{key} is {a!r} in {run.name} and {b!r} in {first.name}"
    if metrics := other_metrics(ours[0], theirs[0]) if known else _other_sections(run, first):
        return f"evaluate.metrics.{metrics[0]} is not the same in both"
    common = {row["key"] for row in ours} & {row["key"] for row in theirs}
    if not common:
        return "they have no prompt in common"
    if len(unlike(ours, theirs)) == len(common):
        return f"the {len(common)} prompts that they have in common by id are of other texts or pictures in the other"
    return ""


def _other_sections(run: RunFolder, first: RunFolder) -> list[str]:
    ours, theirs = (one.get("evaluate", "metrics") or {} for one in (run, first))
    return [name for name in ours if name in theirs and ours[name] != theirs[name]]


def _notes(run: RunFolder, first: RunFolder, ours: Sequence[Row], theirs: Sequence[Row]) -> list[str]:
    found = [f"{one.name} is its base, as no adapter was evaluated there" for one in (run, first) if not one.ends[1]]
    keys = [{row["key"] for row in rows} for rows in (ours, theirs)]
    left_out = unlike(ours, theirs)
    if keys[0] != keys[1]:
        found.append(
            f"over the {len(keys[0] & keys[1] - left_out)} prompts that both have, of {len(keys[0] | keys[1])}"
        )
    if left_out:
        shown = ", ".join(sorted(left_out)[:3])
        found.append(
            f"{len(left_out)} prompts have the same id but another text or other pictures, such as {shown}: left out"
        )
    settings = [(one.summary or {}).get("settings", {}) for one in (run, first)]
    for name in settings[0].keys() & settings[1].keys() - {"examples", "metrics", "metric_options"}:
        if settings[0][name] != settings[1][name]:
            found.append(f"{name} is {settings[0][name]} in {run.name} and {settings[1][name]} in {first.name}")
    return sorted(found)


def _without_path(value: Any) -> Any:
    """Section without the path of DreamBench, which is the same everywhere; other data are told apart by path."""
    if isinstance(value, dict) and value.get("type") == "dreambench":
        return {key: one for key, one in value.items() if key != "path"}
    return value
