"""A run that reads its conditioning from disk is the run that encodes it, byte for byte, and loads no encoder."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from customized_grpo.commands.app import app
from customized_grpo.data.base import Dataset, load_dataset
from customized_grpo.policies.flux import UNO
from customized_grpo.recipe.loading import save_recipe
from customized_grpo.training import encoded, setup
from customized_grpo.training.setup import build
from customized_grpo.training.trainer import Trainer
from runs import checkpoint_bytes, metrics_of, tiny_recipe, with_evaluation


def changes(world: Path) -> dict[str, Any]:
    return {"train__steps": 2, "train__checkpoint_every": 1, **with_evaluation(world, 2)}


def test_a_run_with_a_cache_has_the_bytes_of_one_without(tiny_world: Path, tmp_path: Path) -> None:
    cache, more = tmp_path / "cache", changes(tiny_world)
    fresh, cached = tmp_path / "fresh", tmp_path / "cached"
    Trainer(build(tiny_recipe(tiny_world, fresh, **more))).run()
    recipe = tiny_recipe(tiny_world, cached, run__cache=str(cache), **more)
    file = tmp_path / "recipe.yaml"
    save_recipe(recipe, file)
    for expected in ("3 conditionings made; the recipe uses", "0 conditionings made"):
        done = CliRunner().invoke(app, ["data", "cache", str(file)])
        assert done.exit_code == 0, done.output
        assert expected in done.stdout
        assert done.stdout.splitlines()[-1].startswith(f"next: customized-grpo train {file} ")
    trainer = Trainer(build(recipe))
    policy = trainer.parts.policy
    assert isinstance(policy, UNO)
    assert policy.pipeline.text_encoder_2 is None, "the encoders are in memory"
    trainer.run()
    assert checkpoint_bytes(fresh, 2) == checkpoint_bytes(cached, 2)
    assert metrics_of(fresh) == metrics_of(cached)
    rows = ("evaluation/step-000000.jsonl", "evaluation/step-000002.jsonl")
    for name in rows:
        assert (fresh / name).read_bytes() == (cached / name).read_bytes()


def test_training_completes_a_cache_by_itself(
    tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(tiny_world, tmp_path / "run", run__cache=str(tmp_path / "cache"), train__steps=1)
    trainer = Trainer(build(recipe))
    monkeypatch.setattr(UNO, "encode", lambda *_: pytest.fail("encoded in the middle of a run"))
    trainer.run()
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 2  # two groups, of two examples


def test_every_data_set_is_opened_once(tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    def counted(spec: Any, key: str) -> Dataset:
        opened.append(key)
        return load_dataset(spec, key)

    for module in (setup, encoded):
        monkeypatch.setattr(module, "load_dataset", counted)
    build(tiny_recipe(tiny_world, tmp_path / "run", run__cache=str(tmp_path / "cache"), **changes(tiny_world)))
    assert sorted(opened) == ["data", "evaluate.data"]


def test_data_cache_says_where_the_cache_is_missing(tiny_world: Path, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    save_recipe(tiny_recipe(tiny_world, tmp_path / "run"), file)
    done = CliRunner().invoke(app, ["data", "cache", str(file)])
    assert done.exit_code == 2
    assert "run.cache=FOLDER" in done.stderr
