"""DINO by patches inside the mask: which patches those are, and how they are compared."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BitImageProcessorPil,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    ViTModel,
)

from customized_grpo.rewards.cutout import cut_out
from customized_grpo.rewards.dino import Dino
from customized_grpo.rewards.features import to_pil
from customized_grpo.rewards.patches import OUTSIDE, best_match
from customized_grpo.rewards.segmenter import Segmenter, SegmenterConfig
from customized_grpo.rewards.vision import VisionEncoder
from customized_grpo.testing import check_reward
from customized_grpo.types import Example
from golden import refill, save_golden_dino, save_golden_dinov2
from tiny_rewards import check_batch, example, pictures

CPU = torch.device("cpu")
SHAPE: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}


def saved(folder: Path, model: Any, processor: BitImageProcessorPil) -> Path:
    refill(model)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def registers(folder: Path) -> Path:
    config = Dinov2WithRegistersConfig(mlp_ratio=2, image_size=48, patch_size=8, num_register_tokens=4, **SHAPE)
    size = {"height": 48, "width": 48}
    processor = BitImageProcessorPil(size={"shortest_edge": 55}, crop_size=size)
    return saved(folder, Dinov2WithRegistersModel(config), processor)


def no_whole_number_of_patches(folder: Path) -> Path:
    """A crop of 60 holds four patches of 14, and 4 pixels that the model doesn't read."""
    config = Dinov2Config(mlp_ratio=2, image_size=56, patch_size=14, **SHAPE)
    processor = BitImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 60, "width": 60})
    return saved(folder, Dinov2Model(config), processor)


def wider_than_high(folder: Path) -> Path:
    """DINOv3's preprocessing stretches to any shape."""
    config = DINOv3ViTConfig(intermediate_size=48, image_size=48, patch_size=8, num_register_tokens=2, **SHAPE)
    return saved(
        folder, DINOv3ViTModel(config), BitImageProcessorPil(size={"height": 32, "width": 48}, do_center_crop=False)
    )


FAMILIES: dict[Callable[[Path], Path], Any] = {
    save_golden_dinov2: Dinov2Model,
    save_golden_dino: ViTModel,
    registers: Dinov2WithRegistersModel,
    no_whole_number_of_patches: Dinov2Model,
    wider_than_high: DINOv3ViTModel,
}


@pytest.fixture(params=FAMILIES, ids=lambda save: save.__name__)
def family(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[VisionEncoder, Any]:
    folder = request.param(tmp_path)
    return VisionEncoder(str(folder), dtype="float32", device=CPU), FAMILIES[request.param].from_pretrained(folder)


def embedded(encoder: VisionEncoder, model: Any, images: list[Image.Image]) -> torch.Tensor:
    """What the model's own first layer makes of each patch, before they see each other: (n, p, d)."""
    with torch.no_grad():
        found: torch.Tensor = model.get_input_embeddings()(encoder._prepare(images))
    return found if found.ndim == 3 else found.flatten(2).transpose(1, 2)


def blob(size: tuple[int, int], seed: int) -> Image.Image:
    """A mask with an edge of any form."""
    coarse = torch.rand(1, 1, 5, 5, generator=torch.Generator().manual_seed(seed))
    fine = torch.nn.functional.interpolate(coarse, size=size[::-1], mode="bicubic")[0, 0]
    return Image.fromarray(np.where(fine >= fine.quantile(0.7), 255, 0).astype(np.uint8))


SIZES = [(90, 64), (56, 130), (200, 201), (33, 40)]


@pytest.mark.parametrize("size", SIZES)
def test_a_patch_has_the_share_that_the_models_first_layer_reads(
    family: tuple[VisionEncoder, Any], size: tuple[int, int]
) -> None:
    """Its weights are made equal, so that it reads each patch's mean; that between black and white is the share."""
    encoder, model = family
    for name, parameter in model.get_input_embeddings().named_parameters():
        torch.nn.init.constant_(parameter, 1.0 if name.endswith("weight") else 0.0)
    mask = blob(size, seed=size[0])
    black, white = Image.new("RGB", size), Image.new("RGB", size, "white")
    none, whole, given = embedded(encoder, model, [black, white, mask.convert("RGB")])[..., 0].double()
    expected = (given - none) / (whole - none)
    assert 0.1 < expected.mean() < 0.9
    torch.testing.assert_close(encoder.coverage(mask).double(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", SIZES)
def test_patches_without_a_share_do_not_depend_on_what_is_masked(
    family: tuple[VisionEncoder, Any], size: tuple[int, int]
) -> None:
    encoder, model = family
    pixels = pictures(1, seed=size[1], height=size[1], width=size[0])[0].numpy()
    mask = blob(size, seed=size[0])
    inside = np.asarray(mask) > 0
    changed = np.where(inside[..., None], 255 - pixels, pixels)
    before, after = embedded(encoder, model, [Image.fromarray(pixels), Image.fromarray(changed)])
    moved = (after - before).norm(dim=-1) / before.norm(dim=-1).mean()
    share = encoder.coverage(mask)
    assert share.shape == moved.shape
    assert bool((share == 0).any())
    assert bool((share > 0.5).any())
    # A bicubic resize rings a little beyond an edge, and a mask can't be darker than black.
    assert float(moved[share == 0].max()) < 0.15 * float(moved[share > 0.5].min())


def test_grey_is_read_as_cut_outs_read_it(family: tuple[VisionEncoder, Any]) -> None:
    encoder, _ = family
    soft = Image.new("L", (64, 64), 127)
    soft.paste(128, (0, 0, 64, 32))
    hard = Image.new("L", (64, 64), 0)
    hard.paste(255, (0, 0, 64, 32))
    assert torch.equal(encoder.coverage(soft), encoder.coverage(hard))
    assert 0.3 < float(encoder.coverage(hard).mean()) < 0.7


def test_best_match_by_hand() -> None:
    kept = torch.tensor([[1.0, 0.0], [0.0, 2.0], [5.0, 5.0]])
    patches = torch.tensor([[[3.0, 0.0], [0.0, -1.0]], [[1.0, 1.0], [1.0, 1.0]]])
    weight = torch.tensor([3.0, 1.0, 0.0])
    root = 0.5**0.5
    # first image: cosines 1 and, of the second patch, 0 with (3, 0); second: both are 45 degrees away
    torch.testing.assert_close(best_match(kept, weight, patches), torch.tensor([75.0, 100 * root]))
    allowed = torch.tensor([[False, True], [True, True]])
    torch.testing.assert_close(best_match(kept, weight, patches, allowed), torch.tensor([-25.0, 100 * root]))
    assert best_match(kept, torch.zeros(3), patches).tolist() == [0.0, 0.0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_golden_dinov2(tmp_path_factory.mktemp("dinov2"))


def build(folder: Path, **options: Any) -> Dino:
    section = {"type": "dino", "axis": "identity", "model": str(folder), "features": "patches", **options}
    return Dino(Dino.Config.model_validate(section), device=CPU)


def masked(num_references: int = 2) -> Example:
    one = example(num_references)
    return replace(one, masks=tuple(blob(image.size, seed) for seed, image in enumerate(one.references)))


def expected_score(
    folder: Path,
    one: Example,
    images: list[Image.Image],
    *,
    cut: bool = False,
    crop: bool = False,
    found: list[list[Image.Image]] | None = None,
) -> torch.Tensor:
    """By transformers' class, patch by patch in loops."""
    model = Dinov2Model.from_pretrained(folder).eval()
    processor = BitImageProcessorPil.from_pretrained(folder)
    encoder = VisionEncoder(str(folder), dtype="float32", device=CPU)

    def patches(image: Image.Image) -> np.ndarray:
        with torch.no_grad():
            last = model(**processor(images=[image], return_tensors="pt")).last_hidden_state[0, 1:]
        found: np.ndarray = (last / last.norm(dim=-1, keepdim=True)).double().numpy()
        return found

    def shown(image: Image.Image, mask: Image.Image) -> tuple[Image.Image, np.ndarray]:
        white = Image.new("RGB", image.size, "white")
        if cut:
            image = cut_out(image, mask, background=(255, 255, 255), crop=crop, padding=0.1)
            mask = cut_out(white, mask, background=(0, 0, 0), crop=crop, padding=0.1).convert("L")
        share = encoder.coverage(mask).double().numpy()
        return image, np.where(share >= OUTSIDE, share, 0.0)

    scores = []
    for number, image in enumerate(images):
        each = []
        for at, (reference, mask) in enumerate(zip(one.references, one.masks, strict=True)):
            assert mask is not None
            picture, weight = shown(reference, mask)
            allowed = np.ones(16)
            drawn = image
            if found is not None:
                drawn, allowed = shown(image, found[at][number])
            mine, theirs = patches(picture), patches(drawn)
            best = [max(float(row @ other) for other, on in zip(theirs, allowed, strict=True) if on) for row in mine]
            each.append(100.0 * float(np.average(best, weights=weight)))
        scores.append(np.mean(each))
    return torch.tensor(scores, dtype=torch.float32)


@pytest.mark.parametrize(
    "options", [{}, {"segment": "reference"}, {"segment": "reference", "crop": True}], ids=["whole", "cut", "cropped"]
)
def test_each_patch_of_the_subject_looks_for_its_like(folder: Path, options: dict[str, Any]) -> None:
    one, images = masked(), pictures(3)
    expected = expected_score(folder, one, to_pil(images), cut="segment" in options, crop=options.get("crop", False))
    scores = build(folder, **options)(one, images)
    torch.testing.assert_close(scores, expected, rtol=0, atol=2e-3)
    check_reward(build(folder, **options), one, pictures(4))
    check_batch(build(folder, batch_size=12, **options), one, pictures(12))


def test_a_copy_is_all_alike_and_its_background_does_not_count(folder: Path) -> None:
    one = masked(1)
    copy = torch.from_numpy(np.asarray(one.references[0]).copy())[None]
    assert float(build(folder)(one, copy)[0]) == pytest.approx(100.0, abs=1e-3)
    charged = build(folder, copy_penalty=0.25)(one, copy)
    assert float(charged[0]) == pytest.approx(75.0, abs=1e-3), "the background is found as well"
    whole = replace(one, masks=(Image.new("L", one.references[0].size, 255),))
    assert not torch.equal(build(folder)(one, pictures(3)), build(folder)(whole, pictures(3)))


@pytest.mark.parametrize("crop", [False, True])
def test_both_compares_patches_of_the_found_subject(
    folder: Path, segmenter_folders: tuple[Path, Path], crop: bool
) -> None:
    detector, sam = map(str, segmenter_folders)
    options = {"detector": detector, "sam": sam, "threshold": 0.05}
    one, images = replace(masked(), subject="bag and dog"), pictures(2, height=60, width=60)
    segmenter = Segmenter(SegmenterConfig.model_validate(options), device=CPU)
    found = [[mask for image in to_pil(images) if (mask := segmenter(image, word))] for word in ("bag", "dog")]
    expected = expected_score(folder, one, to_pil(images), cut=True, crop=crop, found=found)
    reward = build(folder, segment="both", segmenter=options, crop=crop)
    torch.testing.assert_close(reward(one, images), expected, rtol=0, atol=2e-3)
    check_reward(reward, one, pictures(3, height=60, width=60))


@pytest.mark.parametrize("lost", ["skip", "lowest"])
def test_a_found_subject_beyond_the_square_is_not_found(
    folder: Path, segmenter_folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    corner = Image.new("L", (200, 50))
    corner.paste(255, (0, 0, 20, 50))
    monkeypatch.setattr(Segmenter, "__call__", lambda self, image, word: corner if image.getbbox() else None)
    detector, sam = map(str, segmenter_folders)
    images = torch.cat([torch.full((1, 50, 200, 3), 90), torch.zeros(1, 50, 200, 3)]).to(torch.uint8)
    both = {"segment": "both", "segmenter": {"detector": detector, "sam": sam}, "not_found": lost}
    scores = build(folder, **both)(replace(masked(1), subject="dog"), images)
    assert scores.isnan().all() if lost == "skip" else scores.tolist() == [-100.0, -100.0]
    cropped = build(folder, crop=True, **both)(replace(masked(1), subject="dog"), images)
    assert cropped.isnan().tolist() == [False, lost == "skip"]


def test_a_reference_beyond_the_square_is_an_error_or_a_skip(folder: Path) -> None:
    wide = Image.fromarray(pictures(1, seed=3, height=50, width=200)[0].numpy())
    corner = Image.new("L", wide.size)
    corner.paste(255, (0, 0, 20, 50))
    one = replace(example(1), references=(wide,), masks=(corner,))
    with pytest.raises(ValueError, match=r"'dog-1' has a mask outside the square.*crop: true"):
        build(folder)(one, pictures(2))
    reward = build(folder, missing_mask="skip")
    assert reward(one, pictures(2)).isnan().all()
    assert "outside the square" in reward.reason
    assert build(folder, segment="reference", crop=True)(one, pictures(2)).isfinite().all()


def test_it_needs_masks(folder: Path) -> None:
    with pytest.raises(ValueError, match="usable masks"):
        build(folder)(example(2), pictures(2))
    assert build(folder)._config.needs() == {"reference", "mask"}
    assert build(folder, missing_mask="skip")._config.needs() == {"reference"}
