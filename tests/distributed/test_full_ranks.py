"""Full fine-tuning on two processes is that of one, under DDP and under FSDP2, its KL to the base included."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from customized_grpo.policies.adapters.tensor_files import read_tensors
from customized_grpo.training.checkpoint import check
from customized_grpo.training.setup import build
from customized_grpo.training.trainer import Trainer
from runs import FULL, environment, make_tiny_world, metrics_of, tiny_recipe


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes and one have trained: ``ddp``, ``fsdp``, ``again`` and ``one``."""
    root = make_tiny_world(tmp_path_factory.mktemp("full-ranks"))
    ended = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("full_ranks.py")), str(root), str(root)],
        env=environment(CUDA_VISIBLE_DEVICES=""),
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert ended.returncode == 0, ended.stderr
    Trainer(build(tiny_recipe(root, root / "one", **FULL))).run()
    return root


def state(root: Path, run: str, name: str = "adapter", step: int = 4) -> dict[str, Tensor]:
    return read_tensors(root / run / "checkpoints" / f"step-{step:06d}" / "state" / f"{name}.safetensors")


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return sum(float((one[name] - other[name]).square().sum()) for name in one) ** 0.5


@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_two_processes_train_what_one_does(root: Path, engine: str) -> None:
    assert check(root / engine / "checkpoints" / "step-000004") == 4
    ranks = [read_tensors(root / f"{engine}-{rank}.safetensors") for rank in range(2)]
    assert distance(*ranks) == 0
    assert distance(ranks[0], state(root, engine)) == 0
    start = dict(FluxTransformer2DModel.from_pretrained(root / "flux", subfolder="transformer").named_parameters())
    moved = distance(state(root, "one"), {name: one.detach() for name, one in start.items()})
    # Adam makes a step of full size of a gradient that is nearly 0, and a pixel may round otherwise.
    assert distance(ranks[0], state(root, "one")) < 5e-2 * moved
    for one, two in zip(metrics_of(root / "one"), metrics_of(root / engine), strict=True):
        assert two["ratio/max_abs_log_first"] < 1e-5
        assert two["loss/kl"] == pytest.approx(one["loss/kl"], rel=5e-2)
        assert one["loss/kl"] > 1e-8


def test_shards_are_saved_whole_and_resume_exactly(root: Path) -> None:
    folder = root / "fsdp" / "checkpoints" / "step-000004"
    opened = FluxTransformer2DModel.from_pretrained(folder, subfolder="transformer")
    average = state(root, "fsdp", "ema")
    assert all(torch.equal(one, average[name]) for name, one in opened.named_parameters())
    assert '"_class_name": "FluxTransformer2DModel"' in (folder / "transformer" / "config.json").read_text()
    for name in ("adapter", "optimizer", "ema"):
        assert distance(state(root, "fsdp", name), state(root, "again", name)) == 0
