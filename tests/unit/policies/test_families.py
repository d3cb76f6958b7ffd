"""A LoRA beneath, and the export of whole models, for every family: the same velocity everywhere."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline, ModularPipeline
from diffusers.utils import logging
from torch import Tensor

from customized_grpo.policies.adapters.lora import attach, reference, save_adapter, trainable_parameters
from customized_grpo.policies.adapters.low_rank import linear_shapes
from customized_grpo.policies.adapters.tuning import load_tuned
from customized_grpo.policies.base import LoraSettings
from customized_grpo.policies.export import export
from customized_grpo.policies.flux import UNO, UNOConfig
from customized_grpo.recipe.config import EvaluateRecipe
from lora_conventions import CLOSE, add, difference, velocity
from lora_writers import Names, Numbers, Plain, Written, dotted
from pipeline_cases import CASES, PROMPT, maker, pictures, shrink_constants
from tiny import make_tiny_flux

FAMILIES = ("flux1", "flux2", "klein-base", "klein-kv", "flux3", "flux3-distilled", "qwen-2511", "qwen-2.1")
SCALE = 0.5


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_constants(monkeypatch)
    logging.set_verbosity_error()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return maker(lambda: tmp_path_factory.mktemp("model"), flux1=make_tiny_flux)


def load(family: str, folder: Path, **changes: Any) -> Any:
    if family != "flux1":
        return CASES[family].load(folder, **changes)
    given = {"height": 64, "width": 48, "max_sequence_length": 16, "reference_size": 64, "min_references": 0}
    config = UNOConfig.model_validate({"model": str(folder), **given, **changes})
    return UNO.load(config, device=torch.device("cpu"), dtype=torch.float32)


def drawn(policy: Any) -> Tensor:
    return velocity(policy, policy.encode(PROMPT, pictures()[:1]))


def written(policy: Any, folder: Path) -> Written:
    """A LoRA of the layers that the policy trains by default, each with an alpha."""
    names = [one for one in linear_shapes(policy.transformer) for t in policy.lora_targets if re.fullmatch(t, one)]
    write = Plain({name: (name,) for name in names}, Names(dotted("transformer.")), Numbers(alpha=lambda name: 2.0))
    return write(folder, policy.transformer)


def moved(policy: Any) -> Any:
    """With an adapter that is no longer its start."""
    attach(policy, LoraSettings(rank=2, alpha=3), seed=0)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainable_parameters(policy).values():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.1)
    return policy


@pytest.mark.parametrize("mode", ["fuse", "adapter"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_base_is_the_model_plus_the_scaled_lora(
    family: str, mode: str, models: Callable[[str], Path], tmp_path: Path
) -> None:
    """In the KL's reference too, at the first step and after others: the KL to the start is 0."""
    folder = models(family)
    right = load(family, folder)
    bare = drawn(right)
    lora = written(right, tmp_path)
    add(right, {name: SCALE * one for name, one in lora.delta.items()})
    true = drawn(right)
    assert difference(true, bare) > 1e-2
    policy = load(family, folder, base_lora={"path": str(lora.path), "mode": mode, "scale": SCALE})
    first = drawn(policy)
    assert difference(first, true) < CLOSE
    attach(policy, LoraSettings(rank=2), seed=0)
    assert torch.equal(drawn(policy), first)
    with torch.no_grad():
        for parameter in trainable_parameters(policy).values():
            parameter.add_(0.05)
    assert difference(drawn(policy), first) > 1e-5
    with reference(policy):
        assert torch.equal(drawn(policy), first)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_export_needs_neither_lora(family: str, models: Callable[[str], Path], tmp_path: Path) -> None:
    """Of a base LoRA and a trained one: fused into a whole pipeline that diffusers opens, or both as one file."""
    folder = models(family)
    beneath = {"path": str(written(load(family, folder), tmp_path).path), "mode": "adapter", "scale": SCALE}
    policy = moved(load(family, folder, base_lora=beneath))
    expected = drawn(policy)
    assert difference(expected, drawn(load(family, folder))) > 1e-2
    save_adapter(policy, tmp_path / "run", {})
    section = policy.config.model_dump(mode="json", exclude_unset=True) | {"type": policy.config.type}
    recipe = EvaluateRecipe.model_validate(
        {
            "run": {"dir": "never", "precision": "no"},
            "evaluate": {
                "data": {"type": "manifest", "path": "never"},
                "metrics": {"shown": {"type": "dino", "model": "mini"}},
            },
            "policy": section,
        }
    )
    out = export(str(tmp_path / "run"), tmp_path / "model", "model", with_base=False, recipe=recipe)
    assert difference(drawn(load(family, out)), expected) < CLOSE
    by_diffusers = load(family, folder)
    by_diffusers.transformer = opened(family, out).transformer
    assert difference(drawn(by_diffusers), drawn(load(family, out))) == 0
    file = export(str(tmp_path / "run"), tmp_path / "both", "diffusers", with_base=True, recipe=recipe)
    both = load(family, folder)
    load_tuned(both, file)
    assert difference(drawn(both), expected) < CLOSE
    with pytest.raises(ValueError, match=r"trained with a LoRA beneath"):
        load_tuned(load(family, folder), tmp_path / "run")
    if family != "flux1":
        with pytest.raises(ValueError, match=r"--format original: .* FLUX\.1 .*; use --format model"):
            export(str(tmp_path / "run"), tmp_path / "file", "original", with_base=False, recipe=recipe)


def opened(family: str, folder: Path) -> Any:
    """The exported pipeline, by diffusers alone."""
    if family == "flux1":
        return FluxPipeline.from_pretrained(folder)
    if not family.startswith("flux3"):
        return CASES[family].stock(folder)
    pipeline = ModularPipeline.from_pretrained(str(folder))
    index = json.loads((folder / "modular_model_index.json").read_text())
    assert {index[name][-1]["pretrained_model_name_or_path"] for name in ("vae", "tokenizer")} == {str(folder)}
    pipeline.load_components(names=["transformer", "vae"])
    return pipeline


def test_what_can_not_be_joined_is_refused(models: Callable[[str], Path]) -> None:
    for family in ("qwen-2.1", "flux3"):
        with pytest.raises(ValueError, match=r"can't be fused into 8bit weights; use base_lora\.mode=adapter"):
            load(family, models(family), quantization="8bit", base_lora={"path": "x"})
        with pytest.raises(ValueError, match=r"use base_lora\.mode=fuse"):
            load(family, models(family), full={}, base_lora={"path": "x", "mode": "adapter"})
