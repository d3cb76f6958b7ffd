"""A judge in the two places where it works: DreamBench++'s recipe on the miniature, and a training run."""

import json
import math
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
from typer.testing import CliRunner

from customized_grpo.commands.app import app
from customized_grpo.evaluation.costs import announced
from customized_grpo.evaluation.evaluator import evaluate
from customized_grpo.recipe.config import EvaluateRecipe
from customized_grpo.recipe.loading import load_any, load_recipe
from customized_grpo.report.write import write_report
from customized_grpo.rewards.base import RewardFailure
from customized_grpo.training.trainer import train
from judge_cases import KEY, KEY_ENV
from judge_server import JudgeServer, Reply, Request, completion, score
from runs import metrics_of, tiny_dict

EXAMPLES = 3
FAILS = 5
"""One question of so many, by number and kind."""


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_ENV, KEY)


def is_concept(request: Request) -> bool:
    return len(request.images) > 1


def test_dreambench_plus_on_the_miniature(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told: dict[str, list[int]] = {"cp": [], "pf": []}

    def script(request: Request) -> Reply:
        name = "cp" if is_concept(request) else "pf"
        if name == "cp" and len(told["cp"]) % FAILS == 1:
            told["cp"].append(-1)
            return completion(None, refusal="no")
        told[name].append((sum(request.pixel) + request.attempt) % 5)  # another answer each time
        return score(told[name][-1])

    with JudgeServer(script) as server:
        judges = {
            f"evaluate.metrics.{name}.{key}": value
            for name in ("cp", "pf")
            for key, value in {
                "base_url": server.url, "key_env": KEY_ENV, "cache": tmp_path / "judges.sqlite", "concurrency": 1,
                "image_format": "png",
            }.items()
        }  # fmt: skip
        recipe = load_recipe(
            "dreambench_plus",
            [
                f"run.dir={tmp_path / 'run'}", "run.precision=no", "run.threads=1", "run.device=cpu",
                "policy.model=mini", "policy.base_lora=null", "policy.height=64", "policy.width=64",
                "policy.max_sequence_length=16",
                "policy.reference_size=64", "policy.lora.rank=32", "sampling.steps=2",
                f"evaluate.data={{type: mini, split: test, size: {EXAMPLES}}}",
                *(f"{place}={value}" for place, value in judges.items()),
            ],
            EvaluateRecipe,
        )  # fmt: skip
        folder = evaluate(recipe)
        asked = len(server.requests)
        assert asked == 2 * (1 + 2 * 3 * EXAMPLES), "two rubrics: first question, then base and copy in three runs"
        evaluate(recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"retry_failed": False})}))
        assert len(server.requests) == asked, "finished prompts are kept"
    assert f"evaluate.metrics.cp: {2 * 3 * EXAMPLES} requests to gpt-4o-2024-05-13" in capsys.readouterr().err

    summary = json.loads((folder / "evaluation" / "summary.json").read_text())
    assert summary["protocol"] == "dreambench++"
    for row in summary["rows"]:
        found = row["metrics"]
        assert {"cp", "pf", "cp_x_pf"} <= set(found)
        lines = [json.loads(line) for line in (folder / "evaluation" / f"{row['name']}.jsonl").read_text().splitlines()]
        assert len(lines) == EXAMPLES
        for name in ("cp", "pf", "cp_x_pf"):
            runs = [line["runs"][name] for line in lines]
            known = [[value for value in one if value is not None] for one in runs]
            assert all(0.0 <= value <= 1.0 for one in known for value in one)
            assert found[name]["mean"] == pytest.approx(fmean(fmean(one) for one in known if one))
            assert found[name]["excluded"] == pytest.approx(1 - sum(map(len, known)) / (3 * EXAMPLES))
            by_run = [fmean(one[run] for one in runs if one[run] is not None) for run in range(3)]
            assert found[name]["runs"] == pytest.approx(by_run)
            assert found[name]["std"] == pytest.approx(stdev(by_run))
        for line in lines:
            for cp, pf, both in zip(*(line["runs"][name] for name in ("cp", "pf", "cp_x_pf")), strict=True):
                assert both == (None if cp is None else pytest.approx(cp * pf))
    shares = [row["metrics"]["cp"]["excluded"] for row in summary["rows"]]
    assert sum(shares) * 3 * EXAMPLES == pytest.approx(told["cp"].count(-1))
    assert sum(shares) > 0
    page = (folder / "evaluation" / "summary.md").read_text()
    assert "3 runs, standard deviation of their means" in page
    assert "failed and are excluded" in page
    for file in (folder / "config.yaml", write_report([folder])):
        assert KEY not in file.read_text()


def test_training_goes_through_a_judge_that_fails(
    tiny_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = 0

    def script(request: Request) -> Reply:
        nonlocal asked
        asked += 1
        if asked % FAILS:
            grade = sum(request.image.resize((1, 1)).getpixel((0, 0))) / 3 / 255  # type: ignore[arg-type]
            return score(round(4 * grade))
        kinds = (completion(""), completion("a fine one"), Reply(500), score(9), Reply(how="reset"))
        return kinds[asked // FAILS % len(kinds)]

    with JudgeServer(script) as server:
        judge = {
            "type": "vlm", "preset": "vllm", "model": "m", "base_url": server.url, "retries": 0,
            "cache": str(tmp_path / "judges.sqlite"),
        }  # fmt: skip
        rewards = {
            "pf": judge | {"axis": "prompt", "rubric": "prompt_following"},
            "cp": judge | {"axis": "identity", "rubric": "concept_preservation"},
        }
        data = tiny_dict(
            tiny_world, tmp_path / "run", rewards=rewards, advantage={"max_failed_share": 0.9}, train__steps=3
        )
        (tmp_path / "recipe.yaml").write_text(json.dumps(data))
        recipe = load_recipe(tmp_path / "recipe.yaml")
        train(recipe)
    said = "".join(capsys.readouterr())
    assert f"rewards.pf: {3 * 2 * 4} requests to m at {server.url}" in " ".join(said.split())
    rows = metrics_of(tmp_path / "run")
    assert len(rows) == 3
    failed = sum(row[f"reward/{name}/failed_share"] for row in rows for name in ("pf", "cp"))
    # groups of 4, two a step, two rubrics: every fifth of 48 questions; the same picture may be asked for once only
    assert failed * 8 == pytest.approx(asked // FAILS)
    for row in rows:
        for name in ("pf", "cp"):
            line = f"step {row['step']}: reward {name}: {round(8 * row[f'reward/{name}/failed_share'])} of 8 unscorable"
            assert (line in said) == (row[f"reward/{name}/failed_share"] > 0)
    assert "unscorable, last: " in said
    for row in rows:
        assert all(math.isfinite(value) for value in row.values() if isinstance(value, float))
        assert row["ratio/max_abs_log_first"] < 1e-3
    assert KEY not in (tmp_path / "run" / "config.yaml").read_text()


def spent(cache: Path) -> dict[str, int]:
    """Requests by account."""
    with closing(sqlite3.connect(cache)) as db:
        return dict(db.execute("SELECT judge, requests FROM spent").fetchall())


def test_a_budget_is_a_runs_own_and_counts_over_its_restarts(
    tiny_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two runs with room for one each share a file; the third needs more than it has, and goes on with more."""
    cache, per_step = tmp_path / "judges.sqlite", 2 * 4

    def brightness(request: Request) -> Reply:
        return score(round(4 * sum(request.image.resize((1, 1)).getpixel((0, 0))) / 3 / 255))  # type: ignore[arg-type]

    def recipe(server: JudgeServer, run: str, budget: int, **changes: Any) -> Path:
        judge = {
            "type": "vlm", "preset": "vllm", "model": "m", "base_url": server.url, "retries": 0, "cache": str(cache),
            "rubric": "prompt_following", "axis": "prompt", "budget_requests": budget,
        }  # fmt: skip
        rewards = {"pf": judge, "warm": {"type": "runs:Warmth", "axis": "identity"}}
        data = tiny_dict(tiny_world, tmp_path / run, rewards=rewards, train__checkpoint_every=1, **changes)
        (tmp_path / f"{run}.yaml").write_text(json.dumps(data))
        return tmp_path / f"{run}.yaml"

    def validated(file: Path) -> str:
        (line,) = [one for one in CliRunner().invoke(app, ["validate", str(file)]).stdout.splitlines() if "pf:" in one]
        return line

    with JudgeServer(brightness) as server:
        for run, seed in (("one", 1), ("two", 2)):
            file = recipe(server, run, 1 + 2 * per_step, run__seed=seed, train__steps=2)  # with the first question
            assert "spent" not in validated(file)
            train(load_recipe(file))
        assert max(spent(cache).values()) <= 1 + 2 * per_step < sum(spent(cache).values())

        file = recipe(server, "three", 10, run__seed=3, train__steps=3)
        assert validated(file).endswith("; more than budget_requests (10): the run will stop there")
        with pytest.raises(
            RewardFailure, match=r"the budget of m for prompt_following, rewards\.pf of run \w+ is spent"
        ):
            train(load_recipe(file))
        moved = (tmp_path / "three").rename(tmp_path / "moved")
        file = recipe(server, "moved", 40, run__seed=3, train__steps=3, run__resume="latest")
        expected = f"{2 * per_step} requests .*; of budget_requests \\(40\\) 10 are spent and 30 are left$"
        assert re.search(expected, validated(file))
        capsys.readouterr()
        train(load_recipe(file))
        assert re.search(expected, capsys.readouterr().err, re.MULTILINE), "the run says what validate says"
        assert [row["step"] for row in metrics_of(moved)] == [1, 2, 3]
        name = (moved / ".run").read_text().strip()
        counts = spent(cache)
        assert len(counts) == 3
        assert counts[f"m for prompt_following, rewards.pf of run {name}"] > 10


def test_what_a_run_will_ask_is_known_before() -> None:
    train_lines = announced(load_any("customized_grpo_vlm", ["rewards.cp.budget_requests=1000"]), None)
    assert [line.split(" requests")[0] for line in train_lines] == [
        "rewards.pf: 96084",
        "rewards.cp: 96084",
    ]  # 4 fixed prompts 21 times
    assert "more than budget_requests (1000): the run will stop there" in train_lines[1]
    assert "stop" not in train_lines[0]
    shown = CliRunner().invoke(app, ["validate", "customized_grpo_vlm"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    assert train_lines[0] in shown.stdout
    assert announced(load_any("mini_customized"), 2) == []
    assert announced(load_any("dreambench_plus"), None) == [], "it depends on the data"
    lines = announced(load_any("dreambench_plus", ["lora=run"]), 10)
    assert lines[0].startswith(f"evaluate.metrics.cp: {10 * 3 * 3} requests to gpt-4o-2024-05-13 at https://")
