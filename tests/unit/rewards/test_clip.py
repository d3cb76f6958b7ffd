"""The CLIP rewards against the model's own joint forward."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from customized_grpo.rewards.clip import ClipI, ClipT
from tiny_rewards import MAX_TOKENS, example, pictures

CPU = torch.device("cpu")


def build_t(folder: Path, batch_size: int = 32) -> ClipT:
    config = ClipT.Config(type="clip_t", axis="prompt", model=str(folder), batch_size=batch_size)
    return ClipT(config, device=CPU)


def build_i(folder: Path, batch_size: int = 32) -> ClipI:
    config = ClipI.Config(type="clip_i", axis="identity", model=str(folder), batch_size=batch_size)
    return ClipI(config, device=CPU)


def pixels_of(folder: Path, images: list[Image.Image]) -> torch.Tensor:
    return CLIPImageProcessorPil.from_pretrained(folder)(images=images, return_tensors="pt")["pixel_values"]


def test_clip_t_is_the_models_own_similarity(clip_folder: Path) -> None:
    images, one = pictures(4), example(prompt="a red dog")
    model = CLIPModel.from_pretrained(clip_folder).eval()
    ids = [*CLIPTokenizer.from_pretrained(clip_folder)("a red dog")["input_ids"][: MAX_TOKENS - 1], 1]
    pixels = pixels_of(clip_folder, [Image.fromarray(image.numpy()) for image in images])
    with torch.no_grad():
        output = model(input_ids=torch.tensor([ids]), pixel_values=pixels)
    expected = 100.0 * output.logits_per_image[:, 0] / model.logit_scale.detach().exp()
    scores = build_t(clip_folder)(one, images)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-4)
    assert scores.std() > 1e-3


def test_clip_t_depends_on_the_prompt(clip_folder: Path) -> None:
    reward, images = build_t(clip_folder), pictures(2)
    first = reward(example(prompt="a dog"), images)
    assert not torch.allclose(first, reward(example(prompt="a cat"), images), atol=1e-3)


def test_a_long_prompt_is_cut_and_its_end_token_kept(clip_folder: Path) -> None:
    reward, images = build_t(clip_folder), pictures(2)
    words = ["dog"] * 40  # 3 tokens a word, far over the limit
    assert torch.equal(
        reward(example(prompt=" ".join(words)), images),
        reward(example(prompt=" ".join([*words, "cat"])), images),
    )


def test_clip_i_is_the_mean_cosine_to_the_references(clip_folder: Path) -> None:
    images, one = pictures(3), example(2)
    model = CLIPModel.from_pretrained(clip_folder).eval()
    with torch.no_grad():
        a = model.get_image_features(pixels_of(clip_folder, [Image.fromarray(i.numpy()) for i in images])).pooler_output
        b = model.get_image_features(pixels_of(clip_folder, list(one.references))).pooler_output
    expected = 100.0 * torch.cosine_similarity(a[:, None], b[None], dim=-1).mean(dim=1)
    scores = build_i(clip_folder)(one, images)
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-4)
    assert scores.std() > 1e-3


@pytest.mark.parametrize("build", [build_t, build_i])
def test_batches_do_not_change_scores(clip_folder: Path, build: type) -> None:
    images, one = pictures(5), example(2)
    torch.testing.assert_close(build(clip_folder, 2)(one, images), build(clip_folder)(one, images), rtol=0, atol=1e-4)


def test_clip_i_needs_a_reference(clip_folder: Path) -> None:
    with pytest.raises(ValueError, match="has no reference"):
        build_i(clip_folder)(example(0), pictures(1))


def test_weights_are_aligned_so_that_every_process_scores_alike(clip_folder: Path) -> None:
    parameters = build_t(clip_folder)._clip.model.parameters()
    assert {parameter.data_ptr() % 64 for parameter in parameters} == {0}


def test_a_prompt_beyond_the_limit_is_said_once(clip_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its end counted for nothing, and nothing said so (Lightning-AI/torchmetrics#2883)."""
    reward, images = build_t(clip_folder), pictures(1)
    reward(example(prompt="a dog"), images)
    assert not caplog.records
    for _ in range(2):
        reward(example(prompt=" ".join(["dog"] * 40)), images)
    (record,) = caplog.records
    assert f"CLIP reads {MAX_TOKENS} of the " in record.getMessage()


@pytest.mark.parametrize("damage", ["pointer", "half"])
def test_damaged_weights_are_named(clip_folder: Path, tmp_path: Path, damage: str) -> None:
    """It was 'header too large', from deep within (huggingface/diffusers#4406)."""
    shutil.copytree(clip_folder, tmp_path / "clip")
    weights = tmp_path / "clip" / "model.safetensors"
    content = weights.read_bytes()
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n"
    weights.write_bytes(pointer if damage == "pointer" else content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"clip' can't be loaded: its weights are damaged \(.*\), .*'git lfs pull'"):
        build_t(tmp_path / "clip")
