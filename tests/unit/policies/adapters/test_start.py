"""``generate`` without an adapter draws what a recipe's training starts from."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from customized_grpo.policies.adapters import tuning
from customized_grpo.policies.adapters.full import attach, save
from customized_grpo.policies.base import FullSettings
from customized_grpo.recipe.config import Recipe
from customized_grpo.sampling.draw import draw
from lora_conventions import FLUX
from runs import tiny_dict
from tiny import tiny_policy


def recipe(flux: Path, tmp_path: Path, **changes: Any) -> Recipe:
    given = tiny_dict(tmp_path, tmp_path / "run", policy__model=str(flux), policy__min_references=0, **changes)
    return Recipe.model_validate(given)


def picture(of: Recipe, folder: Path, adapter: str | None = None) -> bytes:
    (file,) = draw(of, adapter, [], "a dog", folder / "a.png", steps=2, seed=1, num=1, grid=None)
    return Image.open(file).tobytes()


@pytest.fixture
def lora(tiny_flux: Path, tmp_path: Path) -> str:
    return str(FLUX[0].write(tmp_path / "lora", tiny_policy(tiny_flux).transformer).path)


def test_a_lora_to_start_from_is_drawn_with(tiny_flux: Path, tmp_path: Path, lora: str) -> None:
    """It was left out in silence, whatever its rank."""
    base = picture(recipe(tiny_flux, tmp_path), tmp_path)
    given = picture(recipe(tiny_flux, tmp_path), tmp_path, lora)
    started = recipe(tiny_flux, tmp_path, policy__lora={"rank": 64, "path": lora})
    assert picture(started, tmp_path) == given != base
    assert picture(started, tmp_path, f"{lora}=0") == base  # and an adapter that is given stands alone


def test_a_transformer_to_start_from_is_drawn_with(tiny_flux: Path, tmp_path: Path) -> None:
    model = tiny_policy(tiny_flux)
    weights = {name: one * 1.3 for name, one in model.transformer.named_parameters()}
    (tmp_path / "tuned").mkdir()
    save(model.transformer, tmp_path / "tuned", weights, model.dtype)
    full = {"policy__lora": None, "policy__full": {"path": str(tmp_path / "tuned")}}
    started = picture(recipe(tiny_flux, tmp_path, **full), tmp_path)
    base = recipe(tiny_flux, tmp_path)
    assert started == picture(base, tmp_path, str(tmp_path / "tuned")) != picture(base, tmp_path)


def test_a_start_that_is_not_there_is_refused(tiny_flux: Path, tmp_path: Path) -> None:
    for change, message in (
        ({"policy__lora": {"path": "lost"}}, "lost"),
        ({"policy__lora": None, "policy__full": {"path": "lost"}}, r"policy\.full\.path: there is no transformer"),
    ):
        with pytest.raises(ValueError, match=message):
            picture(recipe(tiny_flux, tmp_path, **change), tmp_path)


def test_no_path_is_nothing(tiny_flux: Path, tmp_path: Path) -> None:
    assert tuning.read_start(recipe(tiny_flux, tmp_path).policy) == ()


def test_a_kl_to_a_mix_of_two_models_is_refused(tiny_flux: Path, tmp_path: Path) -> None:
    """Only trained weights are exchanged for the base's: others that the start changed would stay in its reference."""
    model = tiny_policy(tiny_flux)
    weights = {name: one * 1.3 for name, one in model.transformer.named_parameters()}
    (tmp_path / "tuned").mkdir()
    save(model.transformer, tmp_path / "tuned", weights, model.dtype)
    some = FullSettings(path=str(tmp_path / "tuned"), targets=("single_transformer_blocks",))
    attach(tiny_policy(tiny_flux), some, keep_base=False)
    attach(tiny_policy(tiny_flux), some.model_copy(update={"targets": None}), keep_base=True)
    with pytest.raises(ValueError, match=r"full\.targets leaves frozen .* the KL would go to a mix"):
        attach(tiny_policy(tiny_flux), some, keep_base=True)
