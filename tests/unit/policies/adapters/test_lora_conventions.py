"""LoRA files in the conventions of public tools mean what their factors and alphas say, by every way in.

The right velocity is that of weights to which scale x up x down was added by hand; diffusers' own is compared with it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.utils import logging
from torch import Tensor

from customized_grpo.policies.adapters import lora, tuning
from customized_grpo.policies.adapters.lora_layers import commonest, exactly_these
from customized_grpo.policies.adapters.lora_reader import read_lora
from customized_grpo.policies.base import LoraSettings
from customized_grpo.policies.export import export
from customized_grpo.policies.flux import UNO, UNOConfig
from customized_grpo.recipe.config import EvaluateRecipe
from customized_grpo.types import Conditioning
from lora_conventions import (
    CLOSE,
    CONVENTIONS,
    Convention,
    add,
    by_diffusers,
    check_outcome,
    difference,
    make_model,
    open_model,
    velocity,
)
from lora_writers import Written
from pipeline_cases import pictures, shrink_constants


@dataclass(frozen=True)
class Case:
    """A file, and the velocities of its model without it and with what it means."""

    convention: Convention
    written: Written
    model: Path
    cond: Conditioning
    base: Tensor
    right: Tensor


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_constants(monkeypatch)
    logging.set_verbosity_error()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {family: make_model(family, root / family) for family in ("FLUX.1", "FLUX.2", "Qwen-Image")}


@pytest.fixture(scope="module", params=CONVENTIONS, ids=lambda one: one.name)
def case(request: pytest.FixtureRequest, models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    convention: Convention = request.param
    with pytest.MonkeyPatch.context() as patched:
        shrink_constants(patched)
        model = models[convention.family]
        written = convention.write(tmp_path_factory.mktemp("lora"), open_model(convention.family, model).transformer)
        policy = open_model(convention.family, model)
        cond = policy.encode("a red dog", pictures()[:1])
        base = velocity(policy, cond)
        add(policy, written.delta)
        yield Case(convention, written, model, cond, base, velocity(policy, cond))


TYPES = {"FLUX.1": "uno", "FLUX.2": "flux2", "Qwen-Image": "qwen-image-edit-plus"}
RECIPE: dict[str, Any] = {
    "run": {"dir": "never"},
    "evaluate": {
        "data": {"type": "manifest", "path": "never"},
        "metrics": {"shown": {"type": "dino", "model": "mini"}},
    },
}


def _base_lora(mode: str) -> Callable[..., Any]:
    def load(convention: Convention, model: Path, path: str, folder: Path) -> Any:
        beneath = {"path": path, "mode": mode}
        if convention.family != "FLUX.1":
            return open_model(convention.family, model, base_lora=beneath)
        config = {"height": 64, "width": 48, "max_sequence_length": 16, "reference_size": 64, "min_references": 0}
        section = UNOConfig.model_validate({"model": str(model), "base_lora": beneath, **config})
        return UNO.load(section, device=torch.device("cpu"), dtype=torch.float32)

    return load


def _drawn(convention: Convention, model: Path, path: str, folder: Path) -> Any:
    policy = open_model(convention.family, model)
    tuning.load_tuned(policy, path)
    return policy


def _started(convention: Convention, model: Path, path: str, folder: Path) -> Any:
    policy = open_model(convention.family, model)
    update = read_lora(path).update(policy.transformer)
    rank, alpha = commonest(update)
    lora.attach(policy, LoraSettings(rank=rank, alpha=alpha, targets=(exactly_these(update),), path=path), seed=0)
    return policy


def _exported(convention: Convention, model: Path, path: str, folder: Path) -> Any:
    policy = open_model(convention.family, model)
    section = {"type": TYPES[convention.family], "model": str(model)}
    recipe = EvaluateRecipe.model_validate(RECIPE | {"policy": section})
    file = export(path, folder / "exported", "diffusers", with_base=False, recipe=recipe)
    by_diffusers(policy, Written(file, {}))
    return policy


WAYS = {
    "base_lora, fused": _base_lora("fuse"),
    "base_lora, adapter": _base_lora("adapter"),
    "--lora": _drawn,
    "policy.lora.path": _started,
    "export, then diffusers": _exported,
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_in_gives_the_true_velocity(case: Case, way: str, tmp_path: Path) -> None:
    given = (case.convention, case.model, str(case.written.path), tmp_path)
    if case.convention.refused:
        with pytest.raises(ValueError, match=case.convention.refused):
            WAYS[way](*given)
        return
    assert difference(case.right, case.base) > 1e-2
    assert difference(velocity(WAYS[way](*given), case.cond), case.right) < CLOSE


def test_what_diffusers_makes_of_it_is_known(case: Case) -> None:
    """The difference to the true velocity, or that it refuses; the table of the documentation shows it."""
    theirs = open_model(case.convention.family, case.model)
    error = by_diffusers(theirs, case.written)
    check_outcome(case.convention, error, velocity(theirs, case.cond), case.right, case.base)


def test_what_is_left_aside_is_counted(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    if case.convention.refused:
        return
    assert sum(read_lora(case.written.path).aside.values()) == case.written.aside
    told = f"{case.written.aside} keys of text encoders are left aside"
    assert (told in " ".join(capsys.readouterr().err.split())) == bool(case.written.aside)
