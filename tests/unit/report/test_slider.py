"""Evaluations of one balanced adapter in the report: a path over b, and pictures along it."""

from pathlib import Path

import pytest
import yaml

from customized_grpo.report.folders import read_runs
from customized_grpo.report.slider import along, name_of, strips
from customized_grpo.report.write import write_report
from run_folder import evaluation_rows, write_rows

BALANCES = (1.0, -1.0, 0.5)


def evaluation(folder: Path, balance: float | None, lora: str = "runs/mine") -> Path:
    config = {"lora": lora, "balance": balance, "policy": {"type": "uno"}, "evaluate": {"metrics": {}}}
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    for label, quality in (("base", 0.0), ("tuned", 1.0 + (balance or 0.0))):
        write_rows(folder / "evaluation", label, evaluation_rows(folder / "evaluation", label, quality, 12))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("front")
    return [evaluation(root / f"balance{b:+g}", b) for b in BALANCES]


def test_evaluations_are_ordered_by_b(folders: list[Path]) -> None:
    assert [name_of(run) for run in along(read_runs(folders))] == ["b = −1", "b = 0.5", "b = 1"]


def test_other_runs_are_no_slider(folders: list[Path], tmp_path: Path) -> None:
    assert along(read_runs(folders[:1])) == [], "one point is no path"
    assert along(read_runs([*folders, evaluation(tmp_path / "plain", None)])) == []
    assert along(read_runs([*folders, evaluation(tmp_path / "other", 0.0, "runs/another")])) == []


def test_each_strip_is_one_prompt_by_the_base_and_at_every_b(folders: list[Path]) -> None:
    cards = strips(along(read_runs(folders)))
    assert len(cards) == 9
    for card in cards:
        assert [name for name, _ in card.images] == ["base", "b = −1", "b = 0.5", "b = 1"]
        assert card.reference
        assert all(picture for _, picture in card.images)


def test_the_page_draws_the_path_over_b(folders: list[Path], tmp_path: Path) -> None:
    text = write_report(folders, tmp_path / "report.html").read_text()
    assert "Along the slider" in text
    plane = text[text.index('<section id="plane"') :].split("</section>")[0]
    assert all(f">{mark}<" in plane for mark in ("b = −1", "b = 0.5", "b = 1", "base"))
    assert "b = −1 to b = 1: from (" in plane
    alone = write_report(folders[:1], tmp_path / "alone.html").read_text()
    assert "Along the slider" not in alone
