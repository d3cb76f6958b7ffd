"""Several runs on one page: what differs in their recipes, the same prompts side by side, and means over seeds."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from customized_grpo.evaluation.pairing import unlike
from customized_grpo.evaluation.statistics import mean_interval
from customized_grpo.report.folders import RunFolder
from customized_grpo.report.gallery import RANDOM, Card, data_uri

_PLACE: Final = ("run.dir", "run.resume", "run.trackers", "run.cache", "run.device", "run.threads", "run.timeout_s")
"""Keys that say where a run is and not what it does."""


def differences_of_recipes(runs: Sequence[RunFolder]) -> list[tuple[str, list[str]]]:
    """Each key in which the recipes differ, with every run's value; a dash where a recipe doesn't have it."""
    flat = [_flat(run.config) for run in runs]
    keys = list(dict.fromkeys(key for one in flat for key in one if key not in _PLACE))
    return [
        (key, [one.get(key, "\u2013") for one in flat])
        for key in keys
        if len({one.get(key, "\u2013") for one in flat}) > 1
    ]


def side_by_side(runs: Sequence[RunFolder]) -> list[Card]:
    """Examples that all runs drew, by a fixed seed: reference, the first run's base, and every run's last picture."""
    last = [run.ends[1] or run.ends[0] for run in runs]
    rows = [_first_images(one) for one in last]
    if len(runs) < 2 or not all(rows):
        return []
    left_out = {
        key for run in runs[1:] for key in unlike(run.ends[1] or run.ends[0], runs[0].ends[1] or runs[0].ends[0])
    }
    keys = [key for key in rows[0] if key not in left_out and all(key in one for one in rows)]
    base, folder = _first_images(runs[0].ends[0]), runs[0].path / "evaluation"
    cards = []
    for key in (keys[at] for at in sorted(np.random.default_rng(0).permutation(len(keys))[:RANDOM])):
        images = [
            (run.name, data_uri(run.path / "evaluation", one[key]["file"])) for run, one in zip(runs, rows, strict=True)
        ]
        if runs[0].ends[1] and key in base:
            images.insert(0, ("base", data_uri(folder, base[key]["file"])))
        first = rows[0][key]
        cards.append(Card(str(first["prompt"]), data_uri(folder, first.get("reference")), images, ()))
    return cards


def over_seeds(runs: Sequence[RunFolder], changes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Runs that differ in nothing but their seed: mean change from the base, with a 95 % interval over the runs.

    Args:
        runs: read from their folders.
        changes: of each run, column to its paired change.

    Returns:
        ``{"names", "changes"}`` of each set of at least two; an interval needs three to say much.
    """
    sets: dict[str, list[int]] = {}
    for at, run in enumerate(runs):
        same = {key: value for key, value in _flat(run.config).items() if key not in (*_PLACE, "run.seed")}
        sets.setdefault(json.dumps(same, sort_keys=True), []).append(at)
    found = []
    for members in sets.values():
        if len({str(runs[at].get("run", "seed")) for at in members}) < 2:
            continue
        columns = [name for name in changes[members[0]] if all(_mean(changes[at], name) is not None for at in members)]
        if columns:
            values = {name: mean_interval([float(changes[at][name]["mean"]) for at in members]) for name in columns}
            found.append(
                {
                    "names": [runs[at].name for at in members],
                    "changes": {name: value.as_json() for name, value in values.items()},
                }
            )
    return found


def _mean(change: Mapping[str, Any], column: str) -> float | None:
    return change[column]["mean"] if column in change else None


def _first_images(rows: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    return {row["key"]: row for row in rows if row["image"] == 0 and row.get("file")}


def _flat(values: Any, above: str = "") -> dict[str, str]:
    if not isinstance(values, Mapping) or not values:
        return {above: values if isinstance(values, str) else json.dumps(values, default=str)}
    found: dict[str, str] = {}
    for key, value in values.items():
        found |= _flat(value, f"{above}.{key}" if above else str(key))
    return found
