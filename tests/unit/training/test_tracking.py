"""A run's folder and its log on disk."""

import errno
import json
import math
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import pytest
import torch
from accelerate import Accelerator
from accelerate.tracking import TensorBoardTracker, WandBTracker
from PIL import Image

from customized_grpo.atomic import held
from customized_grpo.training.pictures import save_group
from customized_grpo.training.tracking import METRICS, RunLog, cut_metrics, prepare_folder
from customized_grpo.training.trainer import train
from runs import tiny_recipe
from tiny_rewards import example, pictures


def test_a_new_or_empty_folder_is_taken(tmp_path: Path) -> None:
    prepare_folder(tmp_path / "new" / "run", resuming=False)
    assert (tmp_path / "new" / "run").is_dir()
    prepare_folder(tmp_path / "new" / "run", resuming=False)


def test_a_folder_with_anything_in_it_is_not(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"already holds files; .*run\.dir=.*run\.resume=latest"):
        prepare_folder(tmp_path, resuming=False)
    with pytest.raises(ValueError, match=r"holds no run to go on with"):
        prepare_folder(tmp_path, resuming=True)
    with pytest.raises(ValueError, match="is a file"):
        prepare_folder(tmp_path / "notes.txt", resuming=False)
    with pytest.raises(ValueError, match=r"can't be made \(.*; give a folder that can be written"):
        prepare_folder(tmp_path / "notes.txt" / "run", resuming=False)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_run_is_taken_when_resuming(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("run: {}")
    prepare_folder(tmp_path, resuming=True)


def test_lines_after_the_checkpoint_are_cut(tmp_path: Path) -> None:
    path = tmp_path / METRICS
    lines = [json.dumps({"step": step, "lr": 0.1}) for step in range(5)]
    path.write_text("\n".join([*lines, '{"step": 5, "l']))
    cut_metrics(path, 3)
    assert path.read_text() == "".join(f"{line}\n" for line in lines[:4])
    cut_metrics(path, -1)
    assert path.read_text() == ""
    cut_metrics(tmp_path / "absent.jsonl", 3)
    assert not (tmp_path / "absent.jsonl").exists()


def test_a_group_is_a_picture_with_its_values_beside_it(tmp_path: Path) -> None:
    images, one = pictures(3, height=24, width=20), example(1)
    save_group(tmp_path / "samples" / "step-000001.png", one, images, {"clip": [0.12345678, 0.5, 1.0]})
    with Image.open(tmp_path / "samples" / "step-000001.png") as opened:
        strip = opened.convert("RGB")
    assert strip.height == 24
    last = strip.crop((strip.width - 20, 0, strip.width, 24))
    assert last.tobytes() == images[2].numpy().tobytes()
    values = json.loads((tmp_path / "samples" / "step-000001.json").read_text())
    assert values == {"key": "dog-1", "prompt": "a red dog", "clip": [0.123457, 0.5, 1.0]}


def test_an_unscorable_value_is_valid_json(tmp_path: Path) -> None:
    save_group(tmp_path / "1.png", example(1), pictures(1), {"clip": [math.nan]})

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    assert json.loads((tmp_path / "1.json").read_text(), parse_constant=refuse)["clip"] == [None]


def test_a_line_a_step_with_null_for_what_has_no_value(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLog(Accelerator(cpu=True), tmp_path, tiny_recipe(tmp_path, tmp_path, train__steps=100), 0) as log:
        for step in range(1, 11):
            log.write(step, {"b": float(torch.tensor(0.5)), "a": math.nan, "c": math.inf}, f"headline {step}")
    rows = [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()]
    assert rows[1] == {"step": 2, "a": None, "b": 0.5, "c": None}
    assert len(rows) == 10
    said = [line.split("  ")[:2] for line in capsys.readouterr().err.splitlines()]
    assert said == [[f"step {step}/100", f"headline {step}"] for step in (1, 5, 10)]


def test_a_resumed_log_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / METRICS).write_text('{"step": 1}\n')
    with RunLog(Accelerator(cpu=True), tmp_path, tiny_recipe(tmp_path, tmp_path, train__steps=2), 1) as log:
        log.write(2, {}, "done")
        log.say("[bold] is text")
    assert [json.loads(line)["step"] for line in (tmp_path / METRICS).read_text().splitlines()] == [1, 2]
    assert capsys.readouterr().err.splitlines() == ["step 2/2  done", "[bold] is text"]


def test_a_full_disk_leaves_the_log_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was cut to nothing first: the log of a run that is resumed after its disk was full."""
    path = tmp_path / METRICS
    path.write_text("".join(f'{{"step": {step}}}\n' for step in range(5)))
    before = path.read_text()

    def full(*_: Any, **__: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        cut_metrics(path, 3)
    monkeypatch.undo()
    assert path.read_text() == before
    assert [one.name for one in tmp_path.iterdir()] == [METRICS]


def test_a_tracker_that_fails_stops_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An error of wandb's stopped the training (verl-project/verl#4904)."""
    accelerator = Accelerator(cpu=True)
    wandb, other = create_autospec(WandBTracker, instance=True), create_autospec(TensorBoardTracker, instance=True)
    wandb.name, other.name = "wandb", "tensorboard"
    wandb.log.side_effect = ConnectionError("api.wandb.ai is away")
    accelerator.trackers = [wandb, other]
    with RunLog(accelerator, tmp_path, tiny_recipe(tmp_path, tmp_path, train__steps=2), 0) as log:
        for step in (1, 2):
            log.write(step, {"lr": 0.5}, "")
    assert len((tmp_path / METRICS).read_text().splitlines()) == other.log.call_count == wandb.log.call_count == 2
    assert capsys.readouterr().err.count("wandb took no metrics of step 1: api.wandb.ai is away") == 1


def test_a_run_that_another_process_writes_is_not_resumed(tmp_path: Path) -> None:
    """Both wrote into one log and over each other's checkpoints (Lightning-AI/pytorch-lightning#12369)."""
    (tmp_path / "config.yaml").write_text("run: {}")
    with held(tmp_path), pytest.raises(ValueError, match=r"run\.dir: another process is writing into"):
        train(tiny_recipe(tmp_path / "world", tmp_path, run__resume="latest"))
    with pytest.raises(ValueError, match="world"):  # goes on to the data, which aren't there
        train(tiny_recipe(tmp_path / "world", tmp_path, run__resume="latest"))
