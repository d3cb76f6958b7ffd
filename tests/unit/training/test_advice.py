import math
from pathlib import Path

import pytest
import torch

from customized_grpo import registry
from customized_grpo.memory.geometry import step_geometry
from customized_grpo.recipe.loading import load_recipe
from customized_grpo.sampling.dynamics import kept_noise
from customized_grpo.training.advice import advice

RECIPES = sorted((Path(__file__).parents[3] / "config" / "train").glob("*.yaml"))


def _advice(recipe: str, *overrides: str) -> list[str]:
    loaded = load_recipe(recipe, list(overrides))
    sigmas = step_geometry(loaded, world=1, latent_shape=loaded.policy.latent_shape()).sigmas
    assert sigmas is not None
    return advice(loaded, torch.tensor(sigmas))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_no_shipped_recipe_adds_more_noise_than_a_level_holds(path: Path) -> None:
    assert not [warning for warning in _advice(str(path)) if "sampling.dynamics" in warning]


def test_an_sde_on_a_grid_that_ends_low_is_warned_of() -> None:
    (warning,) = _advice("qwen_edit_customized_grpo", "sampling.dynamics={type: dance_sde, eta: 0.4}")
    assert "step 23 of 25 (0.086 -> 0.020) adds noise of 0.103" in warning
    assert "{type: cps}" in warning


@pytest.mark.parametrize(
    ("dynamics", "excess"),
    [("{type: dance_sde, eta: 0.4}", 0.16), ("{type: flow_sde, noise_level: 0.7}", 0.49 * 0.3 / 0.7)],
)
def test_kept_noise_is_that_of_the_sde(dynamics: str, excess: float) -> None:
    section = load_recipe("mini_customized", [f"sampling.dynamics={dynamics}"]).sampling.dynamics
    sigma, after, largest = (torch.tensor(value, dtype=torch.float64) for value in (0.3, 0.1, 0.9))
    kept, std = kept_noise(registry.build_function("dynamics", section), sigma, after, largest)
    assert std == pytest.approx(math.sqrt(excess * 0.2))
    assert kept == pytest.approx(0.1 - excess * 0.2 / 0.6)


def test_a_last_stage_that_no_trained_step_has_is_named() -> None:
    short = ["sampling.steps=16", "advantage.time_weights={type: tdw}"]
    (warning,) = _advice("mini_customized", *short)
    assert "ends at prompt 0.50, identity 0.50" in warning
    assert "integrate at most 0.88" in warning
    assert not _advice("mini_customized", "sampling.steps=17", "advantage.time_weights={type: tdw}")
    assert not _advice("mini_customized", "sampling.steps=6", "advantage.time_weights={type: tdw, integrate: 0.66}")
    rows = "[[0.9, 0.1], [0.1, 0.9], [0.5, 0.5], [0.5, 0.5], [0.5, 0.5], [0.1, 0.9]]"
    assert not _advice("mini_customized", f"advantage.time_weights={{type: table, rows: {rows}}}")


def test_levels_off_the_grid_come_nearer_to_the_end() -> None:
    short = ["sampling.steps=16", "advantage.time_weights={type: tdw}"]
    (warning,) = _advice("mini_nft", *short)
    assert "integrate at most 0.88" in warning
    assert not _advice("mini_nft", *short, "objective.levels={draw: stratified}")
    (warning,) = _advice("mini_nft", "sampling.steps=6", short[1], "objective.levels={draw: uniform}")
    assert "integrate at most 0.83" in warning


def test_noise_on_the_way_that_nothing_trains_on_is_told() -> None:
    noisy = ["sampling.solver=null", "sampling.dynamics={type: cps}", "advantage.time_weights={type: constant}"]
    assert not _advice("mini_nft", noisy[2])
    (own,) = _advice("mini_nft", *noisy, "sampling.plan={type: all}", "sampling.shared_noise=false")
    assert "only adds its own error to what is scored" in own
    (shared,) = _advice("mini_nft", *noisy, "sampling.plan={type: branch}")
    assert "(1 of 6 steps) is all that samples of a group differ by" in shared
    grpo = [text for text in _advice("mini_customized", noisy[2]) if "trains no step" in text]
    assert not grpo


@pytest.mark.parametrize(
    ("recipe", "model"),
    [
        ("flux2_klein_customized_grpo", "black-forest-labs/FLUX.2-klein-4B"),
        ("flux2_klein_customized_nft", "black-forest-labs/FLUX.2-klein-9b-kv"),
        ("flux3_klein_customized_grpo", "black-forest-labs/flux-3-image-klein"),
        ("kontext_customized_grpo", "black-forest-labs/FLUX.1-schnell"),
    ],
)
def test_training_a_step_distilled_model_is_warned_of(recipe: str, model: str) -> None:
    (warning,) = _advice(recipe, f"policy.model={model}")
    assert f"policy.model: {model} is distilled to few steps" in warning
    assert "Train on the base model" in warning
    assert not _advice(recipe)
