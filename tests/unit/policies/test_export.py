"""``customized-grpo export``: every form gives the same velocity where it belongs; what has no such form is refused."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline
from safetensors import safe_open
from torch import Tensor
from typer.testing import CliRunner

from customized_grpo.commands.app import app
from customized_grpo.policies.adapters.lora import attach, save_adapter, trainable_parameters
from customized_grpo.policies.adapters.lora_reader import read_lora
from customized_grpo.policies.adapters.tuning import load_tuned
from customized_grpo.policies.adapters.uno_lora import layers
from customized_grpo.policies.base import LoraSettings
from customized_grpo.policies.export import export
from customized_grpo.policies.flux import UNO, UNOConfig
from customized_grpo.recipe.loading import load_recipe, save_recipe
from lora_conventions import FLUX
from runs import make_tiny_world, tiny_recipe
from tiny import make_tiny_flux
from uno_tiny import uno_file

UNOS = {"rank": 4, "alpha": 6.0, "targets": ["uno"], "qkv": "shared"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, UNO's LoRA for it, and data."""
    folder = make_tiny_world(tmp_path_factory.mktemp("world"))
    uno_file(folder)
    return folder


def load(world: Path, **changes: Any) -> UNO:
    settings = {"model": str(world / "flux"), "height": 32, "width": 32, "max_sequence_length": 16}
    config = UNOConfig.model_validate({**settings, "min_references": 0, **changes})
    return UNO.load(config, device=torch.device("cpu"), dtype=torch.float32)


def base_lora(world: Path, mode: str = "adapter") -> dict[str, Any]:
    return {"path": str(world / "dit_lora.safetensors"), "mode": mode, "scale": 0.8}


def velocity(policy: UNO) -> Tensor:
    x = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return policy.velocity(x, torch.tensor(0.7), policy.encode("a red cube", []))


def run_of(world: Path, folder: Path, lora: dict[str, Any], *, with_base: bool = True, **more: Any) -> Tensor:
    """A run's folder as far as an export reads it; the velocity of its policy."""
    beneath = base_lora(world) if with_base else None
    policy = load(world, base_lora=beneath)
    settings = LoraSettings.model_validate(lora)
    attach(policy, settings, seed=0)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainable_parameters(policy).values():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.1)
    checkpoint = folder / "checkpoints" / "step-000001"
    save_adapter(policy, checkpoint, {"base_model": "tiny", "step": "1"})
    (checkpoint / "manifest.json").write_text("{}")
    changes = {"policy__lora": settings.model_dump(), "policy__base_lora": beneath, **more}
    save_recipe(tiny_recipe(world, folder, **changes), folder / "config.yaml")
    return velocity(policy)


def exported(*arguments: object) -> Path:
    """By the real command."""
    result = CliRunner().invoke(app, ["export", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return Path(result.output.replace("\n", ""))


def close(given: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(given, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("qkv", ["shared", "separate"])
def test_unos_format_comes_back_to_the_same_velocity(world: Path, tmp_path: Path, qkv: str) -> None:
    """At the same rank where q, k and v share their A, else at three times the rank: exact either way."""
    expected = run_of(world, tmp_path / "run", {**UNOS, "qkv": qkv}, with_base=False)
    file = exported(tmp_path / "run", "--out", tmp_path / "uno", "--format", "uno")
    assert file.name == "dit_lora.safetensors"
    with safe_open(str(file), framework="pt") as opened:
        names, about = set(opened.keys()), opened.metadata()
        rank = opened.get_tensor("single_blocks.0.processor.qkv_lora.down.weight").shape[0]
    assert names == {f"{place}.{side}.weight" for place in layers(1, 1) for side in ("down", "up")}
    assert rank == (4 if qkv == "shared" else 12)
    assert about["base_model"] == "tiny"
    assert len(about["base_hash"]) == 16
    assert "lora_adapter_metadata" not in about
    close(velocity(load(world, base_lora={"path": str(file), "mode": "adapter"})), expected)


@pytest.mark.parametrize("lora", [UNOS, {"rank": 2}], ids=["uno's layers", "more layers"])
def test_one_lora_for_the_stock_model(world: Path, tmp_path: Path, lora: dict[str, Any]) -> None:
    """UNO's and ours in one file, by ``load_lora_weights`` and as a base LoRA here; ranks stand one after another."""
    expected = run_of(world, tmp_path / "run", lora)
    file = exported(tmp_path / "run", "--out", tmp_path / "both", "--with-base")
    stock = load(world)
    alone = velocity(stock)
    FluxPipeline.from_pretrained(world / "flux", transformer=stock.transformer).load_lora_weights(file.parent)
    close(velocity(stock), expected)
    assert (alone - expected).abs().max() > 1e-2
    close(velocity(load(world, base_lora={"path": str(file)})), expected)
    tuned = load(world)
    load_tuned(tuned, file)
    close(velocity(tuned), expected)
    with pytest.raises(ValueError, match=r"or holds that LoRA, .* use policy\.base_lora=null"):  # it would count twice
        load_tuned(load(world, base_lora=base_lora(world)), file)
    with safe_open(str(file), framework="pt") as opened:
        name = "transformer.transformer_blocks.0.attn.to_q.lora_A.weight"
        assert opened.get_tensor(name).shape[0] == 3 + lora["rank"]


def test_one_lora_for_unos_code(world: Path, tmp_path: Path) -> None:
    expected = run_of(world, tmp_path / "run", UNOS)
    file = exported(tmp_path / "run", "--out", tmp_path / "uno", "--format", "uno", "--with-base")
    close(velocity(load(world, base_lora={"path": str(file)})), expected)


def test_a_fused_model_is_base_and_both_loras(world: Path, tmp_path: Path) -> None:
    expected = run_of(world, tmp_path / "run", UNOS)
    folder = exported(tmp_path / "run", "--out", tmp_path / "model", "--format", "model")
    close(velocity(load(world, model=str(folder))), expected)
    file = exported(tmp_path / "run", "--out", tmp_path / "original", "--format", "original")
    close(velocity(load(world, transformer=str(file))), expected)


def test_an_adapter_of_a_quantised_base_is_fused_into_the_whole_one(world: Path, tmp_path: Path) -> None:
    """On a machine without a GPU too, where quantised weights can't even be loaded."""
    more = {"policy__quantization": "4bit", "run__precision": "bf16"}
    expected = run_of(world, tmp_path / "run", UNOS, **more)
    folder = exported(tmp_path / "run", "--out", tmp_path / "model", "--format", "model")
    given = velocity(load(world, model=str(folder)))
    assert (given - expected).norm() / expected.norm() < 0.03, "more than bf16 weights round"


def test_diffusers_format_is_the_checkpoints(world: Path, tmp_path: Path) -> None:
    run_of(world, tmp_path / "run", UNOS)
    file = exported(tmp_path / "run", "--out", tmp_path / "out")
    given, before = read_lora(file).factors, read_lora(tmp_path / "run").factors
    assert given.keys() == before.keys()
    for name, one in given.items():
        assert one.scale == 1  # the scale has gone into B
        assert torch.equal(one.a, before[name].a)
        assert torch.equal(one.b, before[name].b * 1.5)


def test_a_lora_of_another_tool_needs_its_model(world: Path, tmp_path: Path) -> None:
    """Its names are the original model's; with a recipe it becomes a LoRA of diffusers, of the same velocity."""
    run_of(world, tmp_path / "run", UNOS)
    kohya = next(one for one in FLUX if one.tool == "sd-scripts (kohya)")
    path = kohya.write(tmp_path / "kohya", load(world).transformer).path
    refused = CliRunner().invoke(app, ["export", str(path), "--out", str(tmp_path / "alone")])
    assert (refused.exit_code, "give its recipe as --config" in refused.stderr) == (2, True)
    export(str(path), tmp_path / "out", "diffusers", with_base=False, recipe=load_recipe(tmp_path / "run/config.yaml"))
    given, expected = (velocity(load(world, base_lora={"path": str(one)})) for one in (tmp_path / "out", path))
    close(given, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "unoo"], r"--format: given 'unoo'; did you mean 'uno'"),
        (["--format", "model", "--with-base"], r"holds the base's LoRA anyway"),
        (["--config", "mini_customized"], r"is of a model of another width"),
        (["--with-base"], r"no policy\.base_lora"),
        (
            ["--format", "uno"],
            r"UNO's format holds attention .*ff\.net\.2 and 2 more.*policy\.lora\.targets=\[uno\]",
        ),
    ],
)
def test_what_has_no_such_form_is_refused(world: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    run_of(world, tmp_path / "run", {"rank": 2}, with_base=False)
    command = ["export", str(tmp_path / "run"), "--out", str(tmp_path / "out"), *arguments]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2
    assert re.search(message, " ".join(result.output.split()))
    assert not (tmp_path / "out").exists()


def test_missing_layers_and_taken_folders_are_refused(world: Path, tmp_path: Path) -> None:
    run_of(world, tmp_path / "run", {"rank": 2, "targets": ["to_q", "to_k", "to_v"]}, with_base=False)
    with pytest.raises(ValueError, match=r"lacks single_transformer_blocks\.0\.proj_out.* and \d+ more"):
        export(str(tmp_path / "run"), tmp_path / "out", "uno", with_base=False, recipe=None)
    with pytest.raises(ValueError, match=r"--out: .* is taken"):
        export(str(tmp_path / "run"), tmp_path / "run", "diffusers", with_base=False, recipe=None)


@pytest.mark.parametrize("options", [["--with-base"], ["--format", "model"]], ids=["with base", "model"])
def test_an_export_with_another_lora_beneath_is_refused(world: Path, tmp_path: Path, options: list[str]) -> None:
    run_of(world, tmp_path / "run", UNOS)
    beneath = {**base_lora(world), "scale": 1.0}
    save_recipe(tiny_recipe(world, tmp_path / "run", policy__base_lora=beneath), tmp_path / "other.yaml")
    arguments = [tmp_path / "run", "--out", tmp_path / "out", "--config", tmp_path / "other.yaml", *options]
    result = CliRunner().invoke(app, ["export", *map(str, arguments)])
    assert (result.exit_code, "was trained with a LoRA beneath" in result.stderr) == (2, True)


def test_a_model_of_another_base_is_refused(world: Path, tmp_path: Path) -> None:
    run_of(world, tmp_path / "run", UNOS)
    other = make_tiny_flux(tmp_path / "other", seed=3)
    config = UNOConfig.model_validate({"model": str(other), "height": 32, "width": 32})
    recipe = tiny_recipe(world, tmp_path / "new").model_copy(update={"policy": config})
    with pytest.raises(ValueError, match=r"another base \('tiny'"):
        export(str(tmp_path / "run"), tmp_path / "out", "model", with_base=False, recipe=recipe)
