"""A rehearsal of every shipped recipe of a real policy, so that its first real run meets nothing new.

One recipe of each family of policies, one of them with a judge and one under FSDP2; all of them by ``make rehearsal``.
"""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load

from customized_grpo.recipe.loading import load_recipe
from customized_grpo.training.checkpoint import check
from rehearsal import STEPS, make_world, recipes, rehearse
from runs import checkpoint_bytes, metrics_of

USUAL = {
    "kontext_customized_grpo@ddp",
    "flux2_klein_customized_grpo@ddp",
    "qwen_edit_customized_grpo@fsdp2",
    "customized_grpo_vlm@ddp",
}
CASES = sorted({f"{name}@ddp" for name in recipes()} | {"uno_customized_grpo@fsdp2"} | USUAL)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[] if case in USUAL else [pytest.mark.rehearsal]) for case in CASES]
)
def test_rehearsal(case: str, world: Path, tmp_path: Path) -> None:
    rehearse(case, world, tmp_path)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert state_of(killed) == state_of(whole)
    rows = metrics_of(whole)
    assert metrics_of(killed) == rows
    assert [row["step"] for row in rows] == list(range(STEPS + 1))
    assert all(row.get("ratio/max_abs_log_first", 0.0) == 0.0 and row["grad/norm"] > 0 for row in rows[1:])
    for run in (whole, killed):
        assert check(run / "checkpoints" / f"step-{STEPS:06d}") == STEPS
        assert (run / "evaluation" / "summary.json").is_file()
    for done in (0, STEPS):
        scores = evaluated(whole, done)
        assert len(scores) % 2, "a remainder over two ranks"
        assert all(math.isfinite(value) for values in scores.values() for value in values)
        assert evaluated(killed, done) == scores
    assert load_recipe(killed / "config.yaml").train.max_skipped == 3, "it was resumed with another"


def state_of(run: Path) -> dict[str, bytes]:
    """Weights and the trainer's state at the end, without the header of the adapter, which has the recipe's guards."""
    files = checkpoint_bytes(run, STEPS)
    assert load(files.pop("pytorch_lora_weights.safetensors"))
    return files


def evaluated(run: Path, done: int) -> dict[str, list[Any]]:
    """Held-out scores of each example."""
    lines = (run / "evaluation" / f"step-{done:06d}.jsonl").read_text().splitlines()
    return {row["key"]: list(row["values"].values()) for row in map(json.loads, lines)}
