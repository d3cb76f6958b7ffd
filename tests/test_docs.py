"""What the documents promise: links lead somewhere, the README's recipe is valid, the how-tos' examples conform."""

import re
from pathlib import Path
from typing import Any

import pytest

from customized_grpo.recipe.loading import load_recipe

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_files_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    local = [target for target in targets if not re.match(r"[a-z]+:", target)]
    assert not [target for target in local if not (page.parent / target).exists()]


def test_every_picture_is_shown() -> None:
    pages = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    pictures = {file.name for file in (ROOT / "docs" / "images").iterdir()}
    assert {name for name in pictures if f"images/{name})" not in pages} == set()


def test_recipe_of_the_readme_is_valid(tmp_path: Path) -> None:
    (recipe,) = blocks("README.md", "yaml")
    file = tmp_path / "readme.yaml"
    file.write_text(recipe, encoding="utf-8")
    assert load_recipe(file).train.group_size == 12


@pytest.mark.parametrize(
    "command", re.findall(r"^customized-grpo +(\w+)", "\n".join(blocks("README.md", "sh")), re.M)
)
def test_commands_of_the_readme_exist(command: str) -> None:
    from typer.main import get_command

    from customized_grpo.commands.app import app

    assert command in get_command(app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("page", "test"),
    [("reward", "test_contrast"), ("reward", "test_brightness"), ("aggregator", "test_softmin")],
)
def test_examples_of_the_how_tos_pass_the_conformance_kit(page: str, test: str) -> None:
    names: dict[str, Any] = {"__name__": "example"}
    for block in blocks(f"docs/how-to/{page}.md", "python"):
        exec(compile(block, f"{page}.md", "exec"), names)
    names[test]()


def test_the_page_of_recipe_keys_is_what_the_schema_says() -> None:
    import recipe_page

    page = recipe_page.PAGE.read_text(encoding="utf-8")
    assert recipe_page.page_with(page, recipe_page.tables()) == page, "python tools/recipe_page.py"
