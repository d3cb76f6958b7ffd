"""DINOv3 and DINOv2 with registers through the reward: which rows of the last layer are CLS, patches and registers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import (
    BitImageProcessorPil,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
)

from customized_grpo.rewards.dino import Dino
from customized_grpo.rewards.features import to_pil
from customized_grpo.rewards.vision import VisionEncoder
from customized_grpo.testing import check_reward
from golden import refill
from tiny_rewards import check_batch, example, pictures

CPU = torch.device("cpu")
SIDE, PATCH, REGISTERS = 32, 8, 4
PATCHES = (SIDE // PATCH) ** 2
SHAPE: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": PATCH,
    "num_register_tokens": REGISTERS,
}


def with_registers(folder: Path) -> Path:
    model = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(mlp_ratio=2, **SHAPE))
    refill(model)
    model.save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    BitImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=size).save_pretrained(folder)
    return folder


def dinov3(folder: Path) -> Path:
    model = DINOv3ViTModel(DINOv3ViTConfig(intermediate_size=48, **SHAPE))
    refill(model)
    model.save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    BitImageProcessorPil(size=size, do_center_crop=False).save_pretrained(folder)
    return folder


MODELS = {with_registers: Dinov2WithRegistersModel, dinov3: DINOv3ViTModel}


@pytest.fixture(params=MODELS, ids=lambda save: save.__name__)
def family(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Any]:
    folder = request.param(tmp_path)
    return folder, MODELS[request.param].from_pretrained(folder).eval()


def reward_of(folder: Path, **options: Any) -> Dino:
    section = {"type": "dino", "axis": "identity", "model": str(folder), **options}
    return Dino(Dino.Config.model_validate(section), device=CPU)


def states(encoder: VisionEncoder, model: Any, images: list[Image.Image]) -> torch.Tensor:
    """The public class's last layer on pixels that are prepared as the reward prepares them."""
    with torch.no_grad():
        last: torch.Tensor = model(pixel_values=encoder._prepare(images)).last_hidden_state
    assert last.shape[1] == 1 + REGISTERS + PATCHES
    return last


def test_the_reward_compares_the_first_row(family: tuple[Path, Any]) -> None:
    folder, model = family
    one, images = example(2), pictures(4)
    reward = reward_of(folder)
    given = states(reward._encoder, model, to_pil(images))[:, 0]
    wanted = states(reward._encoder, model, list(one.references))[:, 0]
    unit = torch.nn.functional.normalize
    expected = 100.0 * (unit(given, dim=-1) @ unit(wanted, dim=-1).T).mean(dim=1)
    scores = reward(one, images)
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-3)
    assert scores.std() > 1e-2
    check_reward(reward, one, images)


def test_tokens_are_cls_and_patches_without_registers(family: tuple[Path, Any]) -> None:
    folder, model = family
    encoder = reward_of(folder)._encoder
    pictures_ = to_pil(pictures(3))
    last = states(encoder, model, pictures_)
    tokens = encoder.tokens(pictures_)
    assert tokens.shape == (3, 1 + PATCHES, SHAPE["hidden_size"])
    torch.testing.assert_close(tokens[:, 0], last[:, 0])
    torch.testing.assert_close(tokens[:, 1:], last[:, 1 + REGISTERS :])
    torch.testing.assert_close(encoder.cls(pictures_), last[:, 0])


def test_the_background_is_that_of_the_patches_and_no_registers(family: tuple[Path, Any]) -> None:
    """A mask that covers all but one patch leaves that patch alone to be looked for, in any image."""
    folder, model = family
    reward = reward_of(folder, copy_penalty=1.0)
    reference = to_pil(pictures(1, seed=7, height=SIDE, width=SIDE))[0]
    mask = Image.new("L", reference.size, 255)
    row, column = 2, 1
    mask.paste(0, (column * PATCH, row * PATCH, (column + 1) * PATCH, (row + 1) * PATCH))
    one = replace(example(1), references=(reference,), masks=(mask,))
    images = pictures(3, seed=8)
    unit = torch.nn.functional.normalize
    at = 1 + REGISTERS + row * (SIDE // PATCH) + column
    kept = unit(states(reward._encoder, model, [reference])[0, at], dim=-1)
    patches = unit(states(reward._encoder, model, to_pil(images))[:, 1 + REGISTERS :], dim=-1)
    expected = reward_of(folder)(one, images) - 100.0 * (patches @ kept).amax(dim=1)
    torch.testing.assert_close(reward(one, images), expected, rtol=0, atol=1e-3)
    check_batch(reward, one, pictures(12))
