"""From per-image rows to ``evaluation/summary.json`` and its Markdown table: means, intervals, paired differences."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from customized_grpo.evaluation.statistics import (
    Interval,
    bootstrap_mean,
    example_means,
    paired_difference,
    win_rate,
)

Row = dict[str, Any]
"""One image: ``key``, ``prompt``, ``subject``, ``index`` (of the example), ``image`` (0-based within it), ``of``
(how many they are), ``fingerprint``, ``file`` and ``reference`` (relative to the folder of the JSONL, or null), and
``values`` (column to a number or null)."""


def columns_of(rows: Sequence[Row]) -> list[str]:
    """The measured columns, in order of first appearance."""
    return list(dict.fromkeys(column for row in rows for column in row["values"]))


def column_means(rows: Sequence[Row], column: str) -> dict[str, float]:
    """Example key to the mean of its images; examples without a measurable image are left out."""
    return example_means((row["key"], row["values"].get(column)) for row in rows)


def intervals(rows: Sequence[Row], *, resamples: int = 10_000) -> dict[str, Interval]:
    """Mean and 95 % interval over examples of every column."""
    return {
        column: bootstrap_mean(list(column_means(rows, column).values()), resamples=resamples)
        for column in columns_of(rows)
    }


def differences(of: Sequence[Row], to: Sequence[Row], *, resamples: int = 10_000) -> dict[str, Interval]:
    """Paired mean difference over common examples, for every column that both have."""
    shared = [column for column in columns_of(of) if column in set(columns_of(to))]
    return {
        column: paired_difference(column_means(of, column), column_means(to, column), resamples=resamples)
        for column in shared
    }


def build_summary(protocol: str, rows: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """What ``summary.json`` holds; see ``summarize``."""
    summary: dict[str, Any] = {
        "protocol": protocol,
        "rows": [
            {
                "name": name,
                "metrics": {column: interval.as_json() for column, interval in intervals(measured).items()},
            }
            for name, measured in rows.items()
        ],
        "differences": [],
    }
    tuned = rows.get("tuned", [])
    for other in sorted(
        (name for name in rows if name != "tuned" and tuned), key=lambda name: name != "base"
    ):
        compared = {}
        for column, interval in differences(tuned, rows[other]).items():
            wins = win_rate(column_means(tuned, column), column_means(rows[other], column))
            compared[column] = interval.as_json() | {"win_rate": wins if interval.n else None}
        summary["differences"].append({"of": "tuned", "to": other, "metrics": compared})
    return summary


def summarize(folder: Path, protocol: str, rows: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """Write ``summary.json`` and ``summary.md`` into ``folder``.

    Args:
        folder: a run's ``evaluation`` folder.
        protocol: name under which these numbers may be compared with others.
        rows: per-image rows by name. Where ``tuned`` is among them, it is compared with every other, ``base`` first.

    Returns:
        What ``summary.json`` holds: ``{"protocol", "rows": [{"name", "metrics"}], "differences": [{"of", "to",
        "metrics"}]}``, each metric ``{"mean", "low", "high", "n"}`` with 95 % intervals over examples; that of a
        difference also has ``win_rate``.
    """
    summary = build_summary(protocol, rows)
    write_atomically(folder / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
    write_atomically(folder / "summary.md", markdown(summary))
    return summary


def markdown(summary: Mapping[str, Any]) -> str:
    """The summary as Markdown tables: one line a row, one column a metric, and the paired differences."""
    columns = list(dict.fromkeys(column for row in summary["rows"] for column in row["metrics"]))
    head = [
        f"# Evaluation: {_cell(summary['protocol'])}",
        "",
        "Mean over examples, 95 % bootstrap interval.",
        "",
    ]
    lines = [
        *head,
        *_table("", columns, [(row["name"], row["metrics"]) for row in summary["rows"]], signed=False),
    ]
    if summary["differences"]:
        compared = [(f"{entry['of']} - {entry['to']}", entry["metrics"]) for entry in summary["differences"]]
        lines += [
            "",
            "Paired differences over the same examples and noise; an interval clear of 0 is a change.",
            "",
        ]
        lines += _table("", columns, compared, signed=True)
    return "\n".join(lines) + "\n"


def write_atomically(path: Path, text: str) -> None:
    """A file that is complete or absent, whatever kills the process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.tmp")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def _table(
    corner: str, columns: Sequence[str], rows: Sequence[tuple[str, Mapping[str, Any]]], *, signed: bool
) -> list[str]:
    lines = [f"| {corner} | " + " | ".join(map(_cell, columns)) + " |", "| --- |" + " ---: |" * len(columns)]
    for name, metrics in rows:
        cells = [_number(metrics.get(column), signed=signed) for column in columns]
        lines.append(f"| {_cell(name)} | " + " | ".join(cells) + " |")
    return lines


def _number(value: Mapping[str, Any] | None, *, signed: bool) -> str:
    if value is None or value["mean"] is None:
        return "-"
    sign = "+" if signed else ""
    if value["low"] is None:
        return f"{value['mean']:{sign}.3f} (n = {value['n']})"
    return f"{value['mean']:{sign}.3f} [{value['low']:{sign}.3f}, {value['high']:{sign}.3f}]"


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
