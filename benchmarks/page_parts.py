"""Generated parts of documentation pages."""

import re


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def put(text: str, marker: str, content: str) -> str:
    """Replace what stands between the markers of a generated part."""
    pattern = rf"(<!-- {marker} -->\n).*?(<!-- /{marker} -->)"
    if not re.search(pattern, text, re.S):
        raise ValueError(f"the page has no markers <!-- {marker} --> and <!-- /{marker} -->; add them")
    return re.sub(pattern, lambda match: f"{match[1]}\n{content}\n\n{match[2]}", text, flags=re.S)
