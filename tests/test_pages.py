"""The generated parts of the documentation are what the code does today.

Makers also refuse (AssertionError) what is not as their table of cases declares it, so these are the tests of every
wrong input, every fault of a run, and every failure of a judge, a reward server and an image file.
"""

import pytest

import cards
from pages import BEGIN, DOCS, END, MAKERS, page_with


@pytest.mark.parametrize("name", [name for name in MAKERS if name != "performance"])
def test_a_page_is_what_the_code_says(name: str) -> None:
    page = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    assert page_with(page, MAKERS[name]()) == page, "run `make pages` and look at what has changed"


def test_the_tables_of_cards_are_what_the_estimate_says() -> None:
    """A few rows, since all take a minute; and no recipe is forgotten."""
    page = (DOCS / "performance.md").read_text(encoding="utf-8")
    made, _, left_out = page.partition(BEGIN)[2].partition(END)[0].partition("Not in the table")
    for recipe in cards.RECIPES:
        tables = [made.partition(f"**`{recipe}`, rank {rank}**")[2].partition("**`")[0] for rank in cards.RANKS]
        assert all(tables) or (not any(tables) and f"`{recipe}`" in left_out), recipe
    rows = made.partition("**`uno_customized_grpo`, rank 64**")[2].partition("**`")[0]
    for card in (24, 141):
        assert cards.row("uno_customized_grpo", 64, card) in rows, "run `make pages` and look at what has changed"


def test_a_page_without_marks_is_refused() -> None:
    assert page_with(f"a\n{BEGIN}old\n{END}b", "new") == f"a\n{BEGIN}\nnew\n\n{END}b"
    with pytest.raises(ValueError, match="has no lines '<!-- made by"):
        page_with(f"a\n{BEGIN}", "new")
