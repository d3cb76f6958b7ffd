"""The shipped launch configurations, read by accelerate's own loader and launcher."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env
from diffusers import Flux2Transformer2DModel, FluxTransformer2DModel, QwenImageTransformer2DModel

from customized_grpo.recipe.loading import shipped_recipes

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "config" / "accelerate"
ENGINES = {"ddp": "MULTI_GPU", "fsdp2": "FSDP", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}


def test_there_is_one_for_each_engine() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(ENGINES)
    assert not set(ENGINES) & set(shipped_recipes()), "they are no recipes"


@pytest.mark.parametrize("name", ENGINES)
def test_accelerate_reads_it(name: str) -> None:
    """It refuses a key that it doesn't know."""
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    assert config.distributed_type == ENGINES[name]
    assert config.num_processes == 8
    assert config.mixed_precision == ("bf16" if name.startswith("zero") else "no")


@pytest.mark.parametrize("more", [[], ["--num_processes", "6"]], ids=["as it is", "another number"])
def test_fsdp2_reaches_the_processes(more: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--config_file", str(FOLDER / "fsdp2.yaml"), *more, "-m", "customized_grpo"]
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    given, config, _ = _validate_launch_command(launch_command_parser().parse_args(arguments))
    assert config is not None
    environment = prepare_multi_gpu_env(given)
    assert given.num_processes == int(more[1] if more else 8)
    assert environment["ACCELERATE_USE_FSDP"] == "true"
    assert environment["ACCELERATE_MIXED_PRECISION"] == "no"
    for key, value in environment.items():
        if key.startswith("FSDP_"):
            monkeypatch.setenv(key, str(value))
    plugin = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.reshard_after_forward) == (2, True)
    assert not plugin.cpu_ram_efficient_loading
    assert not plugin.activation_checkpointing


@pytest.mark.parametrize("model", [FluxTransformer2DModel, Flux2Transformer2DModel, QwenImageTransformer2DModel])
def test_models_name_the_blocks_that_fsdp2_wraps(model: type) -> None:
    assert all(name.endswith("TransformerBlock") for name in model._no_split_modules)  # type: ignore[attr-defined]


def test_the_script_says_which_engine_it_was_asked_for(tmp_path: Path) -> None:
    """A python that finds a GPU and prints what it would start stands in for the real one."""
    fake = tmp_path / "python3"
    fake.write_text('#!/bin/sh\n[ "$1" = -c ] && exit 0\necho "$@"\n')
    fake.chmod(0o755)
    (tmp_path / "scripts").mkdir()
    script = tmp_path / "scripts" / "launch.sh"
    script.write_text((ROOT / "scripts" / "launch.sh").read_text())
    (tmp_path / "recipe.yaml").write_text("")
    said = subprocess.run(
        ["bash", str(script), "train", str(tmp_path / "recipe.yaml"), "4", "train.steps=1"],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "ACCELERATE_CONFIG": "mine.yaml"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "--config_file mine.yaml --num_processes 4 -m customized_grpo train" in said
    assert said.rstrip().endswith("train.steps=1")
    assert sys.executable not in said
