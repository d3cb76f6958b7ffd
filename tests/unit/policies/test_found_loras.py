"""LoRA files of different origin, on a model of each family: the true velocity, or one line that says why not.

The true velocity is that of weights to which scale x up x down was added by hand in float64.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.utils import logging

import lora_writers as w
from customized_grpo.policies.adapters import lora
from customized_grpo.policies.adapters.lora_layers import commonest, exactly_these
from customized_grpo.policies.adapters.lora_reader import read_lora
from customized_grpo.policies.base import LoraSettings
from lora_conventions import AB, FLUX_MODULES, add, difference, velocity
from lora_writers import Beside, Names, Numbers, OfPeft, Plain, as_diffusers, dotted, flat
from pipeline_cases import CASES, PROMPT, maker, pictures, shrink_constants

FLUX3 = {**w.FLUX3_ORIGINAL, **w.FLUX3_OUTSIDE}
ROUNDING = 3e-5
"""Of float32 through the tiny models; what a LoRA moves is above a hundredth."""
PEFT: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["to_q", "to_v"], "alpha_pattern": {"to_q": 2}}
ENCODER = w.text_encoder(Names(flat("lora_te1")), "text_model.encoder.layers.0.mlp.fc1")


def _by_pattern(module: str, rank: int) -> float:
    return (2 if module.endswith("to_q") else 8) / rank


def _alpha(name: str) -> float:
    return 2.0 if "attn" in name or "q_proj" in name else 3.0


@dataclass(frozen=True)
class Found:
    """A file as somebody publishes it."""

    family: str
    """Key of ``CASES``."""
    write: Any
    """(folder, transformer) -> ``Written``."""
    refused: str = ""
    """Words of the refusal; empty where it is read."""


FOUND = {
    "diffusers, header, of Qwen-Image-2.1": Found("qwen-2.1", OfPeft(PEFT, _by_pattern, "QwenImage21Pipeline")),
    "ComfyUI's prefix, of Qwen-Image-2.1": Found(
        "qwen-2.1", Plain(w.QWEN21, Names(dotted("diffusion_model."), **AB), Numbers(dtype=torch.bfloat16))
    ),
    "kohya's names, alphas, of Qwen-Image-2.1": Found(
        "qwen-2.1", Plain(w.QWEN21, Names(flat("lora_unet")), Numbers(alpha=_alpha))
    ),
    "peft's folder, rsLoRA, of FLUX.3": Found(
        "flux3", OfPeft({**PEFT, "alpha_pattern": {}, "use_rslora": True}, lambda module, rank: 8 / rank**0.5)
    ),
    "ComfyUI, original names, of FLUX.3": Found("flux3", Plain(FLUX3, Names(dotted("diffusion_model."), **AB))),
    "kohya, original names, alphas, of FLUX.3": Found(
        "flux3", Plain(FLUX3, Names(flat("lora_unet")), Numbers(rank=lambda name: len(name) % 3 + 1, alpha=_alpha))
    ),
    "ai-toolkit, diffusers' names, with CLIP, of FLUX.3": Found(
        "flux3", Plain(as_diffusers(FLUX3), Names(dotted("transformer."), **AB), beside=ENCODER)
    ),
    "ai-toolkit, fused q, k, v, of klein-kv": Found(
        "klein-kv", Plain(w.FLUX2_ORIGINAL, Names(dotted("diffusion_model."), **AB))
    ),
    "kohya, fused q, k, v, alphas, of klein": Found(
        "klein", Plain(w.FLUX2_ORIGINAL, Names(flat("lora_unet")), Numbers(alpha=_alpha))
    ),
    "OneTrainer, of Qwen-Image-Edit": Found(
        "qwen-2511", Plain(w.QWEN, Names(flat("lora_transformer")), Numbers(alpha=lambda name: 1.0))
    ),
    "LyCORIS, DoRA, of FLUX.3": Found(
        "flux3",
        Plain(FLUX3, Names(flat("lora_unet")), beside={"lora_unet_single_blocks_1_q_proj.dora_scale": torch.ones(1)}),
        "holds DoRA, which is not supported here",
    ),
    "XLabs, of FLUX.1, on Qwen-Image-2.1": Found(
        "qwen-2.1",
        Beside({"double_blocks.0.processor.qkv_lora1.down.weight": torch.ones(4, 32),
                "double_blocks.0.processor.qkv_lora1.up.weight": torch.ones(96, 4)}),
        "the model has no layer .* is a LoRA of FLUX.1",
    ),
    "of FLUX.1 in diffusers' names, on FLUX.3": Found(
        "flux3",
        Beside({f"transformer.{next(iter(FLUX_MODULES))}.lora_{side}.weight": torch.ones(4, 4) for side in "AB"}),
        "the model has no layer",
    ),
    "of Qwen-Image-Edit, on Qwen-Image-2.1": Found(
        "qwen-2.1",
        Beside({f"transformer_blocks.0.img_mlp.net.2.lora_{side}.weight": torch.ones(4, 4) for side in "AB"}),
        "is a LoRA of Qwen-Image",
    ),
    "of a text encoder alone": Found("klein", Beside(ENCODER), "only of text encoders"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_constants(monkeypatch)
    logging.set_verbosity_error()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return maker(lambda: tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("name", FOUND)
def test_a_file_means_the_same_beneath_and_as_a_start(
    name: str, models: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = FOUND[name]
    load, model = CASES[found.family].load, models(found.family)
    written = found.write(tmp_path / "lora", load(model).transformer)
    path = str(written.path)
    if found.refused:
        for given in ({"path": path}, {"path": path, "mode": "adapter"}):
            with pytest.raises(ValueError, match=rf"^policy\.base_lora: .*{found.refused}") as caught:
                load(model, base_lora=given)
            assert "\n" not in str(caught.value)
        with pytest.raises(ValueError, match=found.refused):
            lora.attach(load(model), LoraSettings(path=path), seed=0)
        return
    right = load(model)
    cond = right.encode(PROMPT, pictures()[:1])
    base = velocity(right, cond)
    add(right, written.delta)
    true = velocity(right, cond)
    assert difference(true, base) > 1e-2
    for mode in ("fuse", "adapter"):
        assert difference(velocity(load(model, base_lora={"path": path, "mode": mode}), cond), true) < ROUNDING
    start = load(model)
    update = read_lora(path).update(start.transformer)
    rank, alpha = commonest(update)
    lora.attach(start, LoraSettings(rank=rank, alpha=alpha, targets=(exactly_these(update),), path=path), seed=0)
    assert difference(velocity(start, cond), true) < ROUNDING
    told = f"{written.aside} keys of text encoders are left aside"
    assert (told in " ".join(capsys.readouterr().err.split())) == bool(written.aside)
