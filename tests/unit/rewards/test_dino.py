"""The DINOv2 reward against its definition, computed by hand from the same weights."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import Dinov2Model

from customized_grpo.rewards.clip import ClipI, ClipT
from customized_grpo.rewards.dino import Dino
from customized_grpo.rewards.features import FeatureCache
from tiny_rewards import SIDE, example, pictures

CPU = torch.device("cpu")


def build(folder: Path, *, batch_size: int = 32, dtype: str = "float32") -> Dino:
    config = Dino.Config.model_validate(
        {"type": "dino", "axis": "identity", "model": str(folder), "batch_size": batch_size, "dtype": dtype}
    )
    return Dino(config, device=CPU)


def cls_by_hand(folder: Path, image: Image.Image) -> torch.Tensor:
    """Resize the shorter side, cut the middle, normalise, one forward: no processor class."""
    scale = SIDE / min(image.size)
    width, height = (int(side * scale) for side in image.size)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - SIDE) // 2, (height - SIDE) // 2
    pixels = np.asarray(resized.crop((left, top, left + SIDE, top + SIDE))).astype(np.float32) / 255.0
    mean = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
    std = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
    x = torch.from_numpy((pixels - mean) / std).permute(2, 0, 1)[None]
    with torch.no_grad():
        return Dinov2Model.from_pretrained(folder).eval()(x).last_hidden_state[0, 0]


def test_is_the_mean_cosine_of_cls_features(dino_folder: Path) -> None:
    images, one = pictures(3), example(2)
    references = torch.stack([cls_by_hand(dino_folder, reference) for reference in one.references])
    expected = []
    for image in images:
        feature = cls_by_hand(dino_folder, Image.fromarray(image.numpy()))
        expected.append(100.0 * torch.cosine_similarity(feature[None], references).mean())
    scores = build(dino_folder)(one, images)
    assert scores.dtype == torch.float32
    assert scores.device == CPU
    torch.testing.assert_close(scores, torch.stack(expected), rtol=0, atol=1e-4)
    assert scores.std() > 1e-3, "the images must not score alike, or this test shows nothing"


def test_the_reference_itself_scores_100_and_order_is_kept(dino_folder: Path) -> None:
    one = example(1)
    copy = torch.from_numpy(np.asarray(one.references[0]).copy())
    others = pictures(2, height=copy.shape[0], width=copy.shape[1])
    scores = build(dino_folder)(one, torch.stack([others[0], copy, others[1]]))
    assert scores.argmax() == 1
    assert scores[1].item() == pytest.approx(100.0, abs=1e-3)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_batches_do_not_change_scores(dino_folder: Path, batch_size: int) -> None:
    images, one = pictures(5), example(2)
    torch.testing.assert_close(
        build(dino_folder, batch_size=batch_size)(one, images),
        build(dino_folder)(one, images),
        rtol=0,
        atol=1e-4,
    )


def test_what_was_scored_before_does_not_change_a_bit(dino_folder: Path) -> None:
    warm, cold, images = build(dino_folder), build(dino_folder), pictures(3)
    warm(example(1), pictures(2, seed=5))
    assert torch.equal(warm(example(3), images), cold(example(3), images))


def test_bfloat16_is_near_and_still_returns_float32(dino_folder: Path) -> None:
    images, one = pictures(4), example(2)
    half = build(dino_folder, dtype="bfloat16")(one, images)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, build(dino_folder)(one, images), rtol=0, atol=3.0)


def test_no_reference_is_an_error(dino_folder: Path) -> None:
    with pytest.raises(ValueError, match="'dog-1' has no reference"):
        build(dino_folder)(example(0), pictures(1))


def test_another_family_is_refused(clip_folder: Path) -> None:
    with pytest.raises(ValueError, match="is a 'clip' model, but this reward needs a 'dinov2' or"):
        build(clip_folder)


def test_missing_weights_are_refused(dino_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(dino_folder, folder)
    weights = load_file(folder / "model.safetensors")
    del weights["layernorm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"config\.json: it lacks 1 weight that the model has: layernorm\.weight\."):
        build(folder)


def test_pickled_weights_are_never_read(dino_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(dino_folder, folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="safetensors"):
        build(folder)


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        build(tmp_path / "nothing")


def test_the_cache_is_bounded_and_encodes_once() -> None:
    calls = []

    def encode(images: object) -> torch.Tensor:
        calls.append(images)
        return torch.tensor([[float(len(calls))]])

    one, two, three = example(3).references
    cache = FeatureCache(encode, size=2)
    assert cache([one, two, one.copy()]).flatten().tolist() == [1.0, 2.0, 1.0]
    assert cache([three]).item() == 3.0  # drops `two`, the longest unused
    assert cache([one, two]).flatten().tolist() == [1.0, 4.0]


def test_scoring_does_not_import_torchvision(dino_folder: Path, clip_folder: Path) -> None:
    """Its resize is another one, and transformers takes it where it finds it."""
    for reward, name, model in (
        (Dino, "dino", dino_folder),
        (ClipT, "clip_t", clip_folder),
        (ClipI, "clip_i", clip_folder),
    ):
        config = reward.Config(type=name, axis="identity", model=str(model))
        reward(config, device=CPU)(example(), pictures(2))
    assert "torchvision" not in sys.modules


def test_the_config_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="batchsize"):
        Dino.Config.model_validate_json(json.dumps({"type": "dino", "axis": "identity", "batchsize": 3}))
