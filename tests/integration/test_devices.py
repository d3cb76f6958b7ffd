"""The whole job on a GPU where there is one, and the same tests on a CPU, so that they are never run for the first time
on the day when a GPU is lent."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from PIL import Image

from customized_grpo.devices import open_device
from customized_grpo.policies.adapters import lora
from customized_grpo.policies.base import LoraSettings, load_policy
from customized_grpo.policies.flux import UNOConfig
from customized_grpo.sampling.clock import Clock
from customized_grpo.training.setup import build
from customized_grpo.training.trainer import Trainer, train
from runs import metrics_of, tiny_recipe

gpu = pytest.mark.gpu
DEVICES = ["cpu", pytest.param("cuda", marks=gpu)]
WHOLE = {"train__microbatch": None, "run__precision": "bf16"}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("batch", [None, "auto"])
def test_a_run_in_bfloat16_replays_exactly(device: str, batch: str | None, tiny_world: Path, tmp_path: Path) -> None:
    changes = {**WHOLE, "run__device": device, "train__steps": 2, "sampling__batch": batch}
    rows = metrics_of(train(tiny_recipe(tiny_world, tmp_path / "run", **changes)))
    assert [row["ratio/max_abs_log_first"] for row in rows if "loss/surrogate" in row] == [0.0, 0.0]
    assert all(math.isfinite(row["grad/norm"]) and row["grad/norm"] > 0 for row in rows if "grad/norm" in row)


@pytest.mark.parametrize("device", DEVICES)
def test_checkpointing_gives_the_same_gradient(device: str, tiny_world: Path, tmp_path: Path) -> None:
    gradients = []
    for share in (False, True):
        changes = {**WHOLE, "run__device": device, "policy__gradient_checkpointing": share}
        rows = metrics_of(train(tiny_recipe(tiny_world, tmp_path / str(share), **changes, train__steps=1)))
        gradients.append(rows[-1]["grad/norm"])
    assert gradients[0] == pytest.approx(gradients[1], rel=1e-3)


@pytest.mark.parametrize("device", DEVICES)
def test_gradients_in_bfloat16_are_those_of_float32(device: str, tiny_world: Path) -> None:
    """Finite is not enough: attention's backward pass has been wrong on a GPU."""
    spec = {"type": "uno", "model": str(tiny_world / "flux"), "height": 64, "width": 64, "reference_size": 64}
    config = UNOConfig.model_validate(spec | {"max_sequence_length": 16})
    precisions: tuple[tuple[str, Literal["no", "bf16"]], ...] = (("cpu", "no"), (device, "bf16"))
    gradients = []
    for place, precision in precisions:
        policy = load_policy(config, device=open_device(place), precision=precision)
        lora.attach(policy, LoraSettings(rank=4), seed=0)
        draw = torch.Generator().manual_seed(0)
        parameters = list(lora.trainable_parameters(policy).values())
        for one in parameters:
            one.data = (0.1 * torch.randn(one.shape, generator=draw)).to(place)
        x = torch.randn(4, *policy.latent_shape, generator=draw).to(place, policy.dtype)
        cond = policy.encode("a dog", [Image.new("RGB", (64, 64), "red")])
        policy.velocity(x, torch.tensor([0.9, 0.7, 0.4, 0.1], device=place), cond).square().mean().backward()
        gradients.append(torch.cat([one.grad.cpu().flatten() for one in parameters if one.grad is not None]))
    exact, half = gradients
    assert float((half - exact).norm() / exact.norm()) < 0.05


@gpu
def test_a_step_never_waits_for_the_gpu(tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Clock.phase

    @contextmanager
    def strict(self: Clock, name: str) -> Iterator[None]:
        with real(self, name):
            torch.cuda.set_sync_debug_mode("error" if name in ("rollout", "replay") else "default")
            try:
                yield
            finally:
                torch.cuda.set_sync_debug_mode("default")

    trainer = Trainer(build(tiny_recipe(tiny_world, tmp_path / "run", **WHOLE, run__device="cuda")))
    trainer.step(0)  # libraries set themselves up
    monkeypatch.setattr(Clock, "phase", strict)
    trainer.step(1)


@gpu
def test_compiled_blocks_replay_exactly_or_are_recomputed(tiny_world: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {**WHOLE, "run__device": "cuda", "policy__compile": True, "train__steps": 2}
    rows = metrics_of(train(tiny_recipe(tiny_world, tmp_path / "run", **changes, train__old_log_probs="auto")))
    assert all(row["ratio/max_abs_log_first"] == 0 for row in rows if "loss/surrogate" in row)
