"""Rows of one key are compared only where they are of the same example, measured alike."""

import json
from pathlib import Path
from typing import Any

import pytest

from customized_grpo.evaluation.pairing import is_pair
from customized_grpo.evaluation.summary import build_summary
from customized_grpo.evaluation.tables import markdown
from customized_grpo.report.compare import compare_runs
from customized_grpo.report.folders import read_runs
from customized_grpo.report.hacking import suspicions

STANDS_ON = {"weights": "w", "prompt": "p", "references": "r", "metrics.both": "m"}


def row(key: str, value: float, *, prompt: str = "a bag", **stands_on: str) -> dict[str, Any]:
    about = {"key": key, "prompt": prompt, "index": 0, "image": 0, "of": 1, "file": None}
    return about | {"values": {"both": value}, "stands_on": STANDS_ON | stands_on}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"weights": "v"}, True),
        ({"metrics.more": "x"}, True),
        ({"references": "s"}, False),
        ({"views": "v"}, False),
        ({"metrics.both": "n"}, False),
    ],
)
def test_what_made_the_image_may_differ_and_no_more(change: dict[str, str], expected: bool) -> None:
    assert is_pair(row("a", 0.0), row("a", 1.0, **change)) is expected


def test_of_earlier_rows_the_prompt_is_known() -> None:
    old = {"key": "a", "prompt": "a bag"}
    assert is_pair(old, row("a", 0.0))
    assert not is_pair(old | {"prompt": "another"}, row("a", 0.0))


def test_a_summary_pairs_the_same_examples_and_says_how_many_are_not() -> None:
    base = [row(key, 0.0) for key in "abcd"]
    tuned = [row("a", 1.0), row("b", 1.0), row("c", 50.0, references="s"), row("d", 50.0, prompt="another")]
    summary = build_summary("heldout", {"base": base, "tuned": tuned})
    (entry,) = summary["differences"]
    assert (entry["unlike"], entry["metrics"]["both"]["n"], entry["metrics"]["both"]["mean"]) == (2, 2, 1.0)
    assert "tuned - base: 2 prompts have the same id in both, but another text, other pictures" in markdown(summary)
    (whole,) = build_summary("heldout", {"base": base, "tuned": base})["differences"]
    assert "unlike" not in whole


def run(folder: Path, rows: list[dict[str, Any]], label: str = "base", path: str = "x.jsonl") -> Path:
    (folder / "evaluation").mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(one) + "\n" for one in rows)
    (folder / "evaluation" / f"{label}.jsonl").write_text(text)
    data, metric = {"type": "manifest", "path": path}, {"type": "dino", "model": path}
    (folder / "config.yaml").write_text(
        json.dumps({"evaluate": {"data": data, "metrics": {"both": metric}}, "lora": 1})
    )
    return folder


def test_runs_are_compared_by_content_and_not_by_path(tmp_path: Path) -> None:
    one = run(tmp_path / "one", [row(key, 0.0) for key in "abc"], path="here/x.jsonl")
    two = run(tmp_path / "two", [row("a", 1.0), row("b", 1.0), row("c", 9.0, references="s")], path="there/x.jsonl")
    (found,) = compare_runs(read_runs([one, two]))
    assert found["metrics"]["both"]["n"] == 2
    assert "1 prompts have the same id but another text or other pictures, such as c: left out" in found["notes"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"references": "s"}, "the 3 prompts that they have in common by id are of other texts or pictures"),
        ({"metrics.both": "n"}, "evaluate.metrics.both is not the same in both"),
    ],
)
def test_runs_on_other_data_are_refused(tmp_path: Path, change: dict[str, str], said: str) -> None:
    one = run(tmp_path / "one", [row(key, 0.0) for key in "abc"])
    two = run(tmp_path / "two", [row(key, 1.0, **change) for key in "abc"])
    with pytest.raises(ValueError, match=said):
        compare_runs(read_runs([one, two]))


def test_a_report_says_which_steps_are_of_other_data(tmp_path: Path) -> None:
    folder = run(tmp_path / "run", [row(key, 0.0) for key in "abc"], "step-000000")
    run(folder, [row(key, 0.0, references="s" if key == "a" else "r") for key in "abc"], "step-000010")
    (read,) = read_runs([folder])
    said = "The evaluation at step 0 is of other data than the newest: 1 prompts have the same id but another text"
    assert any(sentence.startswith(said) for sentence in read.missing)


def test_no_fall_is_seen_between_other_examples() -> None:
    steps = [{"step": n, "reward/r/mean": float(n)} for n in range(1, 41)]
    before = {n: [row(f"k{i}", 1.0 - n / 100) for i in range(9)] for n in (0, 20)}
    alike = before | {40: [row(f"k{i}", 0.0) for i in range(9)]}
    assert suspicions(steps, alike, {"r": "identity"}, {"identity": "both"})
    other = before | {40: [row(f"k{i}", 0.0, references="s") for i in range(9)]}
    assert suspicions(steps, other, {"r": "identity"}, {"identity": "both"}) == []
