"""The published sizes of the pipeline policies, on the meta device, and the recipes that name them."""

import importlib
import re
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from diffusers import (
    Flux2Transformer2DModel,
    Flux3Transformer2DModel,
    QwenImage21Transformer2DModel,
    QwenImageTransformer2DModel,
)
from diffusers.pipelines.flux2.pipeline_flux2 import format_input
from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus import calculate_dimensions
from torch import nn

from customized_grpo.policies.adapters.lora_layers import target_regex
from customized_grpo.policies.flux2 import Flux2, Flux2Klein, Flux2KleinConfig
from customized_grpo.policies.flux3 import Flux3Klein
from customized_grpo.policies.qwen_image import QwenImageEditPlus, QwenImageEditPlusConfig, area_size
from customized_grpo.policies.qwen_image21 import QwenImage21
from customized_grpo.recipe.loading import load_recipe
from tiny_flux2 import make_tokenizer

# FLUX.2: scripts/convert_flux2_to_diffusers.py of huggingface/diffusers at 207bae7. Qwen: the defaults of diffusers'
# class, which public copies of the model's config.json repeat; 2511 adds zero_cond_t.
FLUX2_DEV = {
    "num_layers": 8,
    "num_single_layers": 48,
    "num_attention_heads": 48,
    "joint_attention_dim": 15360,
}
KLEIN_4B = {
    "num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 7680,
    "guidance_embeds": False,
}  # fmt: skip
KLEIN_9B = {
    "num_layers": 8, "num_single_layers": 24, "num_attention_heads": 32, "joint_attention_dim": 12288,
    "guidance_embeds": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("policy", "transformer", "settings", "billions", "count"),
    [
        (Flux2, Flux2Transformer2DModel, FLUX2_DEV, 32.2, 8 * 12 + 48 * 2),
        (Flux2Klein, Flux2Transformer2DModel, KLEIN_4B, 3.9, 5 * 12 + 20 * 2),
        (Flux2Klein, Flux2Transformer2DModel, KLEIN_9B, 9.1, 8 * 12 + 24 * 2),
        (Flux3Klein, Flux3Transformer2DModel, {}, 5.5, (2 * 5 + 28) * 6),
        (Flux3Klein, Flux3Transformer2DModel, {"flow_map": True}, 5.5, (2 * 5 + 28) * 6),
        (QwenImageEditPlus, QwenImageTransformer2DModel, {}, 20.4, 60 * 8),
        (QwenImageEditPlus, QwenImageTransformer2DModel, {"zero_cond_t": True}, 20.4, 60 * 8),
        (QwenImage21, QwenImage21Transformer2DModel, {}, 7.1, 32 * 7),
    ],
)
def test_targets_hit_every_intended_layer_of_the_published_models(
    policy: Any, transformer: Any, settings: dict[str, Any], billions: float, count: int
) -> None:
    with torch.device("meta"):
        model = transformer(**settings)
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, abs=0.1)
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    regex = target_regex(model, policy.lora_targets)
    hit = {name for name in linear if re.fullmatch(regex, name)}
    # all of the blocks' layers but modulation, and but the text stream's whose output Qwen's last block drops
    # and but FLUX.3's blocks for references alone, which examples without references give no gradient
    left_out = {
        QwenImageEditPlus: r".*(img_mod|txt_mod|add_q_proj|to_add_out|txt_mlp).*", Flux3Klein: r".*image_cond.*"
    }.get(policy, "-")  # fmt: skip
    blocks = {name for name in linear if re.match(r"((single_)?transformer|mode|txt_mode)_blocks\.", name)}
    assert hit == {name for name in blocks if not re.fullmatch(left_out, name)}
    assert len(hit) == count


@pytest.mark.parametrize(
    ("recipe", "policy"),
    [
        ("flux2_klein_customized_grpo", Flux2Klein),
        ("flux3_klein_customized_grpo", Flux3Klein),
        ("qwen_edit_customized_grpo", QwenImageEditPlus),
        ("qwen_image_21_customized_nft", QwenImage21),
    ],
)
def test_shipped_recipes_draw_as_the_models_own_scheduler(recipe: str, policy: Any) -> None:
    loaded = load_recipe(recipe)
    assert isinstance(loaded.policy, policy.Config)
    assert loaded.sampling.shift == "dynamic"


@pytest.mark.parametrize("size", [(64, 64), (640, 480), (1000, 333), (4000, 3000), (333, 2000)])
@pytest.mark.parametrize("side", [384, 512, 1024])
def test_qwens_sizes_are_the_pipelines(size: tuple[int, int], side: int) -> None:
    assert area_size(size, side) == calculate_dimensions(side * side, size[0] / size[1])


@pytest.mark.parametrize(
    ("size", "side", "expected"),
    [
        ((64, 64), 1024, (64, 64)),
        ((100, 70), 1024, (96, 64)),
        ((2048, 1024), 1024, (1440, 720)),  # 1448 x 724
        ((1000, 1000), 512, (512, 512)),
        ((512, 64), 64, (176, 16)),  # 181 x 22
    ],
)
def test_flux2s_references_are_shrunk_and_cropped(size: tuple[int, int], side: int, expected: tuple[int, int]) -> None:
    assert Flux2KleinConfig(model="x", reference_size=side).fitted_size(size, 1) == expected


def test_a_negative_prompt_needs_guidance() -> None:
    with pytest.raises(ValueError, match="negative_prompt has no effect with guidance 1; raise that above 1"):
        QwenImageEditPlusConfig(model="x", guidance=1.0, negative_prompt="ugly")
    assert QwenImageEditPlusConfig(model="x", guidance=1.0).latent_shape() == (1024, 64)
    assert Flux2KleinConfig(model="x", height=256).latent_shape() == (512, 128)


def test_flux2s_tokenizer_does_what_its_processor_does_with_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processor itself can't be made without torchvision; its code for text runs with its images left out."""
    images: Any = ModuleType("transformers.models.pixtral.image_processing_pixtral")
    images.get_resize_output_image_size = None
    monkeypatch.setitem(sys.modules, images.__name__, images)
    module = importlib.import_module("transformers.models.pixtral.processing_pixtral")
    tokenizer = make_tokenizer()
    processor = module.PixtralProcessor.__new__(module.PixtralProcessor)
    processor.tokenizer, processor.image_processor = tokenizer, None
    processor.chat_template = tokenizer.chat_template
    for part in ("image", "image_break", "image_end"):
        setattr(processor, f"{part}_token", "[IMG]")
        setattr(processor, f"{part}_token_id", tokenizer.convert_tokens_to_ids("[IMG]"))
    given: dict[str, Any] = {
        "add_generation_prompt": False, "tokenize": True, "return_dict": True, "return_tensors": "pt",
        "padding": "max_length", "truncation": True, "max_length": 40,
    }  # fmt: skip
    messages = format_input(["a red dog"], SYSTEM_MESSAGE)
    ours, theirs = (one.apply_chat_template(messages, **given) for one in (tokenizer, processor))
    assert ours["input_ids"].shape == (1, 40)
    for key in ("input_ids", "attention_mask"):
        assert torch.equal(ours[key], theirs[key])
