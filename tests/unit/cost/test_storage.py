"""Downloads and disk of a run, by hand."""

from pathlib import Path

import pytest

from customized_grpo.cost.storage import disk, downloads
from customized_grpo.recipe.loading import load_recipe


def test_what_a_run_fetches_is_told_with_its_size(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    recipe = load_recipe("uno_customized_grpo", ["rewards.dino.model=org/other"])
    found = {one.name: one.bytes for one in downloads(recipe)}
    # published: 23.8 GB, 9.5, 0.2 and 0.2 of the transformer, both encoders and the VAE; 1.9 of UNO's LoRA
    assert found.pop("black-forest-labs/FLUX.1-dev") == pytest.approx(33.7e9, rel=0.01)
    assert found.pop("bytedance-research/UNO") == pytest.approx(1.91e9, rel=0.01)
    assert found.pop("MizzenAI/HPSv3") == pytest.approx(16e9, rel=0.05)
    assert found == {"org/other": None}
    (tmp_path / "models--black-forest-labs--FLUX.1-dev" / "snapshots" / ("a" * 40)).mkdir(parents=True)
    assert "black-forest-labs/FLUX.1-dev" not in {one.name for one in downloads(recipe)}


def test_the_embedded_models_and_folders_are_not_fetched() -> None:
    assert downloads(load_recipe("mini_customized", [])) == []


def test_a_server_fetches_its_model_itself() -> None:
    names = {one.name for one in downloads(load_recipe("customized_grpo_dino_hpsv3_remote", []))}
    assert "MizzenAI/HPSv3" not in names
    assert "facebook/dinov2-base" in names


def test_checkpoints_and_pictures() -> None:
    found = disk(load_recipe("uno_customized_grpo", []))
    assert found.kept == 3
    groups, fixed = 101 * 13, 21 * 4  # after step 1 and every 10 of 1000, with a reference; four prompts every 50
    assert found.samples == (groups + fixed) * 512 * 512 * 3
    assert found.most == 4 * (found.checkpoint or 0) + found.samples
    assert disk(load_recipe("uno_customized_grpo", ["train.steps=60"])).kept == 2
    assert disk(load_recipe("uno_customized_grpo", ["policy.model=org/unknown"])).checkpoint is None
