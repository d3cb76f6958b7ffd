"""``customized-grpo report``. Heavy imports are inside."""

from pathlib import Path
from typing import Annotated

import typer

from customized_grpo.console import say


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="folders of runs; several are compared")],
    page: Annotated[Path | None, typer.Option("--out", help="the HTML file")] = None,
) -> None:
    """Write one self-contained HTML page about one run, or several side by side."""
    from customized_grpo.report.write import write_report

    say(str(write_report(runs, page)))
