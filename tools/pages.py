"""Write what is generated in the documentation: ``make pages``, or ``make pages ARGS="errors judges"`` for some pages.

What is made stands between two marks; the prose around it is written by hand. ``tests/test_pages.py`` compares.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import cards
import engine_table
import faults
import judge_cases
import lora_table
import odd_images
import recipe_page
import reward_faults
import wrong_inputs

DOCS = Path(__file__).parents[1] / "docs"
BEGIN, END = "<!-- made by: make pages -->\n", "<!-- end of what is made -->\n"
MAKERS: dict[str, Callable[[], str]] = {
    "errors": wrong_inputs.sections,
    "how-to/multi-gpu": engine_table.table,
    "image-files": odd_images.table,
    "judges": judge_cases.table,
    "lora-files": lora_table.table,
    "reward-faults": reward_faults.table,
    "recipe": recipe_page.tables,
    "reliability": faults.table,
    "how-to/memory": cards.shipped,
    "performance": cards.tables,  # a minute; the others take seconds
}


def page_with(text: str, made: str) -> str:
    """The page with ``made`` put between its marks."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page has no lines {BEGIN.strip()!r} and {END.strip()!r}; add them")
    return f"{before}{BEGIN}\n{made.strip()}\n\n{END}{after}"


def main(names: Sequence[str]) -> None:
    """Write the named pages, or all."""
    for name in names or MAKERS:
        if name not in MAKERS:
            raise SystemExit(f"given {name!r}; generated pages: {', '.join(MAKERS)}")
        file = DOCS / f"{name}.md"
        file.write_text(page_with(file.read_text(encoding="utf-8"), MAKERS[name]()), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
