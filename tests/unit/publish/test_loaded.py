"""A published folder, loaded from nothing by diffusers alone, draws the picture that this package draws."""

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from customized_grpo.commands.app import app
from customized_grpo.paths import ASSETS
from customized_grpo.policies.adapters import comfy_names
from customized_grpo.policies.adapters.flux_keys import from_original, key_map, to_original
from customized_grpo.policies.adapters.lora import save_adapter
from customized_grpo.policies.base import LoraSettings, Policy, load_policy
from customized_grpo.policies.export import export
from customized_grpo.publish.loading import KINDS
from customized_grpo.recipe.config import Recipe
from customized_grpo.recipe.loading import load_recipe
from customized_grpo.sampling.rollout import sample_images
from customized_grpo.sampling.schedule import sigma_grid
from pipeline_cases import CASES, pictures
from publishing import noisy_adapter, run_of
from runs import environment, make_tiny_world, tiny_recipe
from tiny import make_tiny_flux, tiny_policy
from tiny_flux2 import make_tiny_flux2

PROMPT = "a red dog"


def published(run: Path, out: Path, *options: object) -> Path:
    result = CliRunner().invoke(
        app, ["publish", str(run), "--out", str(out), *map(str, options)], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    return out


def drawn_by_the_card(folder: Path, base: Path | None, noise: Tensor, reference: Image.Image) -> np.ndarray[Any, Any]:
    """The program of a folder's card in a process that never imports this package, from the given noise."""
    (program,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)
    place = folder.with_name(f"{folder.name}-elsewhere")
    folder.rename(place)  # from nothing: not where it was written
    work = place.with_name(f"{place.name}-work")
    work.mkdir()
    reference.save(work / "subject.png")
    save_file({"noise": noise.contiguous()}, work / "noise.safetensors")
    given = 'latents=safetensors.torch.load_file("noise.safetensors")["noise"]'
    program, count = re.subn(r"generator=torch\.Generator\(\)\.manual_seed\(0\)", given, program)
    assert count == 1
    program = re.sub(r'REPO = ".*?"', f"REPO = {str(place)!r}", program)
    if base is not None:
        program = re.sub(r'BASE = ".*?"', f"BASE = {str(base)!r}", program)
    program = program.replace('"cuda"', '"cpu"').replace("what to draw", PROMPT)
    program = f"import safetensors.torch, sys\n{program}\nassert 'customized_grpo' not in sys.modules\n"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=work, env=environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return np.asarray(Image.open(work / "out.png").convert("RGB"))


def ours(policy: Policy, recipe: Recipe, noise: Tensor, references: Sequence[Image.Image]) -> np.ndarray[Any, Any]:
    steps = (recipe.evaluate.steps if recipe.evaluate else None) or recipe.sampling.steps
    sigmas = sigma_grid(recipe.policy, recipe.sampling.shift, steps, policy.latent_shape[0])
    return sample_images(policy, policy.encode(PROMPT, list(references)), noise, sigmas)[0].numpy()


def noise_of(policy: Policy) -> Tensor:
    return torch.randn(1, *policy.latent_shape, generator=torch.Generator().manual_seed(3))


def same(given: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> None:
    """Equal but for the last bit of a rounding, and not flat."""
    assert given.shape == expected.shape
    assert np.abs(given.astype(int) - expected.astype(int)).max() <= 1
    assert (given == expected).mean() > 0.99
    assert expected.std() > 1


def test_the_demos_folder_draws_the_same_picture(tmp_path: Path) -> None:
    """The miniature, which the demo trains: stock FluxPipeline against ours, from a prompt alone, as it has no more."""
    recipe = load_recipe("mini_customized", [f"run.dir={tmp_path / 'run'}", "policy.min_references=0"])
    policy = run_of(tmp_path / "run", recipe)
    folder = published(tmp_path / "run", tmp_path / "out")
    noise = noise_of(policy)
    expected = ours(policy, recipe, noise, [])
    same(drawn_by_the_card(folder, None, noise, pictures()[0]), expected)
    base = load_recipe("mini_customized", ["policy.min_references=0"])
    untrained = ours(load_policy(base), base, noise, [])
    assert np.abs(untrained.astype(int) - expected.astype(int)).max() > 20, "the adapter changes nothing"


def test_the_demos_adapter_with_references_has_the_same_velocity_in_diffusers(tmp_path: Path) -> None:
    """The stock transformer with the published file, on UNO's tokens and places of two references."""
    recipe = load_recipe("mini_customized", [f"run.dir={tmp_path / 'run'}"])
    policy = run_of(tmp_path / "run", recipe)
    stock = FluxPipeline.from_pretrained(ASSETS / "flux", dtype=torch.float32)
    cond, x = policy.encode(PROMPT, list(pictures()[:2])), noise_of(policy)
    c = cond.tensors
    inputs = {
        "hidden_states": torch.cat([x, c["references"]], dim=1),
        "encoder_hidden_states": c["text"],
        "pooled_projections": c["pooled"],
        "timestep": torch.tensor([0.6]),
        "guidance": torch.tensor([3.5]) if stock.transformer.config.guidance_embeds else None,
        "img_ids": c["image_ids"][0],
        "txt_ids": torch.zeros(c["text"].shape[1], 3),
    }
    with torch.no_grad():
        before = stock.transformer(**inputs).sample[:, : x.shape[1]]
        stock.load_lora_weights(published(tmp_path / "run", tmp_path / "out"))
        given = stock.transformer(**inputs).sample[:, : x.shape[1]]
        expected = policy.velocity(x, torch.tensor(0.6), cond)
    torch.testing.assert_close(given, expected, rtol=0, atol=2e-5)
    assert (before - expected).abs().max() > 0.1


PIPELINES: dict[str, dict[str, Any]] = {
    "flux-kontext": {"max_sequence_length": 16, "lora": {"rank": 4, "alpha": 6.0}},
    "flux2-klein": {"max_sequence_length": 40, "lora": {"rank": 2}},
}


@pytest.mark.parametrize("kind", PIPELINES)
def test_a_stock_pipeline_with_a_reference_draws_the_same_picture(tmp_path: Path, kind: str) -> None:
    if kind == "flux-kontext":
        base = make_tiny_flux(tmp_path / "base", kontext=True)
    else:
        base = make_tiny_flux2(tmp_path / "base", klein=True)
    policy_section = {"type": kind, "model": str(base), "height": 64, "width": 48, **PIPELINES[kind]}
    recipe = tiny_recipe(
        make_tiny_world(tmp_path / "world"),
        tmp_path / "run",
        policy=policy_section,
        sampling={"steps": 3, "shift": 2.0},
    )
    policy = run_of(tmp_path / "run", recipe)
    name = {"flux-kontext": "FLUX.1-Kontext-dev", "flux2-klein": "FLUX.2-klein-base-4B"}[kind]
    folder = published(tmp_path / "run", tmp_path / "out", "--base", f"black-forest-labs/{name}")
    noise, reference = noise_of(policy), pictures()[0].resize((256, 256))
    expected = ours(policy, recipe, noise, [reference])
    grid = noise if kind == "flux-kontext" else noise.transpose(1, 2).reshape(1, -1, 4, 3)
    same(drawn_by_the_card(folder, base, grid, reference), expected)


@pytest.mark.parametrize("case", ["flux2", "klein-base", "flux3", "qwen-2509", "qwen-2.1"])
def test_diffusers_reads_every_key(tmp_path: Path, case: str) -> None:
    """``load_lora_weights`` of each family puts every factor of the file into the model, at scale 1."""
    one = CASES[case]
    base = one.make(tmp_path / "base", **one.options)
    policy = noisy_adapter(one.load(base), LoraSettings(rank=2, alpha=3.0))
    save_adapter(policy, tmp_path / "adapter", {})
    file = export(str(tmp_path / "adapter"), tmp_path / "out", "diffusers", with_base=False, recipe=None)
    pipeline = one.stock(base)
    pipeline.load_lora_weights(str(tmp_path / "out"))
    there = dict(pipeline.transformer.named_parameters())
    given = load_file(file)
    assert given
    for name, tensor in given.items():
        inside = re.sub(r"\.lora_([AB])\.weight$", r".lora_\1.default_0.weight", name.removeprefix("transformer."))
        assert torch.equal(there[inside].float(), tensor), name
    scales = {s for one in pipeline.transformer.modules() for s in (vars(one).get("scaling") or {}).values()}
    assert scales == {1.0}


# Names that ComfyUI reads, written down from its comfy/lora.py and comfy/utils.py apart from our table.
COMFY_FLUX2 = {
    "transformer_blocks.0": "attn.to_q attn.to_k attn.to_v attn.add_q_proj attn.add_k_proj attn.add_v_proj "
    "attn.to_out.0 attn.to_add_out ff.linear_in ff.linear_out ff_context.linear_in ff_context.linear_out",
    "single_transformer_blocks.0": "attn.to_qkv_mlp_proj attn.to_out",
    "": "x_embedder context_embedder proj_out norm_out.linear",
}
NOT_READ = {
    "double_stream_modulation_img.linear",
    "double_stream_modulation_txt.linear",
    "single_stream_modulation.linear",
    "time_guidance_embed.timestep_embedder.linear_1",
    "time_guidance_embed.timestep_embedder.linear_2",
}


def linear_layers(model: torch.nn.Module) -> set[str]:
    return {name for name, one in model.named_modules() if isinstance(one, torch.nn.Linear)}


def test_comfyui_reads_these_layers_of_flux2(tmp_path: Path) -> None:
    base = make_tiny_flux2(tmp_path / "base", klein=True)
    layers = linear_layers(CASES["klein-base"].load(base).transformer)
    read = {f"{block}.{name}".lstrip(".") for block, names in COMFY_FLUX2.items() for name in names.split()}
    assert layers - read == NOT_READ
    assert comfy_names.unread(layers, "FLUX.2") == sorted(NOT_READ)


def comfy_of_flux1(depth: int, single: int, width: int) -> dict[str, tuple[str, int, int]]:
    """ComfyUI's map for FLUX.1: a key without its ending -> its own weight, first row, number of rows (0: all)."""
    found: dict[str, tuple[str, int, int]] = {}
    for i in range(depth):
        ours, theirs = f"transformer.transformer_blocks.{i}", f"double_blocks.{i}"
        for stream, names in {"img": "to_q to_k to_v", "txt": "add_q_proj add_k_proj add_v_proj"}.items():
            for row, name in enumerate(names.split()):
                found[f"{ours}.attn.{name}"] = (f"{theirs}.{stream}_attn.qkv", row * width, width)
        for mine, its in {
            "attn.to_out.0": "img_attn.proj",
            "norm1.linear": "img_mod.lin",
            "norm1_context.linear": "txt_mod.lin",
            "attn.to_add_out": "txt_attn.proj",
            "ff.net.0.proj": "img_mlp.0",
            "ff.net.2": "img_mlp.2",
            "ff_context.net.0.proj": "txt_mlp.0",
            "ff_context.net.2": "txt_mlp.2",
        }.items():
            found[f"{ours}.{mine}"] = (f"{theirs}.{its}", 0, 0)
    for i in range(single):
        ours, theirs = f"transformer.single_transformer_blocks.{i}", f"single_blocks.{i}"
        for row, name in enumerate(("to_q", "to_k", "to_v")):
            found[f"{ours}.attn.{name}"] = (f"{theirs}.linear1", row * width, width)
        found[f"{ours}.proj_mlp"] = (f"{theirs}.linear1", 3 * width, 4 * width)
        found[f"{ours}.norm.linear"] = (f"{theirs}.modulation.lin", 0, 0)
        found[f"{ours}.proj_out"] = (f"{theirs}.linear2", 0, 0)
    return found


def test_comfyui_reads_a_published_flux1_adapter_to_the_same_velocity(tmp_path: Path) -> None:
    """Every key is in ComfyUI's map, and what it adds to its own fused weights is our update; it reads no header."""
    world = make_tiny_world(tmp_path / "world")
    lora = {"rank": 4, "alpha": 10.0}
    recipe = tiny_recipe(world, tmp_path / "run", policy__lora=lora, policy__min_references=0)
    tuned = run_of(tmp_path / "run", recipe)
    options = ("--base", "black-forest-labs/FLUX.1-dev")
    given = load_file(published(tmp_path / "run", tmp_path / "out", *options) / "pytorch_lora_weights.safetensors")
    policy = load_policy(recipe)
    model: Any = policy.transformer
    config = model.config
    known = comfy_of_flux1(config.num_layers, config.num_single_layers, model.inner_dim)
    names = {name.rpartition(".lora_")[0] for name in given}
    assert names <= known.keys()
    assert comfy_names.unread([name.removeprefix("transformer.") for name in names], "FLUX.1") == []
    keys = key_map(config.num_layers, config.num_single_layers, guidance=config.guidance_embeds)
    state = {name: one.clone() for name, one in model.state_dict().items()}
    original = to_original(state, keys)
    for name in names:
        weight, first, rows = known[name]
        added = given[f"{name}.lora_B.weight"] @ given[f"{name}.lora_A.weight"]  # no alpha beside it: scale 1
        original[f"{weight}.weight"][first : first + (rows or len(added))] += added
    model.load_state_dict(from_original(original, keys, {name: one.shape for name, one in state.items()}))
    x = torch.randn(1, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs, mine = (one.velocity(x, torch.tensor(0.6), one.encode(PROMPT, [])) for one in (policy, tuned))
    torch.testing.assert_close(theirs, mine, rtol=0, atol=2e-5)


@pytest.mark.parametrize("case", ["qwen-2509", "qwen-2.1"])
def test_comfyuis_qwen_image_has_diffusers_names(tmp_path: Path, case: str) -> None:
    """Its own module names, as far as its code was read, are those that the layers have here."""
    one = CASES[case]
    layers = linear_layers(one.load(one.make(tmp_path / "base", **one.options)).transformer)
    assert comfy_names.unread(layers, "Qwen-Image" if case == "qwen-2509" else "Qwen-Image-2.1") == []


def test_what_comfyui_reads_of_flux3_is_not_claimed() -> None:
    assert comfy_names.unread(["mode_blocks.0.attn.to_q"], KINDS["flux3-klein"].family) is None
    assert comfy_names.unread(["x"], None) is None


def test_the_default_layers_of_flux1_are_those_comfyui_reads(tmp_path: Path) -> None:
    policy = tiny_policy(make_tiny_flux(tmp_path / "flux"))
    assert comfy_names.unread(linear_layers(policy.transformer), "FLUX.1") == []
