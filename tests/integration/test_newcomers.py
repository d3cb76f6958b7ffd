"""What people who came with the README alone ran into."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from customized_grpo import registry
from customized_grpo.commands.app import app
from customized_grpo.identity.runs import goes_on
from customized_grpo.registry import UnknownPluginError
from customized_grpo.rewards.base import RewardFailure
from customized_grpo.training.trainer import train
from runs import tiny_recipe, with_evaluation


def run(*given: str) -> Any:
    return CliRunner().invoke(app, [*given], env={"COLUMNS": "200"})


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of rewards in a folder that modules are found in."""
    (tmp_path / "first_day_rewards.py").write_text(
        "def contrast(example, images):\n    return [1.0 for _ in images]\n\n\n"
        "def raises(example, images):\n    return [1 / 0 for _ in images]\n\n\n"
        "def short(example, images):\n    return [1.0]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("function", "says"),
    [("raises", r"division by zero \(first_day_rewards\.py:6\)"), ("short", "returned 1 scores for 2 images")],
)
def test_a_reward_that_fails_does_so_before_a_model_is_loaded(
    tiny_world: Path, mine: Path, function: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It did after the base's evaluation: on a rented card that is the load and an evaluation, and no line was told."""

    def loaded(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("customized_grpo.training.setup.open_for_training", loaded)
    reward = {"type": f"first_day_rewards:{function}", "axis": "identity"}
    changes = with_evaluation(tiny_world, 1) | {"rewards__mine": reward}
    with pytest.raises(RewardFailure, match=rf"reward 'mine' failed on example 'dog-0': .*{says}"):
        train(tiny_recipe(tiny_world, mine / "run", **changes))
    assert not (mine / "run" / "evaluation").exists()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("first_day_rewards:contrst", "did you mean 'contrast'"),
        ("first_day_rewards.py:contrast", "without its ending: 'first_day_rewards:contrast'"),
        ("first_day_nowhere:contrast", "in the current folder"),
    ],
)
def test_a_misspelt_function_has_a_hint(mine: Path, name: str, says: str) -> None:
    with pytest.raises(UnknownPluginError, match=says):
        registry.resolve("rewards", name)


def test_a_line_that_is_no_python_is_named(mine: Path) -> None:
    (mine / "first_day_broken.py").write_text("x = 1\ndef f(:\n")
    with pytest.raises(UnknownPluginError, match=r"mend line 2 of .*first_day_broken\.py"):
        registry.resolve("rewards", "first_day_broken:f")


def test_a_corrected_import_leaves_no_split_of_the_one_before(tmp_path: Path) -> None:
    """Recipes read the split, so that the corrected class word was never trained."""
    for name in ("a", "b", "c"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(3):
            picture = Image.effect_noise((96, 96), 40 + 10 * number + ord(name)).convert("RGB")
            picture.save(tmp_path / "photos" / name / f"{number}.png")
    words = "words={a: dog, b: cat, c: bag}"
    wanted = ["data", "import", "dreambooth-folder", str(tmp_path / "photos"), "--out", str(tmp_path / "out"), words]
    assert run(*wanted).exit_code == 0
    assert run("data", "split", str(tmp_path / "out"), "--share", "0.3").exit_code == 0
    parts = [tmp_path / "out" / f"manifest.{part}.jsonl" for part in ("train", "test")]
    assert all(part.is_file() for part in parts)
    again = run("data", "split", str(tmp_path / "out"), "--share", "0.3")
    assert again.stderr.count("was there, and is replaced") == 2
    corrected = run(*wanted[:-1], "words={a: fox, b: cat, c: bag}", "--overwrite")
    assert corrected.exit_code == 0
    assert corrected.stderr.count("split again") == 2
    assert not any(part.exists() for part in parts)


def test_several_processes_go_on_by_a_command_that_can_be_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("GROUP_WORLD_SIZE", raising=False)
    assert goes_on(Path("runs/a b")) == (
        "torchrun --standalone --nproc_per_node 2 -m customized_grpo train 'runs/a b/config.yaml' run.resume=latest"
    )
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    assert goes_on(Path("runs/a")).startswith("your launcher with -m customized_grpo train")


@pytest.mark.parametrize("kind", ["text", "sd15"])
def test_a_file_that_is_no_lora_is_said_to_be_none(tmp_path: Path, kind: str) -> None:
    """It was answered by a missing config.yaml."""
    file = tmp_path / "lora.safetensors"
    if kind == "text":
        file.write_text("notes of mine, which are no weights at all")
    else:
        key = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_k"
        save_file({f"{key}.lora_down.weight": torch.ones(4, 8), f"{key}.lora_up.weight": torch.ones(8, 4)}, file)
    Image.new("RGB", (64, 64)).save(tmp_path / "r.png")
    done = run("generate", "--lora", str(file), "--reference", str(tmp_path / "r.png"), "--prompt", "a dog",
               "--out", str(tmp_path / "o.png"))  # fmt: skip
    assert done.exit_code == 2
    assert ("can't be read" if kind == "text" else "a LoRA of a Stable Diffusion model with a U-Net") in done.stderr


def test_a_forecast_counts_held_out_examples_that_are_there(tiny_world: Path, tmp_path: Path) -> None:
    from customized_grpo.commands.cost import num_held_out

    recipe = tiny_recipe(tiny_world, tmp_path / "run", **with_evaluation(tiny_world, 1))
    assert recipe.evaluate is not None
    assert num_held_out(recipe.evaluate) == 2
    away = json.loads(recipe.evaluate.model_dump_json())
    away["data"]["path"] = str(tmp_path / "nowhere.jsonl")
    assert num_held_out(type(recipe.evaluate).model_validate(away)) == 2, "the limit"
