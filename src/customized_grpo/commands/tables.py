"""Tables on the screen."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from customized_grpo.console import out

if TYPE_CHECKING:
    from customized_grpo.data.prompts import PromptSurvey

PAIR: Final = ("", "")
"""Columns of a table of names and values."""
_NAME = 40
"""Characters; a first column of no more is never wrapped."""


def table_of(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table of plain texts, without markup; without a header if no column has a name."""
    table = Table(title=escape(title) or None, title_justify="left", show_header=any(columns))
    for position, column in enumerate(columns):
        whole = position == 0 and all(len(row[0]) <= _NAME for row in rows)
        table.add_column(Text(column), overflow="fold", no_wrap=whole)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def print_rows(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; see ``table_of``."""
    out.print(table_of(title, columns, rows))


def show_prompts(prompts: "PromptSurvey | None", rows: int) -> None:
    """Print the survey of the prompts of ``rows`` rows."""
    if prompts is None or not rows:
        return
    lines = [
        ("words", f"{prompts.mean_words:.1f} on average, {prompts.max_words} at most"),
        ("noisy", f"{prompts.noisy:,} of {rows:,}"),
    ]
    for name, count in prompts.problems.items():
        lines.append((f"  {name}", f"{count:,}, for instance {prompts.examples[name][0][:100]!r}"))
    print_rows("prompts", PAIR, lines)
