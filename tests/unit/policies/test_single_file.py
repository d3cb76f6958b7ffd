"""One file of weights as ``policy.transformer``: prefixes, all-in-one checkpoints, float8, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from customized_grpo.policies.adapters.flux_keys import to_original
from customized_grpo.policies.flux import UNO, UNOConfig
from customized_grpo.policies.flux2 import Flux2, Flux2Config
from customized_grpo.policies.flux_loading import original_keys
from tiny import make_tiny_flux, tiny_policy

FLOAT8 = torch.float8_e4m3fn


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two models of different weights: the one that a file is made of, and the one that lends all else."""
    root = tmp_path_factory.mktemp("models")
    return make_tiny_flux(root / "first", seed=1), make_tiny_flux(root / "other")


@pytest.fixture(scope="module")
def weights(models: tuple[Path, Path]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Of the first model: in diffusers' names, and in the original ones."""
    transformer: Any = tiny_policy(models[0]).transformer
    state = {name: tensor.clone() for name, tensor in transformer.state_dict().items()}
    return state, to_original(state, original_keys(transformer))


def load(models: tuple[Path, Path], file: Path) -> dict[str, Tensor]:
    config = UNOConfig(model=str(models[1]), transformer=str(file), height=64, width=48)
    return dict(UNO.load(config, device=torch.device("cpu"), dtype=torch.float32).transformer.state_dict())


def equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], one) for name, one in expected.items())


def saved(file: Path, tensors: dict[str, Tensor], header: dict[str, str] | None = None) -> Path:
    save_file({name: one.contiguous() for name, one in tensors.items()}, file, header)
    return file


OTHERS = {"vae.decoder.conv_in.weight": torch.ones(2, 2), "vae.decoder.conv_in.bias": torch.ones(2)} | {
    f"text_encoders.{one}.transformer.shared.weight": torch.ones(2, 2) for one in ("clip_l", "t5xxl")
}


@pytest.mark.parametrize("names", ["original", "diffusers"])
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model.", "transformer."])
@pytest.mark.parametrize("others", [{}, OTHERS], ids=["alone", "all in one"])
def test_the_transformers_part_is_read_and_the_rest_counted(
    models: Any, weights: Any, tmp_path: Path, names: str, prefix: str, others: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    state = weights[0 if names == "diffusers" else 1]
    file = saved(tmp_path / "all.safetensors", {f"{prefix}{k}": v for k, v in state.items()} | others)
    assert equal(load(models, file), weights[0])
    told = capsys.readouterr().err
    assert ("left aside" in told) == bool(others)
    assert not others or "text_encoders (2), vae (2)" in told


def scaled(state: dict[str, Tensor], scale_of: Any) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Matrices of the blocks as float8 with a scale; also the scales, and the weights that they stand for."""
    stored, scales, meant = dict(state), {}, dict(state)
    for name, tensor in state.items():
        if tensor.ndim == 2 and "_blocks." in name:
            scale = scale_of(tensor)
            stored[name] = (tensor / scale.reshape(-1, 1)).to(FLOAT8)
            scales[name.removesuffix(".weight")] = scale
            meant[name] = stored[name].float() * scale.reshape(-1, 1)
    return stored, scales, meant


def one_scale(tensor: Tensor) -> Tensor:
    return tensor.abs().max() / 448


def scale_of_rows(tensor: Tensor) -> Tensor:
    return tensor.abs().amax(1) / 448


def test_float8_without_scales_is_what_it_says(models: Any, weights: Any, tmp_path: Path) -> None:
    """As ComfyUI casts it: flux1-dev-fp8."""
    small = {name: one.to(FLOAT8) if "_blocks." in name else one for name, one in weights[1].items()}
    file = saved(tmp_path / "fp8.safetensors", {f"model.diffusion_model.{k}": v for k, v in small.items()})
    meant = {name: one.to(FLOAT8).float() if "_blocks." in name else one for name, one in weights[0].items()}
    assert equal(load(models, file), meant)


@pytest.mark.parametrize("scale_of", [one_scale, scale_of_rows])
@pytest.mark.parametrize("ending", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize("marked", ["scaled_fp8", "comfy_quant", "header", "not at all"])
def test_scales_are_multiplied_in(
    models: Any, weights: Any, tmp_path: Path, scale_of: Any, ending: str, marked: str
) -> None:
    stored, scales, meant = scaled(weights[0], scale_of)
    stored |= {f"{layer}.{ending}": scale for layer, scale in scales.items()}
    stored |= {f"{layer}.{'scale_input' if 'scale_w' in ending else 'input_scale'}": torch.ones(()) for layer in scales}
    mark = {"format": "float8_e4m3fn", "full_precision_matrix_mult": True}
    header = {"_quantization_metadata": json.dumps({"layers": dict.fromkeys(scales, mark)})}
    if marked == "comfy_quant":
        text = torch.tensor(list(json.dumps(mark).encode()), dtype=torch.uint8)
        stored |= {f"{layer}.comfy_quant": text.clone() for layer in scales}
    elif marked == "scaled_fp8":
        stored["scaled_fp8"] = torch.ones(2).to(FLOAT8)
    file = saved(tmp_path / "scaled.safetensors", stored, header if marked == "header" else None)
    assert equal(load(models, file), meant)


LAYER = "double_blocks.0.img_attn.proj"


def _with(name: str, tensor: Tensor) -> Any:
    return lambda state: state | {name: tensor}


def _mark(entry: Any) -> Any:
    return _with(f"{LAYER}.comfy_quant", torch.tensor(list(json.dumps(entry).encode()), dtype=torch.uint8))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_with(f"{LAYER}.weight.absmax", torch.ones(2)), r"bitsandbytes \(NF4 or int8\).*absmax.*bfloat16"),
        (_with(f"{LAYER}.weight.quant_state.bitsandbytes__nf4", torch.ones(2)), "bitsandbytes"),
        (_with(f"{LAYER}.qweight", torch.ones(2)), "nunchaku"),
        (_with(f"{LAYER}.weight_scale_2", torch.ones(())), "NVFP4"),
        (_with(f"{LAYER}.weight", torch.ones(64, 64, dtype=torch.int8)), r"holds torch\.int8, quantised"),
        (_with(f"{LAYER}.scale_weight", torch.ones(())), "has a scale, but is torch.float32"),
        (_with("double_blocks.7.img_attn.proj.scale_weight", torch.ones(())), "scales without their weights"),
        (_mark({"format": "nvfp4"}), "quantised as nvfp4"),
        (_mark({"format": "int8_tensorwise", "convrot": True}), r"quantised as int8_tensorwise \(convrot\)"),
        (_mark("what"), "marks of quantised layers are damaged"),
        (_with("another.weight", torch.ones(1)), "surplus: another.weight"),
        (lambda state: {f"vae.{name}": one for name, one in state.items()}, r"no transformer, only vae \(\d+\)"),
        (lambda state: {"double_stream_modulation_img.lin.weight": torch.ones(1)}, r"looks like FLUX\.2"),
        (lambda state: {"transformer_blocks.0.img_mod.1.weight": torch.ones(1)}, "looks like Qwen-Image"),
        (lambda state: {"lora_unet_double_blocks_0_img_mlp_0.lora_down.weight": torch.ones(1)}, "looks like a LoRA"),
    ],
)
def test_what_is_not_read_is_named(models: Any, weights: Any, tmp_path: Path, change: Any, message: str) -> None:
    file = saved(tmp_path / "odd.safetensors", change(dict(weights[1])))
    with pytest.raises(ValueError, match=rf"policy\.transformer: .*{message}"):
        load(models, file)


def test_a_block_of_scales_is_refused(models: Any, weights: Any, tmp_path: Path) -> None:
    state = weights[1] | {f"{LAYER}.weight": weights[1][f"{LAYER}.weight"].to(FLOAT8)}
    file = saved(tmp_path / "blocks.safetensors", state | {f"{LAYER}.weight_scale": torch.ones(2, 2)})
    with pytest.raises(ValueError, match="has 4 scales for 64 rows"):
        load(models, file)


@pytest.mark.parametrize(
    ("policy", "config", "advice"),
    [(UNO, UNOConfig, r"give it as policy\.transformer"), (Flux2, Flux2Config, "from_single_file")],
)
def test_one_file_as_the_model_is_told_where_it_goes(
    weights: Any, tmp_path: Path, policy: Any, config: Any, advice: str
) -> None:
    named = {f"model.diffusion_model.{name}": one for name, one in weights[1].items()}
    file = saved(tmp_path / "all.safetensors", named | OTHERS)
    with pytest.raises(ValueError, match=rf"is one file of weights \(keys begin with .*vae \(2\)\); .*{advice}"):
        policy.load(config(model=str(file)), device=torch.device("cpu"), dtype=torch.float32)
