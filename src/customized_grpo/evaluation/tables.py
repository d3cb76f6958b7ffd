"""Tables of an evaluation: ``summary.json``, and ``summary.md`` and ``summary.tex`` for people."""

from collections.abc import Mapping, Sequence
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
        rows: per-image rows by name. ``tuned``, if there, is compared with every other, ``base`` first.
        settings: settings by which the images were made; see ``Protocol.departures``.
        absent: rows that a reader may miss, with the reason.

    Returns:
        Content of ``summary.json``: ``{"protocol", "unit", "settings", "departures", "rows": [{"name", "metrics"}],
        "absent": {name: why}, "differences": [{"of", "to", "metrics"}], "published"}``, each metric
        ``{"mean", "low", "high", "n"}`` with 95 % intervals over ``n`` units; that of a difference also has
        ``win_rate`` (over prompts), and a difference ``unlike``, the number of common keys that are of another example
        in the other row and left out. A metric that could not be measured everywhere has ``excluded`` (a share); one
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
    """Notes for readers: departures, failed items, the spread of judges, and the number of comparisons."""
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
    found += [
        f"{one['of']} - {one['to']}: {one['unlike']} prompts have the same id in both, but another text, other "
        "pictures or other metrics; they are left out."
        for one in summary["differences"]
        if one.get("unlike")
    ]
    for row in summary["rows"]:
        for column, value in row["metrics"].items():
            if "runs" in value:
                spread = "unknown" if value["std"] is None else f"{value['std']:.3f}"
                found.append(
                    f"{row['name']}, {column}: {len(value['runs'])} runs, standard deviation of their means {spread}; "
                    f"{value['excluded']:.1%} failed and are excluded."
                )
            elif value.get("excluded"):
                found.append(f"{row['name']}, {column}: {value['excluded']:.1%} of the images could not be scored.")
    if compared := sum(len(one["metrics"]) for one in summary["differences"]):
        found.append(f"The intervals of the {compared} differences are not corrected for their number.")
    return found


def markdown(summary: Mapping[str, Any]) -> str:
    """The summary as Markdown tables: one line per row, one column per metric, and the paired differences."""
    return _rendered("summary.md.j2", summary)


def latex(summary: Mapping[str, Any]) -> str:
    """The summary as a LaTeX table (package booktabs), with published rows below a line."""
    return _rendered("summary.tex.j2", summary)


def _rendered(template: str, summary: Mapping[str, Any]) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("customized_grpo.evaluation"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"cell": cell, "tex": _tex, "published": _published}
    environment.filters |= {"number": _number, "tex_number": _tex_number}
    settings = summary.get("settings", {}).items()
    return environment.get_template(template).render(
        summary=summary,
        unit=unit_sentence(summary),
        columns=columns_of_summary(summary),
        rows=[(row["name"], row["metrics"]) for row in summary["rows"]],
        published=summary.get("published", []),
        differences=[(f"{one['of']} - {one['to']}", one["metrics"]) for one in summary["differences"]],
        notes=notes(summary),
        settings=[f"{name} {value}" for name, value in settings if not name.startswith("metric")],
    )


def _published(column: str, metrics: Mapping[str, float], form: str, absent: str) -> str:
    # As many digits as the papers give.
    value = metrics.get(column)
    return absent if value is None else form % (f"{value:.1f}" if value >= 10 else f"{value:.2f}")


def _number(column: str, metrics: Mapping[str, Any], sign: str) -> str:
    value = metrics.get(column)
    if value is None or value["mean"] is None:
        return "-"
    spread = f"(n = {value['n']})"
    if value["low"] is not None:
        spread = f"[{value['low']:{sign}.3f}, {value['high']:{sign}.3f}]"
    wins = f" (higher in {value['win_rate']:.0%})" if value.get("win_rate") is not None else ""
    return f"{value['mean']:{sign}.3f} {spread}{wins}"


def _tex_number(column: str, metrics: Mapping[str, Any]) -> str:
    value = metrics.get(column)
    if value is None or value["mean"] is None:
        return "--"
    if value["low"] is None:
        return f"{value['mean']:.3f}"
    return rf"{value['mean']:.3f} {{\scriptsize [{value['low']:.3f}, {value['high']:.3f}]}}"


def cell(text: str) -> str:
    """A text as it stands in a cell of a Markdown table."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def _tex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(letter, f"\\{letter}" if letter in "&%$#_{}" else letter) for letter in text)
