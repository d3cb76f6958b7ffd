"""The reader of LoRA files: each module's scale as peft has it, every key accounted for, what isn't read is named."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from customized_grpo.policies.adapters import lora, tuning
from customized_grpo.policies.adapters.lora_layers import commonest
from customized_grpo.policies.adapters.lora_reader import read_lora
from customized_grpo.policies.adapters.low_rank import Factors, joined, linear_shapes, scaled
from customized_grpo.policies.base import LoraSettings
from customized_grpo.policies.flux import UNO
from tiny import tiny_policy

TO_Q, TO_K = "transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.to_k"
OUT = "single_transformer_blocks.0.proj_out"
TINY = {
    "in_channels": 64,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 4,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 32,
    "guidance_embeds": True,
    "axes_dims_rope": (4, 6, 6),
}


@pytest.fixture(scope="module")
def transformer() -> FluxTransformer2DModel:
    with torch.device("meta"):
        return FluxTransformer2DModel(**TINY)


def pair(
    module: str,
    d_out: int = 64,
    d_in: int = 64,
    *,
    rank: int = 4,
    a: str = ".lora_A.weight",
    b: str = ".lora_B.weight",
    prefix: str = "transformer.",
) -> dict[str, Tensor]:
    """Two factors of a module, random by its name."""
    draw = torch.Generator().manual_seed(len(module))
    return {
        f"{prefix}{module}{a}": torch.randn(rank, d_in, generator=draw),
        f"{prefix}{module}{b}": torch.randn(d_out, rank, generator=draw),
    }


KOHYA = {"a": ".lora_down.weight", "b": ".lora_up.weight", "prefix": "lora_unet_"}


def written(folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None = None, **more: str) -> Path:
    """A file, with an entry of diffusers in its header where a configuration is given."""
    header = {} if config is None else {"transformer." + name: value for name, value in config.items()}
    entry = {} if config is None else {"lora_adapter_metadata": json.dumps(header)}
    file = folder / "lora.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, {"format": "pt", **entry, **more})
    return file


def scales(file: Path, transformer: nn.Module) -> dict[str, float]:
    return {name: one.scale for name, one in read_lora(file).update(transformer).items()}


CONFIGS: dict[str, dict[str, Any]] = {
    "one alpha": {"r": 4, "lora_alpha": 6},
    "peft's own alpha": {"r": 4},
    "alpha_pattern by an end": {"r": 4, "lora_alpha": 4, "alpha_pattern": {"to_q": 2, "attn.to_k": 16}},
    "alpha_pattern by a regex": {
        "r": 4,
        "lora_alpha": 4,
        "alpha_pattern": {r"transformer_blocks\.\d+\.attn\.to_\w": 3},
    },
    "alpha_pattern pinned": {"r": 4, "lora_alpha": 4, "alpha_pattern": {"^proj_out": 1, r"^transformer_blocks.*k": 9}},
    "the first of two patterns": {"r": 4, "lora_alpha": 4, "alpha_pattern": {"to_.": 5, "to_q": 7}},
    "no end of a name": {"r": 4, "lora_alpha": 4, "alpha_pattern": {"o_q": 5, "_transformer_blocks.0.proj_out": 7}},
    "rank_pattern": {"r": 4, "lora_alpha": 4, "rank_pattern": {"to_q": 2}},
    "both patterns": {"r": 4, "lora_alpha": 4, "rank_pattern": {"to_q": 2}, "alpha_pattern": {"to_[qk]": 3}},
    "rsLoRA": {"r": 4, "lora_alpha": 6, "use_rslora": True, "rank_pattern": {"to_q": 2}, "alpha_pattern": {"to_k": 3}},
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("where", ["header", "adapter_config.json"])
@pytest.mark.filterwarnings("ignore:The following alpha_pattern keys did not match")
def test_scales_are_pefts(
    tmp_path: Path, transformer: FluxTransformer2DModel, config: dict[str, Any], where: str
) -> None:
    """peft's layers are asked for theirs; the file is diffusers', or peft's own folder."""
    targets = "transformer_blocks.0.attn.to_[qk]|single_transformer_blocks.0.proj_out|proj_out"
    model = get_peft_model(FluxTransformer2DModel(**TINY), LoraConfig(**config, target_modules=targets))
    expected = {}
    for name, layer in model.get_base_model().named_modules():
        if isinstance(layer, LoraLayer):
            nn.init.normal_(layer.lora_B["default"].weight)
            expected[name] = (layer.scaling["default"], layer.r["default"])
    assert len(expected) == 4
    path = tmp_path
    if where == "header":
        state = {
            name.replace("base_model.model.", "transformer.").replace(".default.", "."): one.detach()
            for name, one in model.named_parameters()
            if ".lora_" in name
        }
        path = written(tmp_path, state, config)
    else:
        model.save_pretrained(tmp_path)
    found = read_lora(path).update(transformer)
    assert {name: one.rank for name, one in found.items()} == {name: rank for name, (_, rank) in expected.items()}
    assert {name: one.scale for name, one in found.items()} == pytest.approx({n: s for n, (s, _) in expected.items()})
    for name, one in found.items():
        delta = model.get_base_model().get_submodule(name).get_delta_weight("default")
        torch.testing.assert_close(one.scale * one.b @ one.a, delta, rtol=1e-5, atol=1e-5)


def test_a_pattern_without_a_layer_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    read_lora(written(tmp_path, pair(TO_Q), CONFIGS["no end of a name"]))
    assert "no layer fits 2 of its patterns: _transformer_blocks.0.proj_out, o_q" in capsys.readouterr().err


def test_pefts_folder_comes_back_as_peft_loads_it(tmp_path: Path) -> None:
    config = LoraConfig(**CONFIGS["both patterns"], target_modules=["to_q", "to_k"])
    model = get_peft_model(FluxTransformer2DModel(**TINY), config)
    for name, one in model.named_parameters():
        if ".lora_" in name:
            nn.init.normal_(one)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(FluxTransformer2DModel(**TINY), str(tmp_path)).get_base_model()
    for name, one in read_lora(tmp_path).update(again).items():
        layer: Any = again.get_submodule(name)
        torch.testing.assert_close(one.scale * one.b @ one.a, layer.get_delta_weight("default"))


def test_alphas_beside_the_factors(tmp_path: Path, transformer: FluxTransformer2DModel) -> None:
    """Each layer's own; without one it is the rank. As bfloat16, as integers, as one number in a list."""
    tensors = pair("double_blocks_0_img_attn_proj", **KOHYA) | pair("double_blocks_0_img_mlp_0", 256, **KOHYA)
    tensors |= pair("double_blocks_0_txt_mlp_0", 256, rank=2, **KOHYA) | pair(
        "single_blocks_0_linear2", 64, 320, **KOHYA
    )
    tensors["lora_unet_double_blocks_0_img_attn_proj.alpha"] = torch.tensor(2.0, dtype=torch.bfloat16)
    tensors["lora_unet_double_blocks_0_img_mlp_0.alpha"] = torch.tensor(16)
    tensors["lora_unet_double_blocks_0_txt_mlp_0.alpha"] = torch.tensor([1.0])
    assert scales(written(tmp_path, tensors), transformer) == {
        "transformer_blocks.0.attn.to_out.0": 0.5,
        "transformer_blocks.0.ff.net.0.proj": 4.0,
        "transformer_blocks.0.ff_context.net.0.proj": 0.5,
        OUT: 1.0,
    }


def test_a_negative_alpha_turns_the_update(tmp_path: Path, transformer: FluxTransformer2DModel) -> None:
    tensors = pair(TO_Q) | {f"transformer.{TO_Q}.alpha": torch.tensor(-2.0)}
    one = read_lora(written(tmp_path, tensors)).update(transformer)[TO_Q]
    assert one.scale == 0.5
    assert torch.equal(one.b, -tensors[f"transformer.{TO_Q}.lora_B.weight"])


def test_header_and_alphas_must_agree(tmp_path: Path, transformer: FluxTransformer2DModel) -> None:
    """diffusers loads neither such a file where both are the same, nor where they differ."""
    tensors = pair(TO_Q) | {f"transformer.{TO_Q}.alpha": torch.tensor(2.0)}
    assert scales(written(tmp_path, tensors, {"r": 4, "lora_alpha": 2}), transformer) == {TO_Q: 0.5}
    with pytest.raises(ValueError, match=rf"and its alphas disagree: {TO_Q} has 8 by the one and 2 by the other"):
        read_lora(written(tmp_path, tensors, {"r": 4, "lora_alpha": 8}))


Q, K = f"transformer.{TO_Q}", f"transformer.{TO_K}"
REFUSED: dict[str, tuple[dict[str, Tensor], str]] = {
    "alphas of some layers": (
        pair(TO_Q) | pair(TO_K) | {f"{Q}.alpha": torch.tensor(2.0)},
        rf"an alpha for some modules and none for {TO_K}: diffusers takes the commonest, 2, and other tools the rank",
    ),
    "alpha of 0": (
        pair(TO_Q) | {f"{Q}.alpha": torch.tensor(0.0)},
        rf"an alpha of 0 for {TO_Q}",
    ),
    "alpha alone": (pair(TO_Q) | {f"{K}.alpha": torch.ones(1)}, rf"alphas without factors: {TO_K}"),
    "alphas alone": ({f"{K}.alpha": torch.ones(1)}, "no factors, only alphas"),
    "alpha of several numbers": (pair(TO_Q) | {f"{Q}.alpha": torch.ones(2)}, r"to_q\.alpha is of shape \(2,\)"),
    "A without B": ({f"{Q}.lora_A.weight": torch.ones(2, 64)}, rf"missing of {Q}.lora_A"),
    "B without A": ({f"{Q}.lora_B.weight": torch.ones(64, 2)}, rf"missing of {Q}.lora_B"),
    "factors of two ranks": (
        pair(TO_Q) | {f"{Q}.lora_B.weight": torch.ones(64, 3)},
        rf"factors of {TO_Q} don't fit each other: .*\(4, 64\) and .*\(64, 3\)",
    ),
    "nothing": ({}, "it is empty"),
    "no rows": (pair(TO_Q, rank=0), r"to_q\.lora_A\.weight is of size 0: \(0, 64\)"),
    "integers": (
        {name: one.to(torch.int8) for name, one in pair(TO_Q).items()},
        r"to_q\.lora_A\.weight is of torch\.int8, quantised numbers without their scales",
    ),
    "3x3 convolutions": (
        {f"{Q}.lora_A.weight": torch.ones(2, 64, 3, 3), f"{Q}.lora_B.weight": torch.ones(64, 2, 1, 1)},
        r"of shape \(2, 64, 3, 3\); factors of linear layers and 1x1 convolutions fit",
    ),
    "the same layer twice": (
        pair(TO_Q) | pair(TO_Q, prefix="diffusion_model."),
        r"diffusion_model\.\S+ and transformer\.\S+, which are the same part of the same layer",
    ),
    "DoRA of peft": (pair(TO_Q) | {f"{Q}.lora_magnitude_vector": torch.ones(64)}, "it holds DoRA"),
    "DoRA of LyCORIS": (pair(TO_Q, **KOHYA) | {f"lora_unet_{TO_Q}.dora_scale": torch.ones(64, 1)}, "it holds DoRA"),
    "LoHa": ({f"lycoris_{TO_Q}.hada_w1_a": torch.ones(64, 2)}, "it holds LoHa"),
    "LoKr": ({f"lycoris_{TO_Q}.lokr_w1": torch.ones(8, 8)}, "it holds LoKr"),
    "Tucker": (
        pair(TO_Q, **KOHYA) | {f"lora_unet_{TO_Q}.lora_mid.weight": torch.ones(4, 4, 3, 3)},
        "a Tucker decomposition",
    ),
    "OFT": ({f"lora_unet_{TO_Q}.oft_blocks": torch.ones(2, 32, 32)}, "it holds OFT"),
    "BOFT": ({f"base_model.model.{TO_Q}.boft_R": torch.ones(2, 32, 32)}, "it holds BOFT"),
    "differences": (
        pair(TO_Q, **KOHYA) | {"diffusion_model.img_in.diff": torch.ones(64, 64)},
        r"full differences.*img_in\.diff",
    ),
    "biases": (pair(TO_Q) | {f"{Q}.lora_B.bias": torch.ones(64)}, r"LoRA with biases \(lora_bias, control LoRA\)"),
    "FourierFT": ({f"base_model.model.{TO_Q}.fourierft_spectrum": torch.ones(64)}, "it holds FourierFT"),
    "whole modules": (
        pair(TO_Q) | {"base_model.model.x_embedder.modules_to_save.weight": torch.ones(64, 64)},
        "whole modules beside the LoRA",
    ),
    "norms of a control LoRA": (
        pair(TO_Q) | {"transformer.transformer_blocks.0.attn.norm_q.weight": torch.ones(16)},
        r"belong to no LoRA that is read here: transformer\.\S+norm_q\.weight",
    ),
    "a whole model": (
        {"double_blocks.0.img_attn.qkv.weight": torch.ones(3, 3), "img_in.bias": torch.ones(3)},
        r"a model's whole weights and no LoRA .*policy\.transformer",
    ),
    "scaled float8": (pair(TO_Q) | {f"{Q}.scale_weight": torch.ones(1)}, "scaled float8"),
    "text encoders alone": (
        pair("text_model_encoder_layers_0_mlp_fc1", **{**KOHYA, "prefix": "lora_te1_"}),
        "no LoRA of a transformer, only of text encoders: lora_te1_",
    ),
}


@pytest.mark.parametrize(("tensors", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_read_is_named(tmp_path: Path, tensors: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=rf"LoRA '.*lora\.safetensors' can't be used: .*{message}"):
        read_lora(written(tmp_path, tensors))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"r": 4, "use_dora": True}, "use_dora: True"),
        ({"r": 4, "bias": "lora_only"}, "bias: 'lora_only'"),
        ({"r": 4, "lora_bias": True}, "lora_bias: True"),
        ({"r": 4, "modules_to_save": ["x_embedder"]}, "modules_to_save"),
        ({"r": 4, "layer_replication": [[0, 1], [0, 1]]}, "layer_replication"),
        ({"r": 4, "fan_in_fan_out": True}, "fan_in_fan_out: True"),
        ({"r": 4, "peft_type": "LOHA"}, "peft_type LOHA"),
        ({"r": 4, "init_lora_weights": "pissa"}, "'pissa', which also changes the base's weights"),
        ({"r": 4, "a_thing_of_tomorrow": 1}, "a_thing_of_tomorrow: 1"),
        ({"r": 8, "lora_alpha": 8}, rf"rank 8 for {TO_Q}, and the factors are of rank 4"),
        ({"lora_alpha": 8}, rf"rank 8 for {TO_Q}, and the factors are of rank 4"),
        ({"r": "4"}, "r: '4', and a number above 0"),
        ({"r": 4, "lora_alpha": math.nan}, "lora_alpha: nan"),
        ({"r": 4, "lora_alpha": 0}, "lora_alpha: 0"),
        ({"r": 4, "alpha_pattern": ["to_q"]}, r"alpha_pattern: \['to_q'\]"),
        ({"r": 4, "alpha_pattern": {"(": 3}}, r"the pattern '\('"),
    ],
)
def test_a_configuration_that_is_not_understood_is_refused(
    tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        read_lora(written(tmp_path, pair(TO_Q), config))


@pytest.mark.parametrize("text", ["{", "[]", "3", '"r"', ""])
def test_a_damaged_configuration_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r"configuration is damaged \(lora_adapter_metadata"):
        read_lora(written(tmp_path, pair(TO_Q), lora_adapter_metadata=text))


def test_what_is_left_aside_is_counted_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encoders = ("lora_te1_text_model_encoder_layers_0_mlp_fc1", "lora_te3_encoder_block_0_layer_0_SelfAttention_q")
    others = ("text_encoder.text_model.encoder.layers.0.mlp.fc1", "text_encoders.clip_l.transformer.text_model.x")
    tensors = pair("double_blocks_0_img_mlp_0", 256, **KOHYA) | {"lora_unet_img_in.diff_b": torch.zeros(64)}
    for name in encoders + others:
        tensors |= pair(name, a=".lora_down.weight", b=".lora_up.weight", prefix="")
    file = read_lora(written(tmp_path, tensors))
    assert file.aside == {"of text encoders": 8, "of differences or biases that are all zero": 1}
    assert file.tool == "sd-scripts"
    said = capsys.readouterr().err
    assert "8 keys of text encoders are left aside" in said
    assert "1 keys of differences or biases" in said


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_float8_is_the_number_it_says(tmp_path: Path, transformer: FluxTransformer2DModel, dtype: torch.dtype) -> None:
    tensors = {name: one.to(dtype) for name, one in pair(TO_Q).items()}
    one = read_lora(written(tmp_path, tensors)).update(transformer)[TO_Q]
    assert torch.equal(one.a, tensors[f"transformer.{TO_Q}.lora_A.weight"].float())
    assert torch.equal(one.b, tensors[f"transformer.{TO_Q}.lora_B.weight"].float())


def test_factors_of_1x1_convolutions_are_matrices(tmp_path: Path, transformer: FluxTransformer2DModel) -> None:
    tensors = pair(TO_Q)
    one = read_lora(written(tmp_path, {n: t[:, :, None, None] for n, t in tensors.items()})).update(transformer)[TO_Q]
    assert torch.equal(one.a, tensors[f"transformer.{TO_Q}.lora_A.weight"])
    assert torch.equal(one.b, tensors[f"transformer.{TO_Q}.lora_B.weight"])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_are_counted(tmp_path: Path, bad: float) -> None:
    tensors = pair(TO_Q) | pair("lora_te1_text_model", prefix="", **{k: v for k, v in KOHYA.items() if k != "prefix"})
    for name in (f"transformer.{TO_Q}.lora_B.weight", "lora_te1_text_model.lora_up.weight"):
        tensors[name][3, :2] = bad
    message = rf"4 values are NaN or infinite, in lora_te1_text_model\.lora_up\.weight, transformer\.{TO_Q}\.lora_B"
    with pytest.raises(ValueError, match=message):
        read_lora(written(tmp_path, tensors))


def test_large_but_finite_numbers_are_taken(tmp_path: Path) -> None:
    """The sum of such a tensor overflows float16."""
    tensors = {name: torch.full_like(one, 6e4).half() for name, one in pair(TO_Q).items()}
    assert read_lora(written(tmp_path, tensors)).factors[TO_Q].rank == 4


FOREIGN: dict[str, tuple[dict[str, Tensor], str]] = {
    "more blocks": (
        pair(TO_Q) | pair("transformer_blocks.56.attn.to_q"),
        r"fewer blocks \(transformer_blocks 0 to 56 in the file, 0 to 0 in the model\).*"
        r"transformer\.transformer_blocks\.56\.attn\.to_q\.lora_A\.weight",
    ),
    "more fused blocks": (
        pair("double_blocks_18_img_attn_qkv", 192, **KOHYA) | pair("single_blocks_2_linear1", 448, **KOHYA),
        r"double_blocks 18 to 18 in the file, 0 to 0 in the model; single_blocks 2 to 2 in the file, 0 to 0 in the "
        r"model.*\(lora_unet_double_blocks_18_img_attn_qkv\.lora_down\.weight\)",
    ),
    "another width": (
        pair("double_blocks_0_img_attn_qkv", 384, 128, **KOHYA),
        r"another width: lora_unet_double_blocks_0_img_attn_qkv\.lora_down\.weight: it would be 384 x 128, the model's "
        r"is 192 x 64",
    ),
    "SDXL": (pair("input_blocks_4_1_transformer_blocks_0_attn1_to_q", **KOHYA), "it is a LoRA of a Stable Diffusion"),
    "Wan": (pair("blocks.0.self_attn.q", prefix="diffusion_model."), "it is a LoRA of Wan"),
    "Qwen-Image": (pair("transformer_blocks.0.img_mlp.net.2"), "it is a LoRA of Qwen-Image"),
    "FLUX.2": (pair("single_transformer_blocks.0.attn.to_qkv_mlp_proj"), r"it is a LoRA of FLUX\.2"),
    "unknown": (pair("what.ever"), "the model has no layer what.ever; is it a LoRA of another model"),
    "the same in two forms": (
        pair("double_blocks_0_img_attn_qkv", 192, **KOHYA) | pair(TO_Q),
        rf"more than one LoRA of {TO_Q}",
    ),
}


@pytest.mark.parametrize(("tensors", "message"), FOREIGN.values(), ids=FOREIGN)
def test_another_models_lora_is_named_by_the_files_own_keys(
    tmp_path: Path, transformer: FluxTransformer2DModel, tensors: dict[str, Tensor], message: str
) -> None:
    file = read_lora(written(tmp_path, tensors))
    with pytest.raises(ValueError, match=message) as caught:
        file.update(transformer)
    assert "to_v" not in str(caught.value), "a key that was never given"


def test_what_its_header_says_of_its_model_is_told(tmp_path: Path, transformer: FluxTransformer2DModel) -> None:
    about = {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora", "ss_base_model_version": "sdxl_base_v1-0"}
    for tensors in (pair("what.ever"), pair(TO_Q, 128, 128)):
        with pytest.raises(ValueError, match="header speaks of 'stable-diffusion-xl-v1-base/lora', 'sdxl_base_v1-0'"):
            read_lora(written(tmp_path, tensors, **about)).update(transformer)


def test_a_lora_that_changes_nothing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    read_lora(written(tmp_path, {name: one * (".lora_A." in name) for name, one in pair(TO_Q).items()}))
    assert "every B is zero" in capsys.readouterr().err


@torch.no_grad()
def velocity(policy: UNO) -> Tensor:
    x = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    return policy.velocity(x, torch.tensor(0.7), policy.encode("a red cube", []))


def added(folder: Path, update: Mapping[str, Factors]) -> Tensor:
    """Velocity with the update in the weights, by hand."""
    policy = tiny_policy(folder)
    with torch.no_grad():
        for name, one in update.items():
            layer = policy.transformer.get_submodule(name)
            assert isinstance(layer, nn.Linear)
            layer.weight += one.scale * one.b.float() @ one.a.float()
    return velocity(policy)


@pytest.fixture
def unequal(tmp_path: Path, transformer: FluxTransformer2DModel) -> Path:
    """Ranks 2, 3 and 5, and scales of all sorts."""
    tensors: dict[str, Tensor] = {}
    names = [name for name in linear_shapes(transformer) if "_blocks" in name]
    for i, name in enumerate(names):
        tensors |= pair(name, *linear_shapes(transformer)[name], rank=(3, 3, 2, 5)[i % 4])
        tensors[f"transformer.{name}.alpha"] = torch.tensor((0.3, 0.3, 0.5, 1.0)[i % 4])
    return written(tmp_path, tensors)


def test_unequal_ranks_load_in_every_way(tiny_flux: Path, unequal: Path, tmp_path: Path) -> None:
    """``--lora``, ``policy.lora.path``, training's checkpoint of the latter, and a sum of several with scales."""
    update = read_lora(unequal).update(tiny_policy(tiny_flux).transformer)
    expected = added(tiny_flux, update)
    drawn = tiny_policy(tiny_flux)
    tuning.load_tuned(drawn, unequal)
    torch.testing.assert_close(velocity(drawn), expected, rtol=0, atol=1e-5)

    started = tiny_policy(tiny_flux)
    (rank, alpha), targets = commonest(update), tuple("^" + name for name in update)
    assert (rank, alpha) == (3, pytest.approx(0.3))
    settings = LoraSettings(rank=rank, alpha=alpha, targets=targets, path=str(unequal))
    lora.attach(started, settings, seed=0)
    torch.testing.assert_close(velocity(started), expected, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"has rank 3 and alpha 0\.3\d*, the recipe has rank 64.*policy\.lora\.rank=3"):
        lora.attach(tiny_policy(tiny_flux), LoraSettings(targets=targets, path=str(unequal)), seed=0)

    saved, again = lora.save_adapter(started, tmp_path / "saved", {}), tiny_policy(tiny_flux)
    tuning.load_tuned(again, saved)
    assert torch.equal(velocity(again), velocity(started))

    summed = tiny_policy(tiny_flux)
    lora.attach_update(summed, joined(scaled(update, 0.5), scaled(update, 0.5)))
    torch.testing.assert_close(velocity(summed), expected, rtol=0, atol=1e-5)


def test_an_identity_of_weights_sees_their_scale(tiny_flux: Path, tmp_path: Path) -> None:
    """Finished rows of an evaluation are kept where it is the same."""
    found = set()
    for alpha in (4.0, 2.0, 4.0):
        policy = tiny_policy(tiny_flux)
        file = written(tmp_path, pair(TO_Q) | {f"transformer.{TO_Q}.alpha": torch.tensor(alpha)})
        found.add(tuning.apply(policy, tuning.read(file)))
    assert len(found) == 2


def test_folders_and_pickles(tmp_path: Path) -> None:
    file = written(tmp_path, pair(TO_Q))
    assert read_lora(tmp_path).path == file
    (tmp_path / "old.bin").write_bytes(b"\x80\x02")
    with pytest.raises(ValueError, match=r"old\.bin' is a pickle.*never opened here"):
        read_lora(tmp_path / "old.bin")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "adapter_model.bin").write_bytes(b"\x80\x02")
    with pytest.raises(ValueError, match=r"no adapter at .*sub', and the pickles there \(adapter_model\.bin\)"):
        read_lora(tmp_path / "sub")
    (tmp_path / "second.safetensors").write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match=r"holds 2 files \(lora\.safetensors, second\.safetensors\); give one"):
        read_lora(tmp_path)
    (tmp_path / "pytorch_lora_weights.safetensors").write_bytes(file.read_bytes())
    assert read_lora(tmp_path).path.name == "pytorch_lora_weights.safetensors"
