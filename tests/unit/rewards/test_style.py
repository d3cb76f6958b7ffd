"""CSD: its published forward on tiny weights, by torch's own layers; its names, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from customized_grpo.memory.scorers import known_scorer
from customized_grpo.rewards.features import to_pil
from customized_grpo.rewards.style import Style
from customized_grpo.testing import check_reward
from tiny_rewards import check_batch, example, pictures

CPU = torch.device("cpu")
WIDTH, HEADS, LAYERS, PATCH, GRID, PROJECTED = 128, 2, 2, 8, 3, 12
SIDE = PATCH * GRID


def csd(seed: int = 0) -> dict[str, Tensor]:
    """Weights under CSD's names: OpenAI's tower as ``backbone``, and two projections."""
    draw = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw) / shape[-1] ** 0.5

    weights = {
        "backbone.class_embedding": noise(WIDTH),
        "backbone.positional_embedding": noise(1 + GRID**2, WIDTH),
        "backbone.conv1.weight": noise(WIDTH, 3, PATCH, PATCH) / PATCH,
        "last_layer_style": noise(WIDTH, PROJECTED),
        "last_layer_content": noise(WIDTH, PROJECTED),
    }
    norms = ["ln_pre", "ln_post", *(f"transformer.resblocks.{n}.ln_{k}" for n in range(LAYERS) for k in (1, 2))]
    for norm in norms:
        weights |= {f"backbone.{norm}.weight": 1 + 0.2 * noise(WIDTH), f"backbone.{norm}.bias": noise(WIDTH)}
    shapes = {
        "attn.in_proj_": (3 * WIDTH, WIDTH), "attn.out_proj.": (WIDTH, WIDTH),
        "mlp.c_fc.": (4 * WIDTH, WIDTH), "mlp.c_proj.": (WIDTH, 4 * WIDTH),
    }  # fmt: skip
    for number in range(LAYERS):
        for name, shape in shapes.items():
            at = f"backbone.transformer.resblocks.{number}.{name}"
            weights |= {f"{at}weight": 2 * noise(*shape), f"{at}bias": noise(shape[0])}
    return weights


def descriptors(weights: dict[str, Tensor], images: list[Image.Image]) -> Tensor:
    """The tower step by step: resize, crop, patches, pre-norm blocks of torch's attention, the class token."""
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    w = {key.removeprefix("backbone."): tensor for key, tensor in weights.items()}

    def norm(x: Tensor, name: str) -> Tensor:
        return nn.functional.layer_norm(x, (WIDTH,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)

    found = []
    for image in images:
        scale = SIDE / min(image.size)
        long = [int(side * scale) if side > min(image.size) else SIDE for side in image.size]
        small = image.resize((long[0], long[1]), Image.Resampling.BICUBIC)
        left, top = (small.width - SIDE) // 2, (small.height - SIDE) // 2
        pixels = np.asarray(small.crop((left, top, left + SIDE, top + SIDE)), dtype=np.float32) / 255.0
        x = torch.from_numpy((pixels - np.array(mean, np.float32)) / np.array(std, np.float32)).permute(2, 0, 1)[None]
        patches = nn.functional.conv2d(x, w["conv1.weight"], stride=PATCH).flatten(2).transpose(1, 2)
        x = torch.cat([w["class_embedding"][None, None], patches], dim=1) + w["positional_embedding"]
        x = norm(x, "ln_pre")
        for number in range(LAYERS):
            at = f"transformer.resblocks.{number}"
            attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
            own = {key.removeprefix(f"{at}.attn."): value for key, value in w.items() if key.startswith(f"{at}.attn.")}
            attention.load_state_dict(own)
            y = norm(x, f"{at}.ln_1")
            x = x + attention(y, y, y, need_weights=False)[0]
            hidden = nn.functional.linear(norm(x, f"{at}.ln_2"), w[f"{at}.mlp.c_fc.weight"], w[f"{at}.mlp.c_fc.bias"])
            gelu = hidden * torch.sigmoid(1.702 * hidden)
            x = x + nn.functional.linear(gelu, w[f"{at}.mlp.c_proj.weight"], w[f"{at}.mlp.c_proj.bias"])
        found.append(nn.functional.normalize(norm(x[:, 0], "ln_post") @ w["last_layer_style"], dim=-1))
    return torch.cat(found).detach()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("csd") / "csd.safetensors", csd())


def saved(path: Path, weights: dict[str, Tensor]) -> Path:
    save_file({key: tensor.contiguous() for key, tensor in weights.items()}, path)
    return path


def build(path: Path, **options: Any) -> Style:
    section = {"type": "style", "axis": "identity", "model": str(path), **options}
    return Style(Style.Config.model_validate(section), device=CPU)


def test_it_is_the_published_forward(weights: Path) -> None:
    one, images = example(2), pictures(4, height=50, width=61)
    given, wanted = descriptors(csd(), to_pil(images)), descriptors(csd(), list(one.references))
    expected = 100.0 * (given @ wanted.T).mean(dim=1)
    scores = build(weights)(one, images)
    torch.testing.assert_close(scores, expected, rtol=0, atol=2e-3)
    assert scores.std() > 1e-2
    check_reward(build(weights), one, images)
    check_batch(build(weights, batch_size=12), one, pictures(12))


def test_the_names_of_a_wrapped_checkpoint_are_read(weights: Path, tmp_path: Path) -> None:
    wrapped = saved(tmp_path / "wrapped.safetensors", {f"module.{key}": value for key, value in csd().items()})
    assert torch.equal(build(wrapped)(example(1), pictures(2)), build(weights)(example(1), pictures(2)))
    bare = saved(tmp_path / "bare.safetensors", {k: v for k, v in csd().items() if k != "last_layer_content"})
    assert torch.equal(build(bare)(example(1), pictures(2)), build(weights)(example(1), pictures(2)))


BROKEN = {
    "style": ({"last_layer_style": None}, "last_layer_style"),
    "a block": ({"backbone.transformer.resblocks.1.ln_2.bias": None}, "layers.1.layer_norm2.bias"),
    "attention": ({"backbone.transformer.resblocks.0.attn.in_proj_bias": None}, "layers.0.self_attn.q_proj.bias"),
    "one too many": ({"backbone.proj_2": torch.zeros(3)}, "backbone.proj_2"),
    "a shape": ({"backbone.ln_pre.bias": torch.zeros(7)}, "pre_layrnorm.bias"),
    "NaN": ({"backbone.ln_pre.bias": torch.full((WIDTH,), torch.nan)}, "NaN or infinite, in .*pre_layrnorm.bias"),
}


@pytest.mark.parametrize(("changed", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_weights_that_are_not_whole_are_refused(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    given = {key: value for key, value in {**csd(), **changed}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        build(saved(tmp_path / "csd.safetensors", given))


def test_what_is_no_file_of_weights_is_refused(tmp_path: Path) -> None:
    for name in ("org/csd", str(tmp_path), str(tmp_path / "csd.pth")):
        with pytest.raises(ValueError, match=r"existing \.safetensors file.*choose-rewards"):
            build(Path(name))
    (tmp_path / "page.safetensors").write_text("<html>")
    with pytest.raises(ValueError, match="not a CSD"):
        build(tmp_path / "page.safetensors")


def test_its_memory_is_that_of_its_file_without_the_other_projection(weights: Path) -> None:
    (held,) = Style.Config.model_validate({"type": "style", "model": str(weights)}).held_models()
    found = known_scorer(held)
    assert found is not None
    loaded = build(weights)._model
    assert found.parameters == sum(parameter.numel() for parameter in loaded.parameters())
