"""Every part of a pipeline is read whole or refused by name, and what is published beside its weights does no harm."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModelWithProjection, T5EncoderModel

from pipeline_cases import CASES, shrink_constants
from tiny import make_tiny_flux, tiny_policy

FLUX = ("transformer", "vae", "text_encoder", "text_encoder_2")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_constants(monkeypatch)


def weights_of(part: Path) -> Path:
    (file,) = part.glob("*.safetensors")
    return file


def change(part: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(weights_of(part))
    edit(tensors)
    save_file(tensors, weights_of(part), metadata={"format": "pt"})


def configure(part: Path, key: str, value: Any) -> None:
    file = part / "config.json"
    config = json.loads(file.read_text())

    def replace(section: dict[str, Any]) -> None:
        for name, one in section.items():
            if name == key:
                section[name] = value
            elif isinstance(one, dict):
                replace(one)

    replace(config)
    file.write_text(json.dumps(config))


@pytest.mark.parametrize("part", FLUX)
def test_a_weight_that_a_part_lacks_is_named(tmp_path: Path, part: str) -> None:
    """transformers drew it at random with exit 0; diffusers left a tensor without data, and a traceback."""
    folder = make_tiny_flux(tmp_path / "flux")
    name = next(one for one in sorted(load_file(weights_of(folder / part))) if one.endswith(".weight"))
    change(folder / part, lambda tensors: tensors.__delitem__(name))
    with pytest.raises(ValueError, match=rf"^policy\.model: the {part} of .* it lacks 1 weight that the model has: "):
        tiny_policy(folder)


@pytest.mark.parametrize(
    ("part", "key", "value", "message"),
    [
        ("transformer", "num_layers", 0, r"holds \d+ weights that the model has no place for: transformer_blocks\.0\."),
        ("transformer", "num_layers", 2, r"lacks \d+ weights that the model has: transformer_blocks\.1\."),
        ("transformer", "guidance_embeds", False, r"no place for: time_text_embed\.guidance_embedder\."),
        ("transformer", "joint_attention_dim", 16, r"holds 1 weight of another shape: context_embedder\.weight \(64 x"),
        ("vae", "layers_per_block", 2, r"lacks \d+ weights"),
        ("text_encoder", "num_hidden_layers", 2, r"lacks \d+ weights.*layers\.1\."),
        ("text_encoder", "intermediate_size", 16, r"holds 3 weights of another shape"),
        ("text_encoder_2", "num_layers", 2, r"lacks \d+ weights.*block\.1\."),
    ],
)
def test_a_configuration_of_other_weights_is_refused(
    tmp_path: Path, part: str, key: str, value: Any, message: str
) -> None:
    """Blocks of the file were dropped with no more than a line of diffusers' log."""
    folder = make_tiny_flux(tmp_path / "flux")
    configure(folder / part, key, value)
    with pytest.raises(ValueError, match=rf"^policy\.model: the {part} of .*config\.json: .*{message}"):
        tiny_policy(folder)


@pytest.mark.parametrize("part", ["transformer", "vae"])
def test_weights_without_a_place_are_named(tmp_path: Path, part: str) -> None:
    folder = make_tiny_flux(tmp_path / "flux")
    change(folder / part, lambda tensors: tensors.update({"blocks.9.weight": torch.ones(2)}))
    with pytest.raises(ValueError, match=rf"the {part} of .* 1 weight that the model has no place for: blocks\.9"):
        tiny_policy(folder)


@pytest.mark.parametrize("part", FLUX)
def test_weights_of_another_shape_are_named(tmp_path: Path, part: str) -> None:
    """Of a text encoder they were a traceback."""
    folder = make_tiny_flux(tmp_path / "flux")

    def widen(tensors: dict[str, torch.Tensor]) -> None:
        name = next(name for name, tensor in tensors.items() if tensor.ndim == 2)
        tensors[name] = torch.ones(3, 3)

    change(folder / part, widen)
    with pytest.raises(ValueError, match=rf"the {part} of .* it holds 1 weight of another shape: .* \(3 x 3 for \d"):
        tiny_policy(folder)


@pytest.mark.parametrize("name", ["flux2", "klein", "qwen-2509"])
@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
def test_other_policies_refuse_as_well(tmp_path: Path, name: str, part: str) -> None:
    case = CASES[name]
    folder = case.make(tmp_path / name, **case.options)
    lost = [one for one in sorted(load_file(weights_of(folder / part))) if one.endswith(".weight")][-1]
    change(folder / part, lambda tensors: tensors.__delitem__(lost))
    with pytest.raises(ValueError, match=rf"^policy\.model: the {part} of .* it lacks 1 weight"):
        case.load(folder, torch.float32)


@pytest.mark.parametrize(("part", "layers"), [("text_encoder", "encoder.layers"), ("text_encoder_2", "encoder.block")])
def test_layers_that_a_text_encoder_has_no_place_for_are_refused(tmp_path: Path, part: str, layers: str) -> None:
    folder = make_tiny_flux(tmp_path / "flux")

    def deeper(tensors: dict[str, torch.Tensor]) -> None:
        first = [name for name in tensors if f"{layers}.0." in name]
        assert first
        tensors |= {name.replace(".0.", ".1.", 1): tensors[name].clone() for name in first}

    change(folder / part, deeper)
    with pytest.raises(ValueError, match=rf"the {part} of .* it holds \d+ weights that the model has no place for"):
        tiny_policy(folder)


def test_a_text_encoder_out_of_a_whole_clip_is_read(tmp_path: Path) -> None:
    """The image tower, with more layers than the text's, both projections and old buffers are no surplus."""
    folder = make_tiny_flux(tmp_path / "flux")
    before = tiny_policy(folder).encode("a red dog", [])
    part = folder / "text_encoder"
    text = CLIPTextConfig.from_pretrained(part)
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    clip = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision, projection_dim=32))
    clip.text_model.load_state_dict(FluxPipeline.from_pretrained(folder).text_encoder.state_dict())
    clip.save_pretrained(tmp_path / "clip")
    shutil.copy(weights_of(tmp_path / "clip"), weights_of(part))
    positions = {"text_model.embeddings.position_ids": torch.arange(24)[None]}
    change(part, lambda tensors: tensors.update(positions))
    after = tiny_policy(folder).encode("a red dog", [])
    for name, tensor in before.tensors.items():
        torch.testing.assert_close(after.tensors[name], tensor, rtol=0, atol=0)


def test_a_projection_beside_a_text_encoder_is_left(tmp_path: Path) -> None:
    folder = make_tiny_flux(tmp_path / "flux")
    part = folder / "text_encoder"
    CLIPTextModelWithProjection(CLIPTextConfig.from_pretrained(part)).save_pretrained(tmp_path / "projected")
    shutil.copy(weights_of(tmp_path / "projected"), weights_of(part))
    tiny_policy(folder)


def test_a_variant_of_some_parts_is_read(tmp_path: Path) -> None:
    """As diffusers does: parts without files of the variant are read from their plain ones."""
    from customized_grpo.policies.flux import UNO, UNOConfig

    folder = make_tiny_flux(tmp_path / "flux")
    for part in ("transformer", "text_encoder_2"):
        file = weights_of(folder / part)
        file.rename(file.with_name(file.name.replace(".safetensors", ".fp16.safetensors")))
    config = UNOConfig(model=str(folder), height=64, width=48, variant="fp16", max_sequence_length=16)
    UNO.load(config, device=torch.device("cpu"), dtype=torch.float32)
    with pytest.raises(ValueError, match="can't be loaded"):
        UNO.load(config.model_copy(update={"variant": "bf16"}), device=torch.device("cpu"), dtype=torch.float32)


def test_tied_and_sharded_weights_are_whole(tmp_path: Path) -> None:
    """T5 with its embedding under the other name of the two, and in several files."""
    folder = make_tiny_flux(tmp_path / "flux")
    part = folder / "text_encoder_2"
    before = tiny_policy(folder).encode("a red dog", [])
    change(part, lambda tensors: tensors.update({"encoder.embed_tokens.weight": tensors["shared.weight"].clone()}))
    both = tiny_policy(folder).encode("a red dog", [])
    model = T5EncoderModel.from_pretrained(part)
    weights_of(part).unlink()
    model.save_pretrained(part, max_shard_size="5KB")
    assert len(list(part.glob("*.safetensors"))) > 1
    pieces = tiny_policy(folder).encode("a red dog", [])
    for found in (both, pieces):
        for name, tensor in before.tensors.items():
            torch.testing.assert_close(found.tensors[name], tensor, rtol=0, atol=0)


def test_a_tied_head_of_a_language_model_need_not_be_there(tmp_path: Path) -> None:
    """FLUX.2 klein's Qwen3 of 4 B parameters has none; one that isn't tied is missed."""
    case = CASES["klein"]
    folder = case.make(tmp_path / "klein", **case.options)
    configure(folder / "text_encoder", "tie_word_embeddings", True)
    change(folder / "text_encoder", lambda tensors: tensors.__delitem__("lm_head.weight"))
    case.load(folder, torch.float32)
    configure(folder / "text_encoder", "tie_word_embeddings", False)
    with pytest.raises(ValueError, match=r"lacks 1 weight that the model has: lm_head\.weight"):
        case.load(folder, torch.float32)


def test_statistics_that_are_no_numbers(tmp_path: Path) -> None:
    """Of the batch norm in FLUX.2's VAE, which are buffers."""
    case = CASES["klein"]
    folder = case.make(tmp_path / "klein", **case.options)
    change(folder / "vae", lambda tensors: tensors["bn.running_mean"].mul_(torch.nan).sum())
    with pytest.raises(ValueError, match=r"the vae of .* is broken: .*NaN.*bn\.running_mean"):
        case.load(folder, torch.float32)
