"""Each fault of ``tests/faults.py`` ends as docs/reliability.md says, with the message that stands there."""

import os
from pathlib import Path

import pytest

from faults import FAULTS, SEVERAL, Fault, Site, row

PAGE = (Path(__file__).parents[2] / "docs" / "reliability.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.title)
def test_a_fault_ends_as_the_page_says(fault: Fault, tiny_world: Path, tmp_path: Path) -> None:
    for folder in (tmp_path, *list(tmp_path.parents)[:3]):
        os.chmod(folder, 0o755)  # a test that gives up being root still has to get here
    site = Site(tiny_world, tmp_path / "run")
    said = fault.provoke(site)
    for part in fault.says:
        assert part in said
    assert row(fault, said, site) in PAGE


def test_the_page_has_nothing_else() -> None:
    *_, table = PAGE.split("\n|---|---|---|\n")
    rows = [line for line in table.splitlines() if line]
    titles = [line.split(" | ")[0].removeprefix("| ") for line in rows]
    assert titles == [fault.title for fault in FAULTS] + [title for title, _ in SEVERAL]
