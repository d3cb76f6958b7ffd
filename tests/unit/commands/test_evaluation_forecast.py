"""Forecast of an evaluation, by validate and by evaluate itself, and its lines without a terminal."""

import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from customized_grpo.commands.app import app
from customized_grpo.commands.cost import drawing_of
from customized_grpo.console import Counted, bars
from customized_grpo.cost.cards import card_named
from customized_grpo.cost.drawing import forecast_drawing
from customized_grpo.cost.forecast import forecast
from customized_grpo.recipe.config import EvaluateRecipe
from customized_grpo.recipe.loading import load_recipe

H200 = "NVIDIA H200"


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


def run(*words: str) -> Any:
    return CliRunner().invoke(app, words, env={"COLUMNS": "400", "TERM": "dumb"})


def recipe(*overrides: str) -> EvaluateRecipe:
    return load_recipe("dreambench", overrides, EvaluateRecipe)


def test_validate_says_what_evaluate_says(tmp_path: Path) -> None:
    size = ("evaluate.data.size=4", "sampling.steps=2", f"run.dir={tmp_path / 'run'}", "run.device=cpu")
    validated = " ".join(run("validate", "mini", *size).output.replace("│", " ").split())
    done = run("evaluate", "mini", *size)
    assert done.exit_code == 0, done.output
    for name, text in drawing_of(load_recipe("mini", list(size), EvaluateRecipe), 4).items():
        assert f"{name}: {text}\n" in done.stderr
        assert f"{name} {text}" in validated
    assert "images: 4 to draw at most: 4 examples x 1, by base\n" in done.stderr
    assert "nothing like it was measured on a CPU" in done.stderr


def test_images_and_seconds_are_counted() -> None:
    one = forecast_drawing(recipe(), card_named(H200), examples=10)
    assert forecast_drawing(recipe("lora=x"), card_named(H200), examples=10).seconds == pytest.approx(2 * one.seconds)
    assert forecast_drawing(recipe(), card_named(H200), examples=10, world=2).seconds == pytest.approx(one.seconds / 2)
    assert forecast_drawing(recipe("sampling.steps=50"), card_named(H200), examples=10).seconds > 1.5 * one.seconds
    several = recipe("evaluate.images_per_prompt=3", "lora=x")
    assert drawing_of(several, 5)["images"] == "30 to draw at most: 5 examples x 3, by base and tuned"
    assert "unknown" in drawing_of(recipe(), None)["images"]
    held_out = "evaluate={data: {type: mini}, metrics: {oracle: {type: mini_oracle}}}"
    training = load_recipe("uno_customized_grpo", ["train.evaluate_every=10", held_out])
    held = forecast(training, card_named(H200), examples=10)
    sampling = recipe().sampling.model_copy(update={"steps": training.sampling.steps})
    same = {"policy": training.policy, "sampling": sampling, "evaluate": training.evaluate}
    alike = recipe().model_copy(update=same)
    assert forecast_drawing(alike, card_named(H200), examples=10).seconds == pytest.approx(held.evaluation_s)


def test_a_guess_says_why() -> None:
    assert "a guess" in drawing_of(recipe(), 10, card="A100")
    slow = drawing_of(recipe("run.precision=no"), 10, card="H200")
    assert "what run.precision=no does to the time was not measured" in slow["a guess"]


def test_lines_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    clock = [0.0]
    counted = Counted("conditioning: ", now=lambda: clock[0])
    clock[0] = 70.0
    assert counted.line() == "conditioning: loading, for 70 seconds so far"
    counted.tell("base", 0, 10)
    clock[0] = 170.0
    assert counted.line() == "conditioning: base: 0 of 10"
    counted.tell("base", 2, 10)
    assert counted.line() == "conditioning: base: 2 of 10, about 7 minutes left"
    counted.tell("tuned", 5, 10)
    assert counted.line() == "conditioning: tuned: 5 of 10", "rows that are kept say nothing of the pace"
    with bars(every_s=0.02) as tell:
        tell("base", 3, 8)
        time.sleep(0.2)
    assert "base: 3 of 8" in capsys.readouterr().err
