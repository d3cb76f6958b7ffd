"""The example is short, runs as written, and computes what the trainer computes."""

import importlib.util
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from customized_grpo.data import order
from customized_grpo.recipe.loading import load_recipe
from customized_grpo.training.setup import build
from customized_grpo.training.trainer import Trainer

FILE = Path(__file__).parent.parent / "examples" / "grpo_step.py"
STEPS = 2


@pytest.fixture
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("grpo_step", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_is_one_short_file() -> None:
    assert len(FILE.read_text(encoding="utf-8").splitlines()) <= 130


def test_the_example_computes_what_the_trainer_computes(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rewards, gradient and ratio of two steps; those of the second are of the weights after the first update."""
    rows: list[dict[str, float]] = []
    grpo = example.grpo

    def recorded(steps: int) -> Iterator[dict[str, float]]:
        for row in grpo(steps):
            rows.append(row)
            yield row

    monkeypatch.setattr(example, "grpo", recorded)
    monkeypatch.setattr(sys, "argv", ["grpo_step.py", "--steps", str(STEPS)])
    example.main()
    lines = capsys.readouterr().out.splitlines()
    numbers = [[float(number) for number in re.findall(r"\d\S*", line)] for line in lines]
    assert [len(line) for line in numbers] == [5] * STEPS
    assert all(math.isfinite(number) for line in numbers for number in line)

    changes = {
        "run.dir": str(tmp_path), "run.device": "cpu", "data.size": 2, "train.groups_per_step": 2,
        "train.lr": 2e-3, "train.schedule.name": "constant", "train.evaluate_every": 0,
        "train.save_samples_every": 0,
    }  # fmt: skip
    recipe = load_recipe("mini_customized", [f"{key}={value}" for key, value in changes.items()])
    # The example visits its two prompts in one order, the trainer shuffles them anew in every epoch.
    monkeypatch.setattr(order, "indices", lambda step, **_: [0, 1])
    trainer = Trainer(build(recipe))
    before = [parameter.detach().clone() for parameter in trainer.parts.parameters.values()]
    for step, row in enumerate(rows):
        metrics = trainer.step(step)
        assert row == pytest.approx(
            {
                "prompt": metrics["reward/prompt/mean"],
                "identity": metrics["reward/identity/mean"],
                "gradient": metrics["grad/norm"],
                "log_ratio": metrics["ratio/max_abs_log_first"],
            },
            rel=1e-5,
        )
    trainer.parts.scorer.close()
    after = trainer.parts.parameters.values()
    assert any(not torch.equal(one, other) for one, other in zip(before, after, strict=True))
