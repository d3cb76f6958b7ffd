"""Held-out images of another size than the training's: drawn as an evaluation of that size draws them."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from customized_grpo.evaluation.evaluator import evaluate
from customized_grpo.memory.estimate import Line
from customized_grpo.memory.fitting import changes
from customized_grpo.memory.footprint import of_recipe
from customized_grpo.recipe.config import EvaluateRecipe, Recipe
from customized_grpo.recipe.loading import load_recipe
from customized_grpo.training.trainer import train
from runs import checkpoint_bytes, metrics_of, tiny_dict, tiny_recipe, with_evaluation

SIZE = {"height": 64, "width": 48}


def run(world: Path, folder: Path, size: dict[str, int] | None = None, **more: Any) -> Path:
    """Two steps at 32 x 32, evaluated before and after each."""
    changes = with_evaluation(world, 1)
    changes["evaluate"] |= size or {}
    train(tiny_recipe(world, folder, train__steps=2, sampling__shift="dynamic", **changes, **more))
    return folder


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def sized(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tiny_world, tmp_path_factory.mktemp("sized") / "run", SIZE)


def evaluated(world: Path, folder: Path, policy: dict[str, int], spec: dict[str, int]) -> Path:
    """The folder of an evaluation's rows, of the same recipe."""
    given = tiny_dict(world, folder, sampling__shift="dynamic", **with_evaluation(world, 1))
    recipe = EvaluateRecipe.model_validate(
        {
            "run": given["run"],
            "policy": given["policy"] | policy,
            "sampling": {"steps": 5, "shift": "dynamic"},
            "evaluate": given["evaluate"] | spec,
        }
    )
    return evaluate(recipe) / "evaluation"


def test_training_evaluates_as_the_command_does(sized: Path, tiny_world: Path, tmp_path: Path) -> None:
    """At the size of the policy of an evaluation, and at the size of its section ``evaluate``."""
    ours = rows(sized / "evaluation" / "step-000000.jsonl")
    found = [
        evaluated(tiny_world, tmp_path / "policy", SIZE, {}),
        evaluated(tiny_world, tmp_path / "evaluate", {}, SIZE),
    ]
    first, second = (rows(folder / "base.jsonl") for folder in found)
    assert first == second
    assert [row["values"] for row in ours] == [row["values"] for row in first]
    assert [row["picture"] for row in ours] == [row["picture"] for row in first]
    for one, other in zip(ours, first, strict=True):
        assert one["stands_on"] | {"weights": ""} == other["stands_on"] | {"weights": ""}
    with Image.open(sized / "evaluation" / ours[0]["file"]) as picture:
        assert picture.size == (48, 64)
    for folder in (sized / "evaluation", *found):
        settings = json.loads((folder / "summary.json").read_text())["settings"]
        assert (settings["height"], settings["width"]) == (64, 48)


def test_it_is_another_evaluation_than_at_the_trainings_size(sized: Path, tiny_world: Path, tmp_path: Path) -> None:
    """With other noise levels, as these depend on the number of tokens; what is trained is the same to the bit."""
    small = run(tiny_world, tmp_path / "run")
    of_small, of_sized = (rows(folder / "evaluation" / "step-000000.jsonl") for folder in (small, sized))
    for part in ("weights", "sigmas"):
        assert not {row["stands_on"][part] for row in of_small} & {row["stands_on"][part] for row in of_sized}
    mine, its = checkpoint_bytes(small, 2), checkpoint_bytes(sized, 2)
    assert mine["pytorch_lora_weights.safetensors"] != b""
    assert {n for n in mine if mine[n] != its[n]} <= {"pytorch_lora_weights.safetensors"}  # whose header has the recipe
    assert mine["adapter.safetensors"] == its["adapter.safetensors"]


def test_with_a_cache(sized: Path, tiny_world: Path, tmp_path: Path) -> None:
    """Conditionings of both sizes are kept apart, and the run has the numbers of one without a cache."""
    cached = run(tiny_world, tmp_path / "run", SIZE, run__cache=str(tmp_path / "cache"))
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 3 + 3
    assert metrics_of(cached) == metrics_of(sized)


def test_a_finished_run_goes_on_at_another_size(sized: Path, tiny_world: Path, tmp_path: Path) -> None:
    folder = run(tiny_world, tmp_path / "run")
    again = load_recipe(folder / "config.yaml", ["run.resume=latest", "train.steps=3", "evaluate.height=64"], Recipe)
    train(again)
    found = rows(folder / "evaluation" / "step-000000.jsonl")
    with Image.open(folder / "evaluation" / found[0]["file"]) as picture:
        assert picture.size == (32, 64), "the base is evaluated anew, to be compared with"


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ({"type": "uno"}, r"evaluate.height: given 40; this model needs a multiple of 16: use 32 or 48"),
        (
            {"type": "toy_policy:ToyPolicy"},
            r"evaluate.height: a policy of type toy_policy:ToyPolicy is opened for images",
        ),
    ],
)
def test_a_size_that_the_policy_does_not_draw(
    tiny_world: Path, tmp_path: Path, policy: dict[str, Any], expected: str
) -> None:
    given = with_evaluation(tiny_world, 1)
    given["evaluate"] |= {"height": 40}
    recipe = tiny_dict(tiny_world, tmp_path / "run", **given)
    recipe["policy"] = {"model": str(tiny_world / "flux"), "height": 32, "width": 32} | policy
    with pytest.raises(ValueError, match=expected):
        Recipe.model_validate(recipe)


def test_memory_counts_the_larger_images(tmp_path: Path) -> None:
    held = "evaluate={data: {type: mini}, metrics: {bright: {type: runs:Brightness}}}"
    usual = [f"run.dir={tmp_path}", held, "train.evaluate_every=1"]

    def of(*overrides: str) -> Recipe:
        return load_recipe("uno_customized_grpo", [*usual, *overrides])

    def peaks(recipe: Recipe) -> dict[str, Line]:
        return {line.name: line for line in of_recipe(recipe).peaks}

    size = ["evaluate.height=2048", "evaluate.width=2048"]
    large, usual_size = of(*size, "evaluate.batch=4"), of()
    four, one = peaks(large), peaks(of(*size, "evaluate.batch=1"))
    assert four["evaluation"].note == "4 images of 2048 x 2048"
    assert one["evaluation"].bytes < four["evaluation"].bytes
    assert one["evaluation's decode"].bytes == four["evaluation's decode"].bytes // 4
    assert of_recipe(large).total > of_recipe(usual_size).total
    for never in (usual_size, of("evaluate.height=256"), of(*size, "train.evaluate_every=0")):
        assert "evaluation" not in peaks(never)
    overrides, _ = changes(large, of_recipe(usual_size).total)
    assert any(override.startswith("evaluate.batch=") for override in overrides)
