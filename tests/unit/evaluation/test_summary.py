import json
from pathlib import Path

import pytest

from customized_grpo.evaluation.statistics import Interval, paired_difference
from customized_grpo.evaluation.summary import column_means, write_atomically
from customized_grpo.evaluation.tables import summarize
from run_folder import evaluation_rows


def test_summary_has_the_documented_form(tmp_path: Path) -> None:
    rows = {
        name: evaluation_rows(tmp_path, name, quality, 16, save=False)
        for name, quality in (("copy_reference", -1.0), ("base", 0.0), ("tuned", 1.0))
    }
    summary = summarize(tmp_path, "heldout", rows)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert summary.keys() == {
        "protocol", "unit", "settings", "departures", "rows", "absent", "differences", "published"
    }  # fmt: skip
    assert summary["protocol"] == "heldout"
    assert [row["name"] for row in summary["rows"]] == ["copy_reference", "base", "tuned"]
    for row in summary["rows"]:
        assert row.keys() == {"name", "metrics"}
        assert all(value.keys() == {"mean", "low", "high", "n"} for value in row["metrics"].values())
    assert [(entry["of"], entry["to"]) for entry in summary["differences"]] == [
        ("tuned", "base"),
        ("tuned", "copy_reference"),
    ]
    difference = summary["differences"][0]["metrics"]["identity_accuracy"]
    means = [column_means(rows[name], "identity_accuracy") for name in ("tuned", "base")]
    expected = paired_difference(means[0], means[1])
    assert Interval(**{key: difference[key] for key in ("mean", "low", "high", "n")}) == expected
    assert difference["low"] > 0.0
    assert 0.5 < difference["win_rate"] <= 1.0
    table = (tmp_path / "summary.md").read_text()
    assert "| tuned - base |" in table
    assert f"{difference['mean']:+.3f} [{difference['low']:+.3f}, {difference['high']:+.3f}]" in table


def test_what_was_never_measurable_is_null_and_strict_json(tmp_path: Path) -> None:
    rows = [
        row | {"values": {"broken": None, "fine": 0.5}} for row in evaluation_rows(tmp_path, "a", 0.0, 3, save=False)
    ]
    summary = summarize(tmp_path, "p|<b>", {"base": rows, "tuned": rows})
    assert summary["rows"][0]["metrics"]["broken"] == {
        "mean": None, "low": None, "high": None, "n": 0, "excluded": 1.0
    }  # fmt: skip
    assert summary["differences"][0]["metrics"]["broken"]["win_rate"] is None
    assert "NaN" not in (tmp_path / "summary.json").read_text()
    assert "# Evaluation: p\\|&lt;b>" in (tmp_path / "summary.md").read_text()


def test_images_of_one_prompt_are_one_piece_of_evidence(tmp_path: Path) -> None:
    rows = evaluation_rows(tmp_path, "a", 0.0, 8, save=False)
    copies = [row | {"image": i} for row in rows for i in range(10)]
    once, tenfold = (summarize(tmp_path, "p", {"base": measured})["rows"][0]["metrics"] for measured in (rows, copies))
    assert once["identity_accuracy"] == pytest.approx(tenfold["identity_accuracy"])


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new \ud800")
    assert path.read_text() == "old"
