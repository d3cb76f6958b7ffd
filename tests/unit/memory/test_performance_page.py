"""docs/performance.md: its tables of cards are what ``benchmarks/cards.py`` computes, and the tests it names exist."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
TESTS = [(path.name, path.read_text(encoding="utf-8")) for path in (ROOT / "tests").rglob("test_*.py")]


@pytest.fixture(scope="module")
def cards() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cards", ROOT / "benchmarks" / "cards.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_table_is_what_the_script_computes(cards: ModuleType) -> None:
    """One of them: all take a minute. The others are made by the same command."""
    _, _, after = PAGE.partition("**`uno_customized_grpo`, rank 64**")
    shown = [line for line in after.partition("**`")[0].splitlines() if " GB |" in line]
    assert shown == list(cards.rows("uno_customized_grpo", 64)), "python benchmarks/cards.py --write"


def test_every_recipe_is_there_or_named_as_missing(cards: ModuleType) -> None:
    _, _, made = PAGE.partition(cards.BEGIN)
    made, _, left_out = made.partition(cards.END)[0].partition("Not in the table")
    for recipe in cards.RECIPES:
        headings = [f"**`{recipe}`, rank {rank}**" in made for rank in cards.RANKS]
        assert all(headings) or (not any(headings) and f"`{recipe}`" in left_out)
    replaced = cards.page_with(PAGE, "something else\n")
    assert cards.BEGIN + "\nsomething else\n" + cards.END in replaced
    assert PAGE.partition(cards.BEGIN)[0] + cards.BEGIN in replaced


def test_the_tests_that_it_names_exist() -> None:
    named = re.findall(r"`(test_\w+\.py)(?:::(\w+))?`", PAGE)
    assert len(named) > 15
    for file, test in named:
        texts = [text for name, text in TESTS if name == file]
        assert any(re.search(rf"^def {test}" if test else "^def test_", text, re.M) for text in texts), file
