"""Tables on the screen."""

from collections.abc import Sequence

from rich.table import Table

from customized_grpo.console import out

_NAME = 40
"""Characters; a first column of no more is never wrapped."""


def table_of(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table of plain texts, without markup; without a header if no column has a name."""
    table = Table(title=title or None, title_justify="left", show_header=any(columns))
    for position, column in enumerate(columns):
        whole = position == 0 and all(len(row[0]) <= _NAME for row in rows)
        table.add_column(_plain(column), overflow="fold", no_wrap=whole)
    for row in rows:
        table.add_row(*(_plain(cell) for cell in row))
    return table


def print_rows(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; see ``table_of``."""
    out.print(table_of(title, columns, rows))


def _plain(text: str) -> str:
    return text.replace("[", "\\[")
