"""Generated parts of documentation pages."""

import re
from collections.abc import Mapping, Sequence
from typing import Any


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def seconds_table(rows: Sequence[Mapping[str, Any]], what: str, over: str, digits: int = 2) -> str:
    """What ``objectives.paired_seconds`` found: seconds of each variant, and their ratio to the first one's."""
    lines = [
        [
            f"`{row['variant']}`",
            f"{row['median']:.3f}",
            f"{row['ratio_median']:.{digits}f} ({row['ratio_low']:.{digits}f}, {row['ratio_high']:.{digits}f})",
        ]
        for row in rows
    ]
    return table([what, "seconds", f"over {over}, paired (quartiles)"], lines)


def put(text: str, marker: str, content: str) -> str:
    """Replace what stands between the markers of a generated part."""
    pattern = rf"(<!-- {marker} -->\n).*?(<!-- /{marker} -->)"
    if not re.search(pattern, text, re.S):
        raise ValueError(f"the page has no markers <!-- {marker} --> and <!-- /{marker} -->; add them")
    return re.sub(pattern, lambda match: f"{match[1]}\n{content}\n\n{match[2]}", text, flags=re.S)
