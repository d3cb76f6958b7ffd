"""The report: one self-contained HTML page made from run folders, for phones and desktops, in light and dark."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jinja2

from customized_grpo import __version__
from customized_grpo.evaluation.summary import write_atomically
from customized_grpo.report import explain, figures, page, slider
from customized_grpo.report.folders import read_runs


def write_report(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Write the report of one run, or the comparison of several.

    Args:
        out: the page; by default ``report.html`` in the run's folder, or in its parent folder for several runs.

    Raises:
        ValueError: a folder is missing or has no measurements, or ``out`` can't be written.
    """
    read = read_runs(runs)
    if out is None:
        out = (runs[0] if len(runs) == 1 else runs[0].resolve().parent) / "report.html"
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("customized_grpo.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "signed": partial(number, sign="+"), "percent": percent}
    summaries = [page.summary_of(run) for run in read]
    axes = page.axes_of(read)
    html = environment.get_template("report.html.j2").render(
        version=__version__,
        title=" · ".join(run.name for run in read),
        kind="evaluation" if all(run.is_evaluation for run in read) else "training",
        runs=[page.view(run, summary, axes) for run, summary in zip(read, summaries, strict=True)],
        comparison=page.comparison(read, summaries) if len(read) > 1 else None,
        slider=slider.strips(slider.along(read)),
        figures=figures.all_figures(read, summaries, axes),
        times=[(run.name, time) for run in read if (time := page.time(run))],
        names=[run.name for run in read],
        lower_is_better={column for run in read for column in explain.lower_is_better(run)},
        explained={column: text for run in read for column, text in explain.meanings(run).items()},
    )
    try:
        write_atomically(out, html)
    except OSError as error:
        raise ValueError(f"{out}: the report can't be written ({error.strerror}); give another file") from error
    return out


def number(value: float | None, sign: str = "") -> str:
    """Three digits after the point, two from 10 on; a true minus; a dash for what is unknown."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:{sign}.{3 if abs(value) < 10 else 2}f}".replace("-", "\u2212")


def percent(value: float | None) -> str:
    """A share in whole percent."""
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.0f} %"
