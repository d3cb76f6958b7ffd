"""Functions of the user's own: found in the current folder, and tried by validate and doctor before anything else."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from customized_grpo.commands.app import app
from runs import environment

MINE = """
def bright(example, images):
    return [sum(one.resize((1, 1)).getpixel((0, 0))) / 3 for one in images]

def one_for_all(example, images):
    return 0.5

def endless(example, images):
    return [float("inf")] * len(images)

def lost(example, images):
    return [example.extra["pose"]] * len(images)

def last(a, w):
    return a[:, :1].expand(-1, len(w))

def flat(a, w):
    return a.sum(1)

def never_zero(a, w):
    return a @ w.T + 1.0
"""
PROGRAM = "from customized_grpo.commands.app import app\napp()\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a module in the current folder, new for each test."""
    name = f"mine_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("customized_grpo.commands.doctor.examine", lambda folder: [])
    return name


def said(command: str, *words: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, [command, "mini_customized", *words], env={"COLUMNS": "400"})
    return done.exit_code, " ".join(done.output.replace("│", " ").split())


def reward(module: str, name: str) -> str:
    return f"rewards.clip={{type: '{module}:{name}', axis: prompt}}"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("one_for_all", "returned 0.5; return a list of one number, or None, an image"),
        ("endless", "infinite scores"),
        ("lost", "KeyError: 'pose'"),
    ],
)
def test_a_reward_that_fails_the_kit_is_said_in_a_line(here: str, name: str, why: str) -> None:
    code, text = said("validate", reward(here, name))
    assert code == 2
    assert f"error: rewards.clip: {here}:{name} fails check_reward on the example 'mini-train-0-000000': " in text
    assert why in text
    code, text = said("doctor", reward(here, name))
    assert code == 1
    assert why in text
    assert "mend it" in text


@pytest.mark.parametrize(("name", "why"), [("flat", "not (G, K)"), ("never_zero", "must get zeros")])
def test_an_aggregator_that_fails_the_kit_is_said_in_a_line(here: str, name: str, why: str) -> None:
    code, text = said("validate", f"advantage.aggregator={{type: '{here}:{name}'}}")
    assert code == 2
    assert f"error: advantage.aggregator: {here}:{name} fails check_aggregator: " in text
    assert why in text
    assert why in said("doctor", f"advantage.aggregator={{type: '{here}:{name}'}}")[1]


def test_sound_ones_pass(here: str) -> None:
    given = (reward(here, "bright"), f"advantage.aggregator={{type: '{here}:last'}}")
    assert said("validate", *given)[0] == 0
    code, text = said("doctor", *given)
    assert code == 0
    assert "nothing to do" in text


@pytest.mark.parametrize("safe", [False, True])
def test_the_current_folder_is_on_the_path_of_the_script_too(here: str, tmp_path: Path, safe: bool) -> None:
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "customized-grpo"
    script.write_text(PROGRAM)
    command: list[Any] = [sys.executable, *(["-P"] if safe else []), script, "validate", "mini_customized"]
    ended = subprocess.run(
        [*command, reward(here, "bright")], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert (ended.returncode == 0) == (not safe), ended.stderr
    assert ("must be in the current folder, or in one of PYTHONPATH" in ended.stderr) == safe
