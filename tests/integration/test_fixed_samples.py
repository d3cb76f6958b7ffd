"""Fixed prompts that are drawn as training goes on: what they stand on, what they cost, and where they are shown."""

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import create_autospec

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.tracking import SwanLabTracker, TensorBoardTracker, TrackioTracker, WandBTracker
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from customized_grpo.cost.storage import disk
from customized_grpo.data.images import load_image
from customized_grpo.evaluation.costs import fixed, of_training
from customized_grpo.policies.adapters.tensor_files import read_tensors
from customized_grpo.rewards.base import AsyncGroupReward, RewardConfig
from customized_grpo.scoring.scorer import Scorer
from customized_grpo.training import trackers
from customized_grpo.training.pictures import FIXED, caption
from customized_grpo.training.setup import build
from customized_grpo.training.trainer import Trainer, train
from customized_grpo.types import Example
from runs import Brightness, Patchy, break_off, checkpoint_bytes, metrics_of, tiny_recipe, with_evaluation
from tiny_rewards import example, pictures

EVERY_TWO: dict[str, Any] = {"samples__every": 2, "train__steps": 3, "train__checkpoint_every": 2}


def records(run: Path) -> dict[str, list[dict[str, Any]]]:
    return {file.stem: json.loads(file.read_text()) for file in sorted((run / FIXED).glob("step-*.json"))}


def pixels(run: Path) -> dict[str, bytes]:
    return {str(file.relative_to(run)): file.read_bytes() for file in sorted((run / FIXED).rglob("*.png"))}


@pytest.fixture(scope="module")
def shown(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tiny_recipe(tiny_world, tmp_path_factory.mktemp("runs") / "shown", **EVERY_TWO))


def test_before_the_first_step_every_n_and_at_the_end(shown: Path) -> None:
    found = records(shown)
    assert list(found) == ["step-000000", "step-000002", "step-000003"]
    for step, rows in found.items():
        assert [row["prompt"] for row in rows] == ["a red dog", "a blue cat", "a dog"], "all, as there are less than 4"
        for number, row in enumerate(rows):
            assert row["file"] == f"{step}/{number}.png"
            picture = np.asarray(load_image(shown / FIXED / row["file"])).astype(np.float32)
            assert picture.shape == (32, 32, 3)
            assert row["values"]["bright"] == pytest.approx(picture.mean(), abs=1e-3), "the run's own reward"
            assert (shown / FIXED / row["reference"]).is_file()
    sheet = load_image(shown / FIXED / "progress.png")
    assert sheet.width > 4 * 144, "reference and three steps, each enlarged so that a person sees something"


def test_only_what_was_learnt_changes(shown: Path, tiny_world: Path, tmp_path: Path) -> None:
    """Another seed of the run trains otherwise, and begins with the same pictures."""
    other = train(tiny_recipe(tiny_world, tmp_path / "other", run__seed=7, **EVERY_TWO))
    one, two = pixels(shown), pixels(other)
    assert {name for name in one if "step-000000" in name} == {name for name in two if "step-000000" in name}
    for name, content in one.items():
        if "step-000000/" in name:
            assert two[name] == content
    assert one["samples/fixed/step-000003/0.png"] != one["samples/fixed/step-000000/0.png"]
    assert one["samples/fixed/step-000003/0.png"] != two["samples/fixed/step-000003/0.png"]


def test_training_is_the_same_without(shown: Path, tiny_world: Path, tmp_path: Path) -> None:
    without = train(tiny_recipe(tiny_world, tmp_path / "without", **(EVERY_TWO | {"samples__every": 0})))
    assert not (without / FIXED).exists()
    assert metrics_of(without) == metrics_of(shown)
    for name in ("adapter", "optimizer"):
        ours, theirs = (
            read_tensors(run / "checkpoints" / "step-000003" / "state" / f"{name}.safetensors")
            for run in (shown, without)
        )
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def test_a_run_that_was_killed_shows_the_same(shown: Path, tiny_world: Path, tmp_path: Path) -> None:
    broken = Trainer(build(tiny_recipe(tiny_world, tmp_path / "broken", **EVERY_TWO)))
    break_off(broken, 2)
    late = tmp_path / "broken" / FIXED / "step-000002.json"
    late.unlink()  # it was killed between the checkpoint and the record
    again = train(tiny_recipe(tiny_world, tmp_path / "broken", run__resume="latest", **EVERY_TWO))
    assert pixels(again) == pixels(shown)
    assert records(again) == records(shown)
    assert checkpoint_bytes(again, 3).keys() == checkpoint_bytes(shown, 3).keys()


def test_ones_own_prompts_and_held_out_references(tiny_world: Path, tmp_path: Path) -> None:
    changes = EVERY_TWO | with_evaluation(tiny_world, 2) | {"samples__prompts": ["a red cat", "a dog", "a dog", "x"]}
    changes["evaluate"] |= {"height": 64, "width": 32, "steps": 3}
    run = train(tiny_recipe(tiny_world, tmp_path / "run", **changes))
    (rows, *_) = records(run).values()
    assert [row["prompt"] for row in rows] == ["a red cat", "a dog", "a dog", "x"]
    assert [row["key"] for row in rows] == ["dog-0", "dog-0", "dog-1", "dog-2"], "in turn"
    assert load_image(run / FIXED / rows[0]["file"]).size == (32, 64), "of the evaluation's size"


def test_with_a_cache_no_encoder_is_needed(tiny_world: Path, tmp_path: Path, shown: Path) -> None:
    """The prompts are encoded with the others, before the transformer is loaded."""
    cached = train(tiny_recipe(tiny_world, tmp_path / "run", run__cache=str(tmp_path / "cache"), **EVERY_TWO))
    assert pixels(cached) == pixels(shown)


@pytest.mark.parametrize(
    ("samples", "says"),
    [
        ({"prompts": ["a dog"]}, "prompts has no effect with every: 0"),
        ({"every": 2, "number": 3, "prompts": ["a dog"]}, "number: given 3, but prompts has 1"),
        ({"every": 2, "prompts": ["a dog", " "]}, "prompts: number 2 is empty"),
    ],
)
def test_what_would_be_silently_inactive_is_refused(samples: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        tiny_recipe(Path("world"), Path("run"), samples=samples)


def test_a_prompt_that_the_policy_cant_read_is_refused_before_a_model_is_loaded(
    tiny_world: Path, tmp_path: Path
) -> None:
    recipe = tiny_recipe(
        tiny_world, tmp_path / "run", samples={"every": 1, "prompts": ["a dog", "a dog <|endoftext|>"]}
    )
    with pytest.raises(ValueError, match=r"samples\.prompts: number 2"):
        train(recipe)


class Ranks(AsyncGroupReward):
    """Compares the images of a group, which one picture can't be."""

    Config = RewardConfig
    relative = True

    def __init__(self, config: RewardConfig, *, device: torch.device) -> None:
        pass

    async def __call__(self, example: Example, images: Sequence[Image.Image]) -> Tensor:
        raise AssertionError("it was asked")


def test_scores_beside_a_step_count_for_nothing() -> None:
    """What has no score for a fixed prompt is no reason to stop; a reward that compares a group is not asked."""
    config_of = Brightness.Config(type="runs:Brightness", axis="prompt")
    device = torch.device("cpu")
    scorer = Scorer(
        {kind.__name__: kind(config_of, device=device) for kind in (Brightness, Patchy, Ranks)},
        max_failed_share=0.1,
    )
    with scorer:
        found = scorer.beside(example(1), pictures(3))
        assert found.keys() == {"Brightness", "Patchy"}
        assert [math.isnan(value) for value in found["Patchy"]] == [False, True, False]
        assert set(scorer.tally.drain().values()) <= {0.0}


def test_they_are_counted_in_requests_and_on_disk(tiny_world: Path) -> None:
    judge = {
        "type": "vlm",
        "axis": "identity",
        "model": "m",
        "base_url": "http://127.0.0.1:9/v1",
        "rubric": "concept_preservation",
    }
    changes = {"samples": {"every": 2}, "rewards__judge": judge, "train__steps": 3}
    recipe, without = (
        tiny_recipe(tiny_world, Path("run"), **(changes | more)) for more in ({}, {"samples": {"every": 0}})
    )
    assert (fixed(recipe), fixed(recipe, 1), fixed(recipe, 2), fixed(without)) == (12, 8, 4, 0)
    asked = [of_training(one, done=0, run=None)[0] for one in (recipe, without)]
    assert "36 " in asked[0]
    assert "24 " in asked[1]
    assert disk(recipe).samples - disk(without).samples == 12 * 32 * 32 * 3


class Said:
    """Stands for a tracker's library: notes what its pictures are made of."""

    def __init__(self, picture: Any, caption: str) -> None:
        self.size, self.caption = np.asarray(picture).shape, caption


@pytest.mark.parametrize(
    ("kind", "library"), [(WandBTracker, "wandb"), (TrackioTracker, "trackio"), (SwanLabTracker, "swanlab")]
)
def test_a_tracker_gets_pictures_with_captions(kind: type[Any], library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = ModuleType(library)
    made.Image = Said  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, library, made)
    logged: list[tuple[dict[str, Any], Any]] = []
    tracker = kind("project")
    tracker.run = SimpleNamespace(log=lambda values, step=None, **_: logged.append((values, step)))
    shown = [(Image.new("RGB", (8, 6)), "a dog | clip 1"), (Image.new("RGB", (8, 6)), "a cat | clip 2")]
    trackers.log_pictures(tracker, shown, step=7)
    assert [(list(values), step) for values, step in logged] == [(["samples/0"], 7), (["samples/1"], 7)]
    assert logged[1][0]["samples/1"].caption == "a cat | clip 2"
    assert logged[1][0]["samples/1"].size == (6, 8, 3)


def test_tensorboard_gets_them_beside_a_text() -> None:
    tracker = TensorBoardTracker("project", ".")
    added: list[tuple[str, Any]] = []
    tracker.writer = SimpleNamespace(
        add_images=lambda name, value, global_step, dataformats: added.append((name, (value.shape, dataformats))),
        add_text=lambda name, value, global_step: added.append((name, value)),
        flush=lambda: None,
    )
    trackers.log_pictures(tracker, [(Image.new("RGB", (8, 6)), "a dog")], step=1)
    assert added == [("samples/0", ((1, 6, 8, 3), "NHWC")), ("samples/0/caption", "a dog")]


def test_a_recipe_is_keys_that_can_be_filtered(tiny_world: Path) -> None:
    recipe = tiny_recipe(tiny_world, Path("run"), train__buckets=[[32, 64]])
    keys = trackers.flat(recipe.model_dump(mode="json"))
    assert keys["train.lr"] == 1e-2
    assert keys["advantage.aggregator.type"] == "sars"
    assert keys["train.buckets"] == "[[32, 64]]"
    assert all(isinstance(value, bool | str | int | float | None) for value in keys.values())


def test_a_run_is_called_as_its_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, Any] = {}
    accelerator = create_autospec(Accelerator, instance=True)
    accelerator.init_trackers.side_effect = lambda project, config, init_kwargs: told.update(init_kwargs)
    for name in ("WANDB_NAME", "WANDB_RUN_ID", "WANDB_RESUME"):
        monkeypatch.delenv(name, raising=False)
    trackers.start(accelerator, tiny_recipe(Path("world"), Path("runs/mine")), "0123456789abcdef")
    assert told["wandb"] == {"name": "mine", "id": "0123456789abcdef", "resume": "allow"}
    first = told["trackio"]
    trackers.start(accelerator, tiny_recipe(Path("world"), Path("runs/mine"), run__resume="latest"), "0123456789abcdef")
    assert told["trackio"] == first == {"name": "mine-0123", "resume": "allow"}, "it goes on with its own curve"
    monkeypatch.setenv("WANDB_NAME", "by hand")
    trackers.start(accelerator, tiny_recipe(Path("world"), Path("runs/mine")), "0123456789abcdef")
    assert told["wandb"]["name"] == "by hand"


def test_a_caption_leaves_out_what_has_no_score() -> None:
    assert caption("a dog", {"clip": 31.25, "judge": None}) == "a dog | clip 31.2"
    assert caption("a dog", {}) == "a dog"


def test_other_prompts_of_a_resumed_run_are_not_mixed_with_the_former(tiny_world: Path, tmp_path: Path) -> None:
    train(tiny_recipe(tiny_world, tmp_path / "run", **(EVERY_TWO | {"train__steps": 2})))
    more = EVERY_TWO | {"train__steps": 3, "samples__prompts": ["a blue dog"], "run__resume": "latest"}
    run = train(tiny_recipe(tiny_world, tmp_path / "run", **more))
    assert [len(rows) for rows in records(run).values()] == [3, 1, 1], "what it goes on from is drawn again"
    sheet = load_image(run / FIXED / "progress.png")
    assert sheet.width < 4 * 154, "the reference and two steps"
