"""Curves and saved groups of a run in training."""

import json
import math
import time
from pathlib import Path

from PIL import Image

from customized_grpo.studio import live
from run_folder import make_run


def test_curves_follow_the_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=6)
    before = live.state_of(run)
    drawn = live.curves(run)
    assert "step 6" in drawn
    assert drawn.count("<svg") >= 3
    assert live.curves(run) is drawn, "drawn once"
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    time.sleep(0.01)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line | {"step": 7}) + "\n")
    assert live.state_of(run) != before
    assert "step 7" in live.curves(run)


def test_a_run_before_its_first_step_says_so(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert "at least one step" in live.curves(tmp_path / "run")


def test_saved_groups_in_order_with_their_values(tmp_path: Path) -> None:
    folder = tmp_path / "samples"
    folder.mkdir()
    for step in (10, 2):
        Image.new("RGB", (8, 8)).save(folder / f"step-{step:06d}.png")
    (folder / "step-000002.json").write_text(json.dumps({"key": "k", "prompt": "a dog", "clip": [1.5, None]}))
    (folder / "step-000010.json").write_text('{"prompt": "a d')  # as it is being written
    first, second = map(live.group_in, live.groups(tmp_path))
    assert (first.step, first.prompt, second.step, second.values) == (2, "a dog", 10, {})
    assert first.values["clip"][0] == 1.5
    assert math.isnan(first.values["clip"][1])
