"""The HPSv3 port against numbers recorded from the published package, and what it refuses.

How they were recorded: ``tiny_hpsv3.py`` wrote base folder and checkpoint; PyPI hpsv3 1.0.0 ran on transformers 4.45.2
and torch 2.13.0 in an environment of its own: ``Qwen2VLRewardModelBT(output_dim=2, reward_token="special",
rm_head_type="ranknet", rm_head_kwargs=None)``, ``load_state_dict(..., strict=True)`` of the same file,
``resize_token_embeddings``, float32, SDPA, then ``HPSv3RewardInferencer.reward`` with Qwen2-VL-7B-Instruct's chat
template and processor, and the first output. Its token ids, grids and pixel values were equal to those here, its
scores within 3.1e-6 over ten cases. With Qwen2-VL's own positions these scores are off by 0.25.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from customized_grpo.rewards.hpsv3 import HPSv3
from customized_grpo.rewards.hpsv3_prompt import INSTRUCTION
from customized_grpo.testing import check_reward
from tiny_hpsv3 import save_base, save_checkpoint
from tiny_rewards import example, pictures

CPU = torch.device("cpu")
PLAIN, ODD = "a backpack in the snow", "un sac à dos {rouge}\non a beach, 50% off"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = save_base(tmp_path_factory.mktemp("hpsv3"))
    save_checkpoint(made / "HPSv3.safetensors")
    return made


def build(folder: Path, checkpoint: Path | None = None, device: torch.device = CPU, **options: object) -> HPSv3:
    section = {
        "type": "hpsv3",
        "axis": "prompt",
        "model": str(folder),
        "checkpoint": str(checkpoint or folder),
        "dtype": "float32",
    }
    return HPSv3(HPSv3.Config.model_validate({**section, **options}), device=device)


@pytest.fixture(scope="module")
def reward(folder: Path) -> HPSv3:
    return build(folder)


@pytest.mark.parametrize(
    ("prompt", "height", "width", "expected"),
    [
        (PLAIN, 64, 64, (0.939327, 1.192189, 1.609115)),
        (PLAIN, 512, 768, (0.939106, 1.133127, 1.555579)),
        (PLAIN, 100, 40, (0.887116, 1.170424, 1.631976)),
        (ODD, 64, 96, (0.810252, 1.166916, 1.857151)),
    ],
)
def test_scores_are_those_of_the_published_package(
    reward: HPSv3, prompt: str, height: int, width: int, expected: tuple[float, ...]
) -> None:
    scores = reward(example(prompt=prompt), pictures(3, 7, height, width))
    torch.testing.assert_close(scores, torch.tensor(expected), rtol=0, atol=3e-5)


def test_the_instruction_is_the_trained_one() -> None:
    """Trailing blanks included: an editor that strips them changes every score."""
    digest = hashlib.sha256(INSTRUCTION.encode()).hexdigest()
    assert digest == "f6ee57479d4e9eee76b49c00dc962e1e696a5a2b3cc32cebd9b1fa76fe27502c"


def test_it_conforms(reward: HPSv3) -> None:
    check_reward(reward, example(), pictures(3))


def test_batches_do_not_change_scores(folder: Path, reward: HPSv3) -> None:
    images, one = pictures(3), example()
    alone = build(folder, batch_size=1)(one, images)
    torch.testing.assert_close(reward(one, images), alone, rtol=0, atol=1e-5)


def test_it_loads_in_one_of_several_cpu_processes(folder: Path, reward: HPSv3) -> None:
    """accelerate calls the CPU of each ``cpu:0`` there, which safetensors doesn't know."""
    images = pictures(2)
    assert torch.equal(build(folder, device=torch.device("cpu", 0))(example(), images), reward(example(), images))


def test_bfloat16_is_near_and_still_returns_float32(folder: Path, reward: HPSv3) -> None:
    half = build(folder, dtype="bfloat16")
    images, one = pictures(3), example()
    scores = half(one, images)
    assert scores.dtype == torch.float32
    assert {parameter.dtype for parameter in half._head.parameters()} == {torch.float32}
    torch.testing.assert_close(scores, reward(one, images), rtol=0, atol=0.2)


def without(name: str) -> Callable[[dict[str, Tensor]], None]:
    return lambda weights: weights.__delitem__(name)


def spare(weights: dict[str, Tensor]) -> None:
    weights["model.layers.9.mlp.up_proj.weight"] = torch.zeros(2, 2)


def narrow(weights: dict[str, Tensor]) -> None:
    weights["rm_head.0.weight"] = torch.zeros(1024, 8)


def longer(weights: dict[str, Tensor]) -> None:
    weights["model.embed_tokens.weight"] = torch.zeros(300, 32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("visual.blocks.1.norm1.bias"), "Missing key"),
        (without("rm_head.5.bias"), "Missing key"),
        (without("model.embed_tokens.weight"), "Missing key"),
        (spare, "Unexpected key"),
        (narrow, "size mismatch"),
        (longer, "has 300 token embeddings, but the tokenizer .* number 264, which must be the last"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    folder: Path, tmp_path: Path, change: Callable[[dict[str, Tensor]], None], message: str
) -> None:
    weights = load_file(folder / "HPSv3.safetensors")
    change(weights)
    save_file(weights, tmp_path / "changed.safetensors")
    with pytest.raises(ValueError, match=message):
        build(folder, tmp_path / "changed.safetensors")


def test_a_damaged_checkpoint_is_refused(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "half.safetensors"
    file.write_bytes((folder / "HPSv3.safetensors").read_bytes()[:100_000])
    with pytest.raises(ValueError, match=r"can't be read.*download it again"):
        build(folder, file)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("weights.pth", "nothing is unpickled"),
        ("empty", r"holds no HPSv3\.safetensors"),
        ("none/at/all", "no such"),
    ],
)
def test_a_checkpoint_that_is_none_is_refused(folder: Path, tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "weights.pth").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=message):
        build(folder, tmp_path / name)


def test_another_base_is_refused(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "model_type": "qwen2"}))
    with pytest.raises(ValueError, match="is a 'qwen2' model, but HPSv3 is a 'qwen2_vl' one"):
        build(other)


@pytest.mark.parametrize(
    ("prompt", "message"), [("  ", "has no prompt"), ("a <|Reward|> bag", "begins a special token")]
)
def test_prompts_that_it_can_not_read_are_refused(reward: HPSv3, prompt: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reward(example(prompt=prompt), pictures(1))
