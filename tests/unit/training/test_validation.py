"""What an evaluation during training warns of, from what the run has on disk."""

import json
from pathlib import Path
from typing import Any

import pytest

from customized_grpo.data.manifest import ManifestDataset
from customized_grpo.recipe.config import Recipe
from customized_grpo.training import validation
from customized_grpo.training.trainer import train
from run_folder import make_run
from runs import make_tiny_world, tiny_recipe, with_evaluation


@pytest.fixture(scope="module")
def hacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose identity reward rises to its end while the held-out identity falls from step 20 on."""
    folder = make_run(tmp_path_factory.mktemp("runs") / "hacked", steps=60, planned=60, n=30, gain=-1.5)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rising = [line | {"reward/dino/mean": 0.5 + 0.01 * line["step"]} for line in lines]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rising))
    return folder


def test_an_evaluation_warns(hacked: Path) -> None:
    (warning,) = validation.warnings(hacked, 60)
    assert "training reward 'dino' rose" in warning
    assert "'identity_accuracy' fell" in warning


def test_it_looks_no_further_than_its_step(hacked: Path) -> None:
    """A resumed run may find evaluations of steps that it has yet to repeat."""
    assert validation.warnings(hacked, 0) == []
    (warning,) = validation.warnings(hacked, 40)
    assert "step 40" in warning


@pytest.mark.parametrize(
    ("metric", "blind"),
    [
        ({"type": "runs:Brightness"}, True),
        ({"type": "runs:Brightness", "axis": "prompt", "weight": 0.5}, True),
        ({"type": "runs:Constant"}, False),
        ({"type": "dino", "model": "some/dino"}, True),
        ({"type": "dino", "model": "some/dino", "dtype": "bfloat16", "segment": "reference"}, True),
        ({"type": "dino", "model": "another/dino"}, False),
    ],
)
def test_a_metric_that_is_the_reward_itself_is_pointed_at(metric: dict[str, Any], blind: bool) -> None:
    recipe = Recipe.model_validate(
        {
            "run": {"dir": "x"},
            "policy": {"type": "uno", "model": "mini", "height": 32, "width": 32},
            "data": {"type": "mini"},
            "rewards": {
                "bright": {"type": "runs:Brightness", "axis": "prompt"},
                "warm": {"type": "runs:Warmth", "axis": "identity"},
                "dino": {"type": "dino", "model": "some/dino", "axis": "identity"},
            },
            "evaluate": {"data": {"type": "mini"}, "metrics": {"judge": metric}},
        }
    )
    found = validation.blind_spots(recipe)
    assert ["evaluate.metrics.judge" in one for one in found] == [True] * blind
    assert validation.blind_spots(recipe.model_copy(update={"evaluate": None})) == []


def test_training_says_what_an_evaluation_gives_to_worry_about(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A reward that grows with every call, its held-out twin that falls with every call, and an axis without one."""
    world = make_tiny_world(tmp_path)
    changes: dict[str, Any] = {
        "rewards__bright": {"type": "runs:Rising", "axis": "prompt"},
        **with_evaluation(world, 4),
    }
    changes["evaluate"]["metrics"] = {"judge": {"type": "runs:Falling", "axis": "prompt"}}
    train(tiny_recipe(world, tmp_path / "run", train__group_size=2, sampling__steps=2, **changes))
    said = capsys.readouterr().err
    (first,) = [line for line in said.splitlines() if "no held-out metric stands for" in line]
    assert "the axis identity, so reward hacking on it can't show" in first
    assert "'axis: identity'" in first
    (hacking,) = [line for line in said.splitlines() if "reward hacking?" in line]
    assert "training reward 'bright' rose" in hacking
    assert "'judge' fell by 2" in hacking
    assert said.index(first) < said.index(hacking)


def test_held_out_pictures_that_training_shows_are_pointed_at(tmp_path: Path) -> None:
    """A copy under another name is the same picture (tqwei05/PlantSeg#11)."""
    for name, content in {"a.png": b"a", "b.png": b"b", "c.png": b"cc", "copy.png": b"a"}.items():
        (tmp_path / name).write_bytes(content)

    def data(name: str, *references: str) -> ManifestDataset:
        rows = [{"id": f"{name}{at}", "prompt": "p", "references": [one]} for at, one in enumerate(references)]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return ManifestDataset(ManifestDataset.Config(type="manifest", path=str(tmp_path / name)))

    train = data("train.jsonl", "a.png", "b.png")
    assert validation.seen_in_training(train, data("other.jsonl", "c.png")) == []
    (notice,) = validation.seen_in_training(train, data("test.jsonl", "c.png", "copy.png"))
    assert "1 of 2 held-out references are pictures of the training data, too, such as that of 'test.jsonl1'" in notice


def _rows(values: dict[str, list[float | None]]) -> list[dict[str, Any]]:
    count = len(next(iter(values.values())))
    return [
        {
            "key": str(i),
            "prompt": f"p{i}",
            "index": i,
            "image": 0,
            "values": {name: of[i] for name, of in values.items()},
        }
        for i in range(count)
    ]


def test_results_are_said_when_they_come_and_in_a_table_at_the_end() -> None:
    base = _rows({"clip": [1.0, 2.0, 3.0, 4.0], "failed": [None, None, None, None]})
    tuned = _rows({"clip": [2.0, 3.0, 4.0, 5.5], "failed": [None, None, None, None]})
    assert validation.results({"tuned": tuned}, "example") == []
    (first,) = validation.results({"base": base}, "example")
    assert first.startswith("held out, base: clip 2.500")
    (line,) = validation.results({"base": base, "tuned": tuned}, "example")
    assert line.startswith("held out: clip 3.625 (+1.125 [")
    assert "failed" not in line
    head, row = validation.results({"base": base, "tuned": tuned}, "example", closing=True)
    assert head == "held out over 4 examples, tuned minus base with 95 %:"
    assert row.split()[:5] == ["clip", "2.500", "->", "3.625", "+1.125"]


def test_a_run_begins_with_what_it_trains_on_what_and_by_what(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    world = make_tiny_world(tmp_path)
    train(tiny_recipe(world, tmp_path / "run", train__steps=1))
    said = " ".join("".join(capfd.readouterr()).split())
    assert (
        f"{tmp_path / 'run'}: steps 1 to 1, 2 groups of 4 each, on cpu (1 thread); rewards: bright (prompt), warm"
        in said
    )
