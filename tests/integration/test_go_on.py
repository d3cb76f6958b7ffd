"""The command that a stopped or finished run names really goes on, typed as it stands."""

import re
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from customized_grpo.commands.app import app
from customized_grpo.commands.train import left
from customized_grpo.identity.runs import goes_on
from customized_grpo.training import checkpoint
from customized_grpo.training.trainer import Trainer
from runs import SIGNAL_AT, metrics_of, signal_at, tiny_dict

SMALL: dict[str, Any] = {"train__group_size": 2, "sampling__steps": 3, "train__checkpoint_every": 1}


def typed(command: str) -> Any:
    program, *words = shlex.split(command)
    assert program == "customized-grpo"
    return CliRunner().invoke(app, words)


def recipe(world: Path, folder: Path, **changes: Any) -> str:
    file = folder.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(tiny_dict(world, folder, **(SMALL | changes))))
    return f"customized-grpo train {shlex.quote(str(file))}"


def test_a_stopped_run_names_the_command_that_goes_on(
    tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a run"  # whose name a shell would cut
    monkeypatch.setenv(SIGNAL_AT, signal_at(signal.SIGINT, 1))
    stopped = typed(recipe(tiny_world, folder, train__steps=2))
    assert stopped.exit_code == 0
    (command,) = re.findall(r"stopped after step 1 and saved; go on by: (.*)", stopped.stderr)
    assert "for more steps" not in stopped.stdout
    monkeypatch.delenv(SIGNAL_AT)
    done = typed(command)
    assert done.exit_code == 0
    assert [row["step"] for row in metrics_of(folder)] == [1, 2]
    (more,) = re.findall(r"for more steps: (.*)", done.stdout)
    again = typed(goes_on(folder))
    assert f"train.steps is 2, and 2 steps are done already: nothing is trained; for more steps: {more}" in again.stderr
    assert typed(more).exit_code == 0
    assert [row["step"] for row in metrics_of(folder)] == [1, 2, 3, 4]


def test_more_steps_after_a_schedule_that_ended_take_a_new_run(
    tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = typed(recipe(tiny_world, Path("run"), train__steps=1, train__schedule={"name": "cosine"}))
    (more,) = re.findall(r"its cosine schedule has ended, so more steps take a new run: (.*)", done.stdout)
    refused = typed(f"{goes_on(Path('run'))} train.steps=2")
    assert refused.exit_code == 2
    assert "train.steps: was 1, given 2 (the cosine schedule ends there)" in refused.stderr
    assert more.endswith(refused.stderr.strip().rpartition("these weights: ")[2])
    assert typed(more).exit_code == 0
    assert checkpoint.newest(Path("NEW/checkpoints")) is not None


def test_a_second_ctrl_c_names_it_too(tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", interrupted)
        at_once = typed(recipe(tiny_world, folder, train__steps=1))
    assert at_once.exit_code == 130
    assert (
        f"stopped before its first checkpoint; the same command begins again, or: {goes_on(folder)}" in at_once.stderr
    )
    assert typed(goes_on(folder)).exit_code == 0
    assert left(folder) == f"stopped; its checkpoint of step 1 is whole, go on by: {goes_on(folder)}"
    assert left(tmp_path / "none") == "stopped before its first checkpoint; the same command begins again"


def test_of_several_processes_it_is_the_launchers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert goes_on(Path("r")).startswith("torchrun --standalone --nproc_per_node 2 -m customized_grpo train ")
