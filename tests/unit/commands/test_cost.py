"""What ``validate``, ``doctor`` and ``train`` say before money is spent."""

import re
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from customized_grpo.commands import doctor
from customized_grpo.commands.app import app
from customized_grpo.console import out
from customized_grpo.recipe.loading import load_recipe
from customized_grpo.rewards.judge.section import JudgeSection


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(out, "_width", 300)  # xdist's workers have COLUMNS, which a console reads when it is made


def run(*arguments: str, **env: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"TERM": "dumb", **env})


def said(done: Result) -> dict[str, str]:
    """Rows of the tables by their first column."""
    assert done.exit_code == 0, done.output
    rows = re.findall(r"^│ (.*?) +│ (.*?) +│", done.output, re.M)
    return {name: text for name, text in rows if name}


def test_validate_says_time_downloads_and_disk(tmp_path: Path) -> None:
    found = said(run("validate", "uno_customized_grpo", f"run.dir={tmp_path}/run", HF_HUB_CACHE=str(tmp_path)))
    assert found["time of a step"] == "13.2 minutes on one NVIDIA H200: 8 groups of 99.1 s"
    assert found["time of the run"] == "9.2 days (measured): 1000 steps; without rewards.hpsv3"
    assert found["measured"].endswith("on one NVIDIA H200, torch 2.11.0+cu130: benchmarks/results/flux_h200.json")
    assert found["to download"].startswith(
        "about 51.5 GB: black-forest-labs/FLUX.1-dev 33.7, bytedance-research/UNO 1.9"
    )
    assert found["disk"].startswith(
        "at most 9.2 GB: 3 checkpoints of 2.0 GB, and one more while it is written; pictures"
    )
    assert "a guess" not in found
    assert not any("price" in name for name in found), "no price is known, so none is said"


def test_a_guess_is_never_called_measured() -> None:
    found = said(run("validate", "uno_customized_grpo", "--card", "A100"))
    assert found["time of the run"].startswith("29.1 days (a guess): ")
    assert found["a guess"].startswith(
        "scaled from NVIDIA H200 by the published peaks in bfloat16, 312 and 989 TFLOP/s; measured: "
    )
    assert "measured" not in found
    assert "a guess" not in said(run("validate", "uno_customized_grpo", "--card", "h200")), "that one was measured"
    several = said(run("validate", "uno_customized_grpo", WORLD_SIZE="8"))
    assert several["time of a step"] == "99.1 s on 8 x NVIDIA H200: 1 group of 99.1 s on each"
    assert several["time of the run"].startswith("27.6 hours (a guess): ")


def test_a_price_that_is_given_is_multiplied() -> None:
    found = said(run("validate", "customized_grpo_vlm", "samples.every=0", "--hour-price", "2", "--token-price", "3"))
    assert found["price of the run"] == f"{8 * 99.0879 * 1000 / 3600 * 2:,.0f}: 220 hours of a card at 2"
    recipe = load_recipe("customized_grpo_vlm", ["samples.every=0"])
    judges = [spec for spec in recipe.rewards.values() if isinstance(spec, JudgeSection)]
    assert len(judges) == 2
    tokens = sum(1000 * 8 * 12 * one.tokens() for one in judges)
    assert found["price of the judges"].startswith(f"{tokens / 1e6 * 3:,.2f}: about ")
    assert "price of the judges" not in said(run("validate", "uno_customized_grpo", "--token-price", "3"))


def test_an_unknown_card_is_refused_at_once() -> None:
    done = run("validate", "uno_customized_grpo", "--card", "H2000")
    assert done.exit_code == 2
    assert "--card: given 'H2000'; did you mean 'H200'?" in done.output
    assert "a valid recipe" not in done.output


def test_a_full_disk_is_seen_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10**9}))
    found = said(run("validate", "uno_customized_grpo"))
    assert (
        "free: 1.0 GB, which is not enough: give another run.dir, or keep fewer (train.keep_checkpoints)"
        in found["disk"]
    )


def test_doctor_says_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "examine", lambda folder: [])
    monkeypatch.setattr(doctor, "_needs", lambda recipe: [])
    assert said(run("doctor", "uno_customized_grpo_fast"))["time of the run"].startswith("3.0 days (measured)")
    known = said(run("doctor", "mini_customized", "run.threads=2"))
    assert known["time of a step"] == "2.14 s on a CPU of two cores, 2 of them used: 4 groups of 0.534 s"
    assert "7.1 minutes (a guess)" in known["time of the run"]


def test_train_says_it_before_anything_is_opened(tmp_path: Path) -> None:
    done = run("train", "uno_customized_grpo_fast", f"run.dir={tmp_path}/run", "data.path=/nowhere/x.jsonl")
    assert done.exit_code == 2
    assert "time of the run: 3.0 days (measured): 1000 steps; without rewards.hpsv3" in done.output
    assert "/nowhere/x.jsonl" in done.output
