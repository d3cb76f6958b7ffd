"""What the documents promise: links lead somewhere, pictures are shown, the tests that they name exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def test_links_to_files_lead_somewhere() -> None:
    dead = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in PAGES
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
        if not re.match(r"[a-z]+:", target) and not (page.parent / target).exists()
    ]
    assert not dead


def test_every_picture_is_shown() -> None:
    pages = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    pictures = {file.name for file in (ROOT / "docs" / "images").iterdir()}
    assert {name for name in pictures if f"images/{name})" not in pages} == set()


def test_every_page_is_in_the_navigation_once() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    listed = re.findall(r": ([\w/-]+\.md)$", navigation, re.M)
    assert sorted(listed) == sorted(str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md"))


def test_the_tests_that_the_page_on_performance_names_exist() -> None:
    tests = [(path.name, path.read_text(encoding="utf-8")) for path in (ROOT / "tests").rglob("test_*.py")]
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    named = re.findall(r"`(test_\w+\.py)(?:::(\w+))?`", page)
    assert len(named) > 15
    for file, test in named:
        texts = [text for name, text in tests if name == file]
        assert any(re.search(rf"^def {test}" if test else "^def test_", text, re.M) for text in texts), file


def test_the_tests_that_the_page_on_public_reports_names_exist() -> None:
    texts = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    page = (ROOT / "docs" / "public-reports.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)`", page))
    reports = re.findall(r"[\w.-]+/[\w.-]+#\d+", page)
    assert len(set(reports)) >= 20
    assert not {name for name in named if not re.search(rf"^def {name}\(", texts, re.M)}
