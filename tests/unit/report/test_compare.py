"""Two runs against each other, tables for people, and rewards that rise while their held-out twin falls."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from customized_grpo.commands.app import app
from customized_grpo.evaluation.statistics import paired_difference, win_rate
from customized_grpo.evaluation.summary import build_summary, column_means
from customized_grpo.evaluation.tables import latex, markdown, summarize
from customized_grpo.report.compare import compare_runs
from customized_grpo.report.folders import read_runs
from customized_grpo.report.hacking import suspicions
from customized_grpo.report.write import write_report
from run_folder import evaluation_rows, make_run, write_rows

Rows = list[dict[str, Any]]


def evaluated(folder: Path, quality: float, *, n: int = 12, **changes: Any) -> Path:
    """The folder of an evaluation of base and tuned, as ``evaluate`` writes it."""
    evaluate = {
        "protocol": "heldout",
        "data": {"type": "mini", "split": "test"},
        "metrics": {"oracle": {"type": "mini_oracle"}},
        "seed": 0,
        "images_per_prompt": 1,
    } | changes
    rows = {
        name: evaluation_rows(folder / "evaluation", name, gain, n, save=False)
        for name, gain in (("base", 0.0), ("tuned", quality))
    }
    for name, measured in rows.items():
        write_rows(folder / "evaluation", name, measured)
    settings = {"steps": 4 if quality < 2 else 8, "examples": n, "metrics": {}}
    summarize(folder / "evaluation", evaluate["protocol"], rows, settings)
    (folder / "config.yaml").write_text(yaml.safe_dump({"evaluate": evaluate, "lora": "a"}))
    return folder


def test_the_paired_difference_of_the_adapters(tmp_path: Path) -> None:
    a, b = evaluated(tmp_path / "a", 0.5), evaluated(tmp_path / "b", 1.5)
    (found,) = compare_runs(read_runs([a, b]))
    assert (found["of"], found["to"], found["notes"]) == ("b", "a", [])
    means = [column_means(run.evaluations["tuned"], "identity_accuracy") for run in reversed(read_runs([a, b]))]
    expected = paired_difference(*means)
    value = found["metrics"]["identity_accuracy"]
    assert (value["mean"], value["low"], value["n"]) == (expected.mean, expected.low, 12)
    assert value["win_rate"] == win_rate(*means)
    assert value["low"] > 0
    (back,) = compare_runs(read_runs([b, a]))
    assert back["metrics"]["identity_accuracy"]["mean"] == pytest.approx(-value["mean"])


def test_what_else_differs_is_said(tmp_path: Path) -> None:
    a, b = evaluated(tmp_path / "a", 0.5, n=8), evaluated(tmp_path / "b", 2.5, n=12)
    (found,) = compare_runs(read_runs([a, b]))
    assert found["notes"] == ["over the 8 prompts that both have, of 12", "steps is 8 in b and 4 in a"]
    assert found["metrics"]["both"]["n"] == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"protocol": "mine"}, "evaluate.protocol is 'mine' in b and 'heldout' in a"),
        ({"seed": 1}, "evaluate.seed is 1 in b and 0 in a"),
        ({"images_per_prompt": 2}, "evaluate.images_per_prompt is 2 in b and 1 in a"),
        ({"data": {"type": "mini", "split": "train"}}, "evaluate.data is"),
        ({"metrics": {"oracle": {"type": "other"}}}, "evaluate.metrics.oracle is not the same"),
    ],
)
def test_what_is_not_comparable_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    a, b = evaluated(tmp_path / "a", 0.5), evaluated(tmp_path / "b", 1.5, **change)
    with pytest.raises(ValueError, match=message):
        compare_runs(read_runs([a, b]))
    assert "can&#39;t be compared" in write_report([a, b], tmp_path / "page.html").read_text()


def test_dreambench_is_the_same_wherever_it_lies(tmp_path: Path) -> None:
    runs = [
        evaluated(tmp_path / name, gain, data={"type": "dreambench", "path": name})
        for name, gain in (("a", 0.5), ("b", 1.5))
    ]
    assert len(compare_runs(read_runs(runs))) == 1


def test_the_command_compares_prints_and_saves(tmp_path: Path) -> None:
    runs = [str(evaluated(tmp_path / name, gain)) for name, gain in (("a", 0.5), ("b", 1.5), ("c", 0.1))]

    def call(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["evaluate", *arguments], env={"COLUMNS": "160", "TERM": "dumb"})

    done = call("--compare", *runs, "--out", str(tmp_path / "c.json"))
    assert done.exit_code == 0, done.output
    assert "b − a" in done.output
    assert "c − a" in done.output
    saved = json.loads((tmp_path / "c.json").read_text())
    assert saved == compare_runs(read_runs([Path(run) for run in runs]))
    assert f"{saved[0]['metrics']['both']['mean']:+.3f}" in done.output
    assert "two or more" in call("--compare", runs[0]).stderr
    assert "--out: it goes with --compare" in call("mini", "--out", "x.json").stderr


def test_several_runs_are_paired_in_the_report(tmp_path: Path) -> None:
    page = write_report(
        [evaluated(tmp_path / "a", 0.5), evaluated(tmp_path / "b", 1.5)], tmp_path / "out.html"
    ).read_text()
    assert "b − a" in page.replace("&#8722;", "−")
    assert "higher in" in page


def published_summary() -> dict[str, Any]:
    rows = [
        {
            "key": f"{g}{i}",
            "prompt": "p",
            "group": g,
            "index": i,
            "image": 0,
            "values": {"dino_vits16": 70.0 + i},
        }
        for g in "ab"
        for i in range(3)
    ]
    return build_summary("dreambench/uno-all-references", {"base": rows, "tuned": rows}, {"examples": 6})


def test_tables_mark_what_was_published_and_what_departs() -> None:
    summary = published_summary()
    text = markdown(summary)
    assert "| base | 71.000 [71.000, 71.000] |" in text
    assert "| *UNO (published)* | *76.0* |" in text
    assert "not measured here" in text
    assert "Not comparable with published numbers: examples is 6, not 750" in text
    assert "Macro average" in text
    table = latex(summary)
    assert r"base & 71.000 {\scriptsize [71.000, 71.000]} \\" in table
    assert r"UNO & 76.0 \\" in table
    assert table.index("Published, not measured here") > table.index("tuned &")
    assert table.count("{") == table.count("}")


def test_tables_show_the_runs_of_a_judge_and_the_share_that_failed() -> None:
    row = {"prompt": "p", "group": "g", "index": 0, "image": 0}
    rows = [
        row | {"key": "a", "values": {"cp": 0.5}, "runs": {"cp": [0.25, 0.75]}},
        row | {"key": "b", "values": {"cp": 0.5}, "runs": {"cp": [0.5, None]}},
    ]
    text = markdown(build_summary("mine", {"tuned": rows}))
    assert "tuned, cp: 2 runs, standard deviation of their means 0.265; 25.0% failed and are excluded." in text


def heldout(level: float, seed: int = 0) -> Rows:
    noise = np.random.default_rng(seed).normal(size=40) * 0.02
    return [
        {"key": f"k{i}", "prompt": "p", "index": i, "image": 0, "values": {"judge": level + 0.01 * (i % 7) + noise[i]}}
        for i in range(40)
    ]  # fmt: skip


def training(rise: float) -> list[dict[str, float]]:
    noise = np.random.default_rng(1).normal(size=60) * 0.01
    return [{"step": s, "reward/dino/mean": 0.5 + rise * s / 60 + noise[s - 1]} for s in range(1, 61)]


@pytest.mark.parametrize(
    ("rise", "levels", "since"),
    [
        (0.2, (0.5, 0.5, 0.3, 0.3), 20),  # hacked since the second evaluation
        (0.2, (0.5, 0.6, 0.7, 0.4), 40),  # rose first
        (0.2, (0.5, 0.55, 0.6, 0.65), None),  # both rise
        (0.2, (0.5, 0.5, 0.5, 0.4999), None),  # no clear fall
        (-0.2, (0.5, 0.5, 0.3, 0.3), None),  # both fall
        (0.0, (0.5, 0.5, 0.3, 0.3), None),  # the reward stands still
        (0.2, (0.5,), None),  # the base alone
    ],
)
def test_a_reward_that_rises_while_its_twin_falls_is_suspected(
    rise: float, levels: tuple[float, ...], since: int | None
) -> None:
    evaluations = {20 * i: heldout(level, seed=i) for i, level in enumerate(levels)}
    steps = training(rise)[: 20 * (len(levels) - 1)]
    found = suspicions(steps, evaluations, {"dino": "identity"}, {"identity": "judge"})
    if since is None:
        assert found == []
        return
    (one,) = found
    assert (one.reward, one.column, one.until) == ("dino", "judge", 60)
    assert levels[one.since // 20] == max(levels[:-1])
    assert one.rise > 0 > one.fall.high
    assert "reward hacking?" in str(one)
    assert suspicions(steps, evaluations, {"dino": "identity"}, {"prompt": "judge"}) == []


def test_one_interval_is_halved() -> None:
    evaluations = {0: heldout(0.5), 20: heldout(0.3, seed=1)}
    found = suspicions(training(0.9)[:20], evaluations, {"dino": "identity"}, {"identity": "judge"})
    assert [one.since for one in found] == [0]


@pytest.mark.parametrize(("gain", "warned"), [(-1.5, True), (1.0, False)])
def test_the_report_warns(tmp_path: Path, gain: float, warned: bool) -> None:
    folder = make_run(tmp_path / "run", steps=60, planned=60, n=40, gain=gain)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rising = [line | {"reward/dino/mean": 0.5 + 0.01 * line["step"]} for line in lines]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rising))
    assert ("reward hacking?" in write_report([folder]).read_text()) is warned
    (run,) = read_runs([folder])
    assert run.suspicions(until=0) == []


def test_a_run_without_an_adapter_stands_for_its_base_and_that_is_said(tmp_path: Path) -> None:
    a, b = evaluated(tmp_path / "a", 0.5), evaluated(tmp_path / "b", 1.5)
    (a / "evaluation" / "tuned.jsonl").unlink()
    (found,) = compare_runs(read_runs([a, b]))
    assert found["notes"] == ["a is its base, as no adapter was evaluated there"]
