"""A run that was killed, stopped or damaged goes on to the very bytes of the uninterrupted one, or is refused."""

import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from customized_grpo.recipe.loading import save_recipe
from customized_grpo.training import checkpoint, trainer
from customized_grpo.training.checkpoint import CheckpointError
from customized_grpo.training.setup import build
from customized_grpo.training.state import restore
from customized_grpo.training.trainer import train
from forked import exit_code, forked
from runs import (
    SIGNAL_AT,
    checkpoint_bytes,
    command,
    environment,
    metrics_of,
    signal_at,
    tiny_dict,
    tiny_recipe,
)

from .conftest import Finished

EVERYTHING: dict[str, Any] = {
    "train__ema": 0.5,
    "train__updates_per_rollout": 2,
    "train__schedule": {"name": "cosine", "warmup_steps": 2},
    "objective__kl": 0.01,
    "objective__step_weighting": "equal",
    "sampling__dynamics": {"type": "cps"},
    "sampling__plan": {"type": "window", "width": 2, "every": 1},
}


def assert_equal_runs(one: Path, other: Path, step: int) -> None:
    assert checkpoint_bytes(one, step) == checkpoint_bytes(other, step)
    assert metrics_of(one) == metrics_of(other)


pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # of fork beside threads


@pytest.fixture(scope="module")
def killed(tiny_world: Path, ten: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Killed by -9 in its seventh step, two groups in."""
    root = tmp_path_factory.mktemp("killed")
    recipe, at = tiny_recipe(tiny_world, root / "run", **ten), signal_at(signal.SIGKILL, 14)
    code = exit_code(forked(root / "log", lambda: train(recipe), **{SIGNAL_AT: at}))
    assert code == -signal.SIGKILL, (root / "log").read_text()
    assert [row["step"] for row in metrics_of(root / "run")] == list(range(7))
    return root / "run"


def resumed(run: Path, world: Path, into: Path, changes: dict[str, Any]) -> Path:
    shutil.copytree(run, into)
    return train(tiny_recipe(world, into, run__resume="latest", **changes))


def test_killed_in_a_step(
    killed: Path, finished: Finished, tiny_world: Path, ten: dict[str, Any], tmp_path: Path
) -> None:
    assert_equal_runs(resumed(killed, tiny_world, tmp_path / "run", ten), finished.folder, 10)
    summary = "evaluation/summary.json"
    assert (tmp_path / "run" / summary).read_text() == (finished.folder / summary).read_text()


def test_killed_while_a_checkpoint_is_written(
    killed: Path, finished: Finished, tiny_world: Path, ten: dict[str, Any], tmp_path: Path
) -> None:
    shutil.copytree(killed, tmp_path / "run")
    recipe = tiny_recipe(tiny_world, tmp_path / "run", run__resume="latest", **ten)

    def killed_while_saving() -> None:
        checkpoint._sync = lambda path: os.kill(os.getpid(), signal.SIGKILL)
        train(recipe)

    code = exit_code(forked(tmp_path / "log", killed_while_saving))
    assert code == -signal.SIGKILL, (tmp_path / "log").read_text()
    names = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} - {"latest"}
    assert names == {"step-000005", ".step-000010.tmp"}
    assert [row["step"] for row in metrics_of(tmp_path / "run")] == list(range(11))
    train(recipe)
    assert_equal_runs(tmp_path / "run", finished.folder, 10)


def test_killed_before_the_first_checkpoint(
    finished: Finished,
    tiny_world: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    ten: dict[str, Any],
) -> None:
    run = tmp_path / "run"
    changes = {**ten, "train__steps": 2, "train__checkpoint_every": 0}
    run.mkdir()
    save_recipe(tiny_recipe(tiny_world, run, **changes), run / "config.yaml")
    (run / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1}\n{"step": 2, "rewa')
    (run / "checkpoints" / ".step-000002.tmp").mkdir(parents=True)
    train(tiny_recipe(tiny_world, run, run__resume="latest", **changes))
    assert "starts anew from step 0" in capsys.readouterr().out
    assert metrics_of(run)[:2] == metrics_of(finished.folder)[:2]
    assert [row["step"] for row in metrics_of(run)] == [0, 1, 2]


def test_a_corrupt_newest_checkpoint_is_passed_over(
    finished: Finished,
    tiny_world: Path,
    ten: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(finished.folder, tmp_path / "run")
    weights = tmp_path / "run" / "checkpoints" / "step-000010" / "state" / "adapter.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    named = {"run__resume": str(weights.parents[1])}
    with pytest.raises(CheckpointError, match=r"adapter\.safetensors is corrupt"):
        train(tiny_recipe(tiny_world, tmp_path / "run", **ten, **named))
    train(tiny_recipe(tiny_world, tmp_path / "run", run__resume="latest", **ten))
    assert "adapter.safetensors is corrupt" in capsys.readouterr().out
    assert_equal_runs(tmp_path / "run", finished.folder, 10)


def test_a_signal_finishes_the_step_saves_and_the_run_goes_on_exactly(
    tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With everything that has state: average, schedule, several updates, KL, a moving window."""
    changes = {**EVERYTHING, "train__steps": 3}
    whole = train(tiny_recipe(tiny_world, tmp_path / "whole", **changes))
    monkeypatch.setenv(SIGNAL_AT, signal_at(signal.SIGINT, 3))
    stopped = train(tiny_recipe(tiny_world, tmp_path / "stopped", **changes))
    command = f"customized-grpo train {stopped / 'config.yaml'} run.resume=latest"
    assert f"stopped after step 2 and saved; go on by: {command}" in capsys.readouterr().err
    assert [row["step"] for row in metrics_of(stopped)] == [1, 2]
    assert [path.name for path in (stopped / "checkpoints").glob("step-*")] == ["step-000002"]
    monkeypatch.delenv(SIGNAL_AT)
    train(tiny_recipe(tiny_world, stopped, run__resume="latest", **changes))
    assert_equal_runs(stopped, whole, 3)
    rows = metrics_of(whole)
    assert [row["lr"] for row in rows] == pytest.approx([1e-2, 5e-3, 0.0], abs=1e-9)  # warm-up, then cosine


def test_the_command_ends_well_on_a_termination_signal(tiny_world: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tiny_dict(tiny_world, tmp_path / "run")))
    ended = subprocess.run(
        command(recipe, "train.steps=50"),
        env=environment(**{SIGNAL_AT: signal_at(signal.SIGTERM, 1)}),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "stopped after step 1 and saved" in ended.stderr
    assert (tmp_path / "run" / "checkpoints" / "step-000001" / "manifest.json").is_file()


def test_a_finished_run_stays_as_it_is(
    finished: Finished, tiny_world: Path, ten: dict[str, Any], tmp_path: Path
) -> None:
    again = resumed(finished.folder, tiny_world, tmp_path / "run", ten)
    assert_equal_runs(again, finished.folder, 10)


def test_a_longer_run_goes_on_from_a_shorter_one(
    finished: Finished,
    tiny_world: Path,
    ten: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Only the constant schedule allows it; what changes harmlessly is said."""
    changes = {**ten, "train__steps": 11, "train__keep_checkpoints": 1, "train__evaluate_every": 0}
    again = resumed(finished.folder, tiny_world, tmp_path / "run", changes)
    said = capsys.readouterr().out
    assert all(key in said for key in ("train.steps", "train.keep_checkpoints", "train.evaluate_every"))
    assert metrics_of(again)[:11] == metrics_of(finished.folder)
    assert [path.name for path in (again / "checkpoints").glob("step-*")] == ["step-000011"]


def test_a_run_goes_on_with_changed_guards_and_ways_to_compute(
    finished: Finished, tiny_world: Path, ten: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What messages advise to a run that stopped."""
    changes = {
        "advantage__max_failed_share": 0.5,
        "policy__attention": "_native_math",
        "policy__gradient_checkpointing": 0.5,
        "sampling__batch": 2,
        "train__max_skipped": 3,
        "train__microbatch": 2,
        "train__old_log_probs": "replay",
        "train__ratio_guard": 0.5,
    }
    again = resumed(finished.folder, tiny_world, tmp_path / "run", {**ten, **changes, "train__steps": 11})
    said = capsys.readouterr().out
    assert all(key.replace("__", ".") in said for key in changes)
    assert said.count("resuming with changed keys") == 1
    assert metrics_of(again)[-1]["step"] == 11


def never_finite(*_: Any) -> float:
    return math.nan


def test_a_run_whose_gradient_is_never_finite_at_a_step_goes_on_past_it(
    tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the remedy of its own message; without it a resume meets the step again."""
    before, run = trainer.clip_and_step, tmp_path / "run"

    def not_at_two(*given: Any) -> float:
        newest = checkpoint.newest(run / "checkpoints")
        return math.nan if newest is not None and newest.name == "step-000002" else before(*given)

    monkeypatch.setattr(trainer, "clip_and_step", not_at_two)
    changes = {"train__checkpoint_every": 1, "train__group_size": 2, "sampling__steps": 3}
    for more in ({}, {"run__resume": "latest"}):
        with pytest.raises(trainer.DivergedError, match=r"Resume with a higher train\.max_skipped"):
            train(tiny_recipe(tiny_world, run, **changes, **more))
    train(tiny_recipe(tiny_world, run, **changes, run__resume="latest", train__max_skipped=1))
    said = "resuming with changed keys; a training step is the same up to rounding: train.max_skipped"
    assert said in " ".join(capsys.readouterr().out.split())
    assert [row["grad/max_skipped"] for row in metrics_of(run)] == [0, 0, 1, 1]


def test_a_run_without_a_checkpoint_starts_anew_with_any_recipe(
    tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing was trained that it could differ from; most faults come in the first step."""
    small = {"train__group_size": 2, "sampling__steps": 3, "train__steps": 1}
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "clip_and_step", never_finite)
        with pytest.raises(trainer.DivergedError):
            train(tiny_recipe(tiny_world, tmp_path / "run", **small))
    train(tiny_recipe(tiny_world, tmp_path / "run", **small, train__lr=0.5, run__resume="latest"))
    assert "starts anew from step 0, changed keys: train.lr" in " ".join(capsys.readouterr().out.split())
    assert [row["lr"] for row in metrics_of(tmp_path / "run")] == [0.5]


def test_fewer_steps_than_are_done_is_said(
    finished: Finished, tiny_world: Path, ten: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = resumed(finished.folder, tiny_world, tmp_path / "run", {**ten, "train__steps": 8})
    assert "train.steps is 8, and 10 steps are done already: nothing is trained" in capsys.readouterr().err
    assert metrics_of(again) == metrics_of(finished.folder)


def refused(world: Path, folder: Path, **changes: Any) -> None:
    """Built with a model that isn't there: a folder is refused before any weights are looked for."""
    build(tiny_recipe(world, folder, policy__model="nowhere", **changes))


def test_a_folder_with_files_is_refused(finished: Finished, tiny_world: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"already holds files; .*run\.resume=latest"):
        refused(tiny_world, finished.folder)
    taken = tmp_path / "file"
    taken.write_text("")
    with pytest.raises(ValueError, match="is a file"):
        refused(tiny_world, taken)


def test_there_must_be_something_to_resume(finished: Finished, tiny_world: Path, tmp_path: Path) -> None:
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(ValueError, match=r"holds no run to go on with"):
            refused(tiny_world, folder, run__resume="latest")
    assert not (tmp_path / "nowhere").exists()
    missing = finished.folder / "checkpoints" / "step-000099"
    with pytest.raises(CheckpointError, match="no readable manifest"):
        restored(finished, tiny_world, run__resume=str(missing))
    with pytest.raises(ValueError, match=r"is not a checkpoint of run\.dir"):
        restored(finished, tiny_world, run__resume=str(tmp_path / "step-000001"))


def test_an_older_checkpoint_is_not_resumed_beside_newer_ones(finished: Finished, tiny_world: Path) -> None:
    """A later ``latest`` would take the newer ones, of another history."""
    older = finished.folder / "checkpoints" / "step-000005"
    with pytest.raises(ValueError, match=r"newer checkpoints than step-000005 \(step-000010\)"):
        restored(finished, tiny_world, run__resume=str(older))


def test_an_evaluation_that_a_signal_put_off_is_made_up_for(
    finished: Finished, tiny_world: Path, ten: dict[str, Any], tmp_path: Path
) -> None:
    shutil.copytree(finished.folder, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-000010")
    label = "step-000005"
    every = {**ten, "train__evaluate_every": 5}
    train(tiny_recipe(tiny_world, tmp_path / "run", run__resume="latest", **every))
    assert (tmp_path / "run" / "evaluation" / f"{label}.jsonl").is_file()
    assert any("evaluation/" in key for row in metrics_of(tmp_path / "run") if row["step"] == 5 for key in row)


def restored(finished: Finished, world: Path, **changes: Any) -> None:
    recipe = tiny_recipe(world, finished.folder, **changes)
    restore(dataclasses.replace(finished.trainer.parts, recipe=recipe))


def test_a_recipe_that_would_compute_something_else_is_refused_by_name(
    finished: Finished, tiny_world: Path, ten: dict[str, Any]
) -> None:
    before = json.dumps([(path.name, os.stat(path).st_mtime_ns) for path in finished.folder.rglob("*")])
    changes = {**ten, "train__lr": 0.5, "run__seed": 7, "run__resume": "latest"}
    with pytest.raises(ValueError, match=r"run\.seed: was 42, given 7; train\.lr: was 0\.01, given 0\.5"):
        restored(finished, tiny_world, **changes)
    after = json.dumps([(path.name, os.stat(path).st_mtime_ns) for path in finished.folder.rglob("*")])
    assert after == before
