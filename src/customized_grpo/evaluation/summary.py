"""Summary of per-image rows as ``summary.json``: means, intervals, paired differences, runs of a judge."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from customized_grpo.atomic import replacing
from customized_grpo.evaluation.pairing import unlike, without
from customized_grpo.evaluation.protocols import Unit, find_protocol
from customized_grpo.evaluation.statistics import (
    Interval,
    example_means,
    group_means,
    mean_interval,
    paired_difference,
    win_rate,
)

Row = dict[str, Any]
"""One image: ``key``, ``prompt``, ``subject``, ``group`` (subject for averaging), ``index`` (of the example), ``image``
(0-based within it), ``of`` (images per example), ``stands_on`` (see ``standing``), ``file`` and ``reference`` (relative
to the folder of the JSONL, or null), ``picture`` (hash of that file), ``values`` (column to a number or null), and
``runs`` (column to the values of a judge's runs; ``values`` has their mean)."""


def columns_of(rows: Sequence[Row]) -> list[str]:
    """Measured columns, in order of first appearance."""
    return list(dict.fromkeys(column for row in rows for column in row["values"]))


def column_means(rows: Sequence[Row], column: str, unit: Unit = "example") -> dict[str, float]:
    """Mean per unit (an example's images, or a subject's examples) by key; what was not measurable is left out."""
    examples = example_means((row["key"], row["values"].get(column)) for row in rows)
    return examples if unit == "example" else group_means(examples, groups_of(rows))


def groups_of(rows: Sequence[Row]) -> dict[str, str]:
    """Subject of each example; a row of an older evaluation is its own group."""
    return {row["key"]: str(row.get("group", row["key"])) for row in rows}


def intervals(rows: Sequence[Row], *, unit: Unit = "example") -> dict[str, Interval]:
    """Mean and 95 % interval of every column over the units."""
    return {column: mean_interval(list(column_means(rows, column, unit).values())) for column in columns_of(rows)}


def differences(of: Sequence[Row], to: Sequence[Row], unit: Unit = "example") -> dict[str, dict[str, Any]]:
    """Paired mean difference over common examples, for every column that both have, with the win rate over prompts.

    Examples that have no more than their key in common are left out; see ``pairing.unlike``.
    """
    left_out = unlike(of, to)
    of, to = without(of, left_out), without(to, left_out)
    groups = groups_of(of) if unit == "subject" else None
    found = {}
    for column in columns_of(of):
        if column in set(columns_of(to)):
            ours, theirs = column_means(of, column), column_means(to, column)
            interval = paired_difference(ours, theirs, groups=groups)
            wins = win_rate(ours, theirs) if interval.n else None
            found[column] = interval.as_json() | {"win_rate": wins}
    return found


def _metrics(rows: Sequence[Row], unit: Unit) -> dict[str, dict[str, Any]]:
    """Interval of every column, its share of failures, and its runs."""
    found: dict[str, dict[str, Any]] = {}
    for column, interval in intervals(rows, unit=unit).items():
        found[column] = dict(interval.as_json())
        runs = [row["runs"][column] for row in rows if column in row.get("runs", {})]
        answers = [value for one in runs for value in one] if runs else [row["values"].get(column) for row in rows]
        excluded = sum(value is None for value in answers) / len(answers)
        if runs or excluded:
            found[column]["excluded"] = excluded
        if runs:
            found[column] |= _over_runs(rows, column, unit, max(map(len, runs)))
    return found


def _over_runs(rows: Sequence[Row], column: str, unit: Unit, count: int) -> dict[str, Any]:
    """Mean of each run over all examples, without failed items, and the standard deviation of those means."""
    means = []
    for run in range(count):
        alone = [row | {"values": {column: row["runs"][column][run]}} for row in rows if column in row["runs"]]
        values = list(column_means(alone, column, unit).values())
        means.append(float(np.mean(values)) if values else None)
    known = [mean for mean in means if mean is not None]
    return {"runs": means, "std": float(np.std(known, ddof=1)) if len(known) > 1 else None}


def build_summary(
    protocol: str,
    rows: Mapping[str, Sequence[Row]],
    settings: Mapping[str, Any] | None = None,
    absent: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Content of ``summary.json``; see ``tables.summarize``."""
    rules = find_protocol(protocol)
    metrics = {name: _metrics(measured, rules.unit) for name, measured in rows.items()}
    columns = {column for measured in metrics.values() for column in measured}
    summary: dict[str, Any] = {
        "protocol": protocol,
        "unit": rules.unit,
        "settings": dict(settings or {}),
        "departures": rules.departures(settings or {}),
        "rows": [{"name": name, "metrics": measured} for name, measured in metrics.items()],
        "absent": dict(absent or {}),
        "differences": [],
        "published": [
            {
                "name": one.name,
                "source": one.source,
                "main": one.main,
                "metrics": {name: value for name, value in one.metrics.items() if name in columns},
            }
            for one in rules.published
            if columns & one.metrics.keys()
        ],
    }
    tuned = rows.get("tuned", [])
    for other in sorted((name for name in rows if name != "tuned" and tuned), key=lambda name: name != "base"):
        if {row["key"] for row in tuned} & {row["key"] for row in rows[other]}:
            compared = differences(tuned, rows[other], unit=rules.unit)
            left_out = len(unlike(tuned, rows[other]))
            entry = {"of": "tuned", "to": other, "metrics": compared}
            summary["differences"].append(entry | ({"unlike": left_out} if left_out else {}))
    return summary


def write_atomically(path: Path, text: str) -> None:
    """Write a file that is complete or absent, whatever kills the process."""
    with replacing(path) as aside, aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON, complete or absent."""
    write_atomically(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
