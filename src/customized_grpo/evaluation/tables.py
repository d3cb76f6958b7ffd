"""Tables of an evaluation: ``summary.json``, and ``summary.md`` and ``summary.tex`` for people."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from customized_grpo.evaluation.summary import Row, build_summary, write_atomically, write_json

_UNITS: Final = {
    "example": "Mean over examples",
    "subject": "Macro average: mean over the prompts of a subject, then over subjects",
}


def summarize(
    folder: Path,
    protocol: str,
    rows: Mapping[str, Sequence[Row]],
    settings: Mapping[str, Any] | None = None,
    absent: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Write ``summary.json``, ``summary.md`` and ``summary.tex`` into ``folder``.

    Args:
        folder: a run's ``evaluation`` folder.
        protocol: name of the protocol; only numbers of the same protocol are comparable.
        rows: per-image rows by name. ``tuned``, if there, is compared with every other, ``base`` first.
        settings: settings by which the images were made; see ``Protocol.departures``.
        absent: rows that a reader may miss, with the reason.

    Returns:
        Content of ``summary.json``: ``{"protocol", "unit", "settings", "departures", "rows": [{"name", "metrics"}],
        "absent": {name: why}, "differences": [{"of", "to", "metrics"}], "published"}``, each metric
        ``{"mean", "low", "high", "n"}`` with 95 % intervals over ``n`` units; that of a difference also has
        ``win_rate`` (over prompts). A metric that could not be measured everywhere has ``excluded`` (a share); one
        with several runs has ``runs`` (their means) and ``std``.
    """
    summary = build_summary(protocol, rows, settings, absent)
    write_json(folder / "summary.json", summary)
    write_atomically(folder / "summary.md", markdown(summary))
    write_atomically(folder / "summary.tex", latex(summary))
    return summary


def unit_sentence(summary: Mapping[str, Any]) -> str:
    """Sentence that names the unit of the means."""
    return _UNITS[summary.get("unit", "example")]


def columns_of_summary(summary: Mapping[str, Any]) -> list[str]:
    """All metric names in a summary's rows."""
    return list(dict.fromkeys(column for row in summary["rows"] for column in row["metrics"]))


def notes(summary: Mapping[str, Any]) -> list[str]:
    """Notes for readers of the table: departures, failed items, and the spread of judges."""
    found = []
    published, departures = summary.get("published"), summary.get("departures")
    if published:
        found.append(
            "Published rows were not measured here: they come from the papers' own code, images and samplers "
            f"({'; '.join(dict.fromkeys(one['source'] for one in published))})."
        )
    if departures:
        found.append(f"Not comparable with published numbers: {', '.join(departures)}.")
    found += [f"There is no row {name}: {reason}." for name, reason in summary.get("absent", {}).items()]
    for row in summary["rows"]:
        for column, value in row["metrics"].items():
            if "runs" in value:
                spread = "unknown" if value["std"] is None else f"{value['std']:.3f}"
                found.append(
                    f"{row['name']}, {column}: {len(value['runs'])} runs, standard deviation of their means {spread}; "
                    f"{value['excluded']:.1%} failed and are excluded."
                )
            elif value.get("excluded"):
                found.append(
                    f"{row['name']}, {column}: {value['excluded']:.1%} of the images could not be scored."
                )
    return found


def markdown(summary: Mapping[str, Any]) -> str:
    """The summary as Markdown tables: one line per row, one column per metric, and the paired differences."""
    columns = columns_of_summary(summary)
    rows = [(row["name"], row["metrics"]) for row in summary["rows"]]
    lines = [
        f"# Evaluation: {_cell(summary['protocol'])}",
        "",
        f"{unit_sentence(summary)}, 95 % bootstrap interval.",
        "",
        *_table(columns, rows, _signless),
        *(
            f"| *{_cell(one['name'])} (published)* | "
            + " | ".join(
                f"*{published_number(one['metrics'][column])}*" if column in one["metrics"] else "-"
                for column in columns
            )
            + " |"
            for one in summary.get("published", [])
        ),
    ]
    if summary["differences"]:
        compared = [(f"{entry['of']} - {entry['to']}", entry["metrics"]) for entry in summary["differences"]]
        lines += [
            "",
            "Paired differences over the same examples and noise; an interval clear of 0 is a change.",
            "",
            *_table(columns, compared, _signed),
        ]
    lines += [line for note in notes(summary) for line in ("", _cell(note))]
    if settings := summary.get("settings"):
        lines += [
            "",
            "Made with "
            + _cell(
                ", ".join(
                    f"{name} {value}" for name, value in settings.items() if not name.startswith("metric")
                )
            )
            + ".",
        ]
    return "\n".join(lines) + "\n"


def latex(summary: Mapping[str, Any]) -> str:
    """The summary as a LaTeX table (package booktabs), published rows below a line."""
    columns = columns_of_summary(summary)
    lines = [
        f"% {_tex(summary['protocol'])}: {unit_sentence(summary)}, 95 % bootstrap interval. Needs booktabs.",
        r"\begin{tabular}{l" + "c" * len(columns) + "}",
        r"\toprule",
        " & ".join(["", *map(_tex, columns)]) + r" \\",
        r"\midrule",
        *(
            " & ".join([_tex(row["name"]), *(_tex_number(row["metrics"].get(column)) for column in columns)])
            + r" \\"
            for row in summary["rows"]
        ),
    ]
    if summary.get("published"):
        lines += [
            r"\midrule",
            rf"\multicolumn{{{len(columns) + 1}}}{{l}}{{\emph{{Published, not measured here}}}} \\",
        ]
        for one in summary["published"]:
            cells = (
                published_number(one["metrics"][column]) if column in one["metrics"] else "--"
                for column in columns
            )
            lines.append(" & ".join([_tex(one["name"]), *cells]) + r" \\")
    return (
        "\n".join([*lines, r"\bottomrule", r"\end{tabular}", *(f"% {note}" for note in notes(summary))])
        + "\n"
    )


def published_number(value: float) -> str:
    """A published number with as many digits as the papers give."""
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _table(
    columns: Sequence[str],
    rows: Sequence[tuple[str, Mapping[str, Any]]],
    number: Callable[[Mapping[str, Any]], str],
) -> list[str]:
    lines = ["|  | " + " | ".join(map(_cell, columns)) + " |", "| --- |" + " ---: |" * len(columns)]
    for name, metrics in rows:
        cells = ["-" if metrics.get(column) is None else number(metrics[column]) for column in columns]
        lines.append(f"| {_cell(name)} | " + " | ".join(cells) + " |")
    return lines


def _signless(value: Mapping[str, Any]) -> str:
    return _number(value, "")


def _signed(value: Mapping[str, Any]) -> str:
    wins = value.get("win_rate")
    return _number(value, "+") + (f" (higher in {wins:.0%})" if wins is not None else "")


def _number(value: Mapping[str, Any], sign: str) -> str:
    if value["mean"] is None:
        return "-"
    if value["low"] is None:
        return f"{value['mean']:{sign}.3f} (n = {value['n']})"
    return f"{value['mean']:{sign}.3f} [{value['low']:{sign}.3f}, {value['high']:{sign}.3f}]"


def _tex_number(value: Mapping[str, Any] | None) -> str:
    if value is None or value["mean"] is None:
        return "--"
    if value["low"] is None:
        return f"{value['mean']:.3f}"
    return rf"{value['mean']:.3f} {{\scriptsize [{value['low']:.3f}, {value['high']:.3f}]}}"


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def _tex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(letter, f"\\{letter}" if letter in "&%$#_{}" else letter) for letter in text)
