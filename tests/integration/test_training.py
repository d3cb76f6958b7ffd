"""What must always hold of a training run, on tiny weights.

Dimensions: G group size, K trained steps.
"""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from diffusers import FluxPipeline
from torch import Tensor

from customized_grpo.objectives import grpo as module
from customized_grpo.policies.adapters.lora import adapter_state
from customized_grpo.policies.adapters.tensor_files import read_tensors
from customized_grpo.policies.flux import UNO
from customized_grpo.rewards.base import RewardFailure
from customized_grpo.scoring.scorer import Scorer
from customized_grpo.training.checkpoint import check
from customized_grpo.training.setup import build
from customized_grpo.training.trainer import DivergedError, Trainer
from frozen_weights import frozen_hash
from runs import metrics_of, tiny_recipe

from .conftest import Finished

MakeTrainer = Callable[..., Trainer]


@pytest.fixture
def trainer_of(tiny_world: Path, tmp_path: Path) -> MakeTrainer:
    """A trainer of a recipe with changes, before its first step."""
    return lambda **changes: Trainer(build(tiny_recipe(tiny_world, tmp_path / "run", **changes)))


def adapter(trainer: Trainer) -> dict[str, Tensor]:
    return adapter_state(trainer.parts.policy.transformer)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_trains_the_adapter_and_nothing_else(finished: Finished) -> None:
    assert frozen_hash(finished.trainer.parts.policy.transformer) == finished.frozen
    moved = adapter(finished.trainer)
    assert all(not torch.equal(moved[name], finished.start[name]) for name in moved)
    policy = finished.trainer.parts.policy
    trained = {name for name, one in policy.transformer.named_parameters() if one.requires_grad}
    assert trained == set(finished.trainer.parts.parameters)


def test_the_folder_of_a_run(finished: Finished) -> None:
    folder = finished.folder
    assert [row["step"] for row in metrics_of(folder)] == list(range(11))
    assert (folder / "config.yaml").is_file()
    assert sorted(path.name for path in (folder / "checkpoints").glob("step-*")) == ["step-000005", "step-000010"]
    assert sorted(path.name for path in (folder / "samples").glob("*.png")) == [
        f"step-{step:06d}.png" for step in (1, 4, 8)
    ]
    summary = json.loads((folder / "evaluation" / "summary.json").read_text())
    assert [row["name"] for row in summary["rows"]] == ["base", "tuned"]
    assert summary["differences"][0]["metrics"]["bright"]["mean"] != 0
    for step in (0, 5, 10):
        assert len((folder / "evaluation" / f"step-{step:06d}.jsonl").read_text().splitlines()) == 2


def test_a_checkpoint_holds_the_adapter_and_no_frozen_weight(finished: Finished) -> None:
    path = finished.folder / "checkpoints" / "step-000010"
    assert check(path) == 10
    parameters = finished.trainer.parts.parameters
    assert set(read_tensors(path / "state" / "adapter.safetensors")) == set(parameters)
    saved = read_tensors(path / "pytorch_lora_weights.safetensors")
    assert same({name.removeprefix("transformer."): one for name, one in saved.items()}, adapter(finished.trainer))
    bytes_of_adapter = sum(one.numel() * 4 for one in parameters.values())
    frozen = sum(one.numel() * 4 for one in finished.trainer.parts.policy.transformer.parameters())
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    assert size < 4 * bytes_of_adapter + 40_000  # the adapter twice, Adam's two moments, and names
    assert frozen > 4 * bytes_of_adapter


def test_flux_pipeline_loads_the_adapter_to_the_same_velocity(tiny_world: Path, finished: Finished) -> None:
    policy = finished.trainer.parts.policy
    assert isinstance(policy, UNO)
    pipeline = FluxPipeline.from_pretrained(tiny_world / "flux")
    stock = UNO(pipeline, policy.config, device=policy.device, dtype=policy.dtype)
    x = torch.randn(4, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    example = finished.trainer.parts.dataset[0]
    cond, sigma = policy.encode(example.prompt, example.references), torch.tensor(0.7)
    with torch.no_grad():
        base = stock.velocity(x, sigma, cond)
        pipeline.load_lora_weights(finished.folder / "checkpoints" / "step-000010")
        loaded = stock.velocity(x, sigma, cond)
        assert torch.equal(loaded, policy.velocity(x, sigma, cond))
        assert (loaded - base).abs().max() > 1e-3


def gradient(trainer: Trainer, advantage: float | None, microbatch: int, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Of one update of two groups, with the optimizer left out; ``advantage`` replaces every one of the real."""
    monkeypatch.setattr(Trainer, "optimize", lambda self: {})
    settings = trainer.recipe.train.model_copy(update={"microbatch": microbatch})
    recipe = trainer.recipe.model_copy(update={"train": settings})
    monkeypatch.setattr(trainer, "parts", dataclasses.replace(trainer.parts, recipe=recipe))
    groups = [trainer.sample(7, group, index) for group, index in trainer.assignments(7)]
    advantages = [
        trainer.advantages_of(trainer.parts.scorer.submit(one.example, one.images).result(), one) for one in groups
    ]
    if advantage is not None:
        for one in advantages:
            one.advantage.fill_(advantage)
    parameters = trainer.parts.parameters.values()
    trainer.update(groups, advantages, range(4), first=True)
    flat = torch.cat([one.grad.flatten() for one in parameters if one.grad is not None])
    for one in parameters:
        one.grad = None
    return flat


def test_micro_batches_never_change_the_gradient(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = gradient(finished.trainer, None, 1000, monkeypatch)
    assert whole.norm() > 1e-4
    for size in (1, 3, 4):
        other = gradient(finished.trainer, None, size, monkeypatch)
        assert (other - whole).norm() / whole.norm() < 1e-5, f"micro-batch {size}"


def test_zero_advantages_give_exactly_zero_gradient(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (1, 4):
        none = gradient(finished.trainer, 0.0, size, monkeypatch)
        assert len(none) > 1000
        assert not none.any()
    assert gradient(finished.trainer, 1.0, 4, monkeypatch).any()  # the control


def test_constant_rewards_move_nothing(trainer_of: MakeTrainer) -> None:
    rewards = {f"of_{axis}": {"type": "runs:Constant", "axis": axis} for axis in ("prompt", "identity")}
    trainer = trainer_of(rewards=rewards, train__weight_decay=0.0)
    before = adapter(trainer)
    metrics = trainer.step(0)
    assert metrics["grad/norm"] == 0
    assert metrics["reward/of_prompt/zero_variance_share"] == 1
    assert metrics["advantage/abs_mean"] == 0
    assert math.isnan(metrics["advantage/correlation"])
    assert same(before, adapter(trainer))


def test_a_run_that_fails_ends_its_threads_and_trackers(
    trainer_of: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, ended = trainer_of(), []

    def broken(self: Trainer, step: int) -> dict[str, float]:
        self.parts.accelerator.trackers = [mock.Mock(finish=lambda: ended.append("tracker"))]
        raise DivergedError("on purpose")

    monkeypatch.setattr(Scorer, "close", lambda self: ended.append("scorer"))
    monkeypatch.setattr(Trainer, "step", broken)
    with pytest.raises(DivergedError, match="on purpose"):
        trainer.run()
    assert ended == ["scorer", "tracker"]


def test_several_updates_take_shares_of_each_group_and_leave_ratio_one(
    trainer_of: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(train__updates_per_rollout=2, objective__kl=0.01)
    assert [list(share) for share in trainer.shares()] == [[0, 1], [2, 3]]
    rows = []
    real = Trainer.update

    def spy(self: Trainer, groups: Any, advantages: Any, samples: Any, *, first: bool) -> dict[str, float]:
        rows.append(real(self, groups, advantages, samples, first=first))
        return rows[-1]

    monkeypatch.setattr(Trainer, "update", spy)
    metrics = trainer.step(0)
    before, after = rows
    assert before["ratio/max_abs_log"] == metrics["ratio/max_abs_log_first"] < 1e-6
    assert before["ratio/clip_share"] == 0
    assert before["loss/kl"] == pytest.approx(0, abs=1e-8)
    assert after["ratio/max_abs_log"] == metrics["ratio/max_abs_log"] > 1e-4
    assert after["ratio/clip_share"] > 0
    assert after["loss/kl"] > 1e-8  # to the base, which the adapter has left
    assert trainer.parts.schedule.last_epoch == 2


def test_the_saved_adapter_is_the_average(trainer_of: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(train__ema=0.6, train__steps=3)
    passed: list[dict[str, Tensor]] = []
    real = Trainer.optimize

    def spy(self: Trainer) -> dict[str, float]:
        metrics = real(self)
        passed.append(adapter(self))
        return metrics

    monkeypatch.setattr(Trainer, "optimize", spy)
    folder = trainer.run() / "checkpoints" / "step-000003"
    saved = read_tensors(folder / "pytorch_lora_weights.safetensors")
    assert same(adapter(trainer), passed[-1])  # training goes on from the newest weights, not from the average
    for name, newest in passed[-1].items():
        # diffusers begins with the first weights and warms the decay up: (1 + n) / (10 + n), at most that of the recipe
        average = passed[0][name]
        for n, weights in enumerate(passed[1:], start=1):
            decay = min(0.6, (1 + n) / (10 + n))
            average = decay * average + (1 - decay) * weights[name]
        torch.testing.assert_close(saved[f"transformer.{name}"], average)
        assert not torch.equal(saved[f"transformer.{name}"], newest)


def test_an_unscorable_image_is_masked_and_counted(trainer_of: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    rewards = {
        "patchy": {"type": "runs:Patchy", "axis": "prompt"},
        "warm": {"type": "runs:Warmth", "axis": "identity"},
    }
    trainer = trainer_of(rewards=rewards, advantage__max_failed_share=0.1)
    advantages: list[Tensor] = []
    real = Trainer.advantages_of

    def spy(self: Trainer, *given: Any) -> Any:
        found = real(self, *given)
        advantages.append(found.advantage)
        return found

    monkeypatch.setattr(Trainer, "advantages_of", spy)
    metrics = trainer.step(0)
    assert metrics["reward/patchy/failed_share"] == 0.25
    assert metrics["reward/warm/failed_share"] == 0
    assert metrics["advantage/masked_share"] == 0.25
    for one in advantages:
        assert one.any(1).tolist() == [True, False, True, True]
    before = adapter(trainer)
    with pytest.raises(RewardFailure, match=r"'patchy' failed on 4 of its last 16.*max_failed_share: 0\.1"):
        trainer.step(1)
    assert same(before, adapter(trainer))


def test_a_replay_that_differs_stops_the_run_before_anything_moves(
    trainer_of: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = UNO.velocity

    def other_under_gradients(self: UNO, *given: Any) -> Tensor:
        velocity = real(self, *given)
        return velocity * 1.01 if torch.is_grad_enabled() else velocity

    monkeypatch.setattr(UNO, "velocity", other_under_gradients)
    trainer = trainer_of(train__ratio_guard=1e-5)
    before = adapter(trainer)
    with pytest.raises(DivergedError, match=r"train\.ratio_guard"):
        trainer.run()
    assert same(before, adapter(trainer))
    monkeypatch.setattr(UNO, "velocity", lambda self, *given: real(self, *given) * math.nan)
    with pytest.raises(DivergedError, match=r"\|log-ratio\| is nan"):
        trainer.step(0)


def test_a_gradient_that_is_not_finite_moves_nothing(trainer_of: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = module.clipped_surrogate, [0]

    def bad_at_first(*given: Any, **named: Any) -> Tensor:
        calls[0] += 1
        loss: Tensor = real(*given, **named)
        return loss * math.inf if calls[0] == 1 else loss

    monkeypatch.setattr(module, "clipped_surrogate", bad_at_first)
    trainer = trainer_of(train__max_skipped=1, train__ema=0.5)
    before = adapter(trainer)
    skipped = trainer.step(0)
    assert not math.isfinite(skipped["grad/norm"])
    assert skipped["grad/max_skipped"] == 1
    assert same(before, adapter(trainer))
    assert not trainer.parts.optimizer.optimizer.state_dict()["state"]
    assert trainer.parts.schedule.last_epoch == 0
    assert trainer.step(1)["grad/max_skipped"] == 1
    assert not same(before, adapter(trainer))

    calls[0] = 0
    moved = adapter(trainer)
    with pytest.raises(DivergedError, match=r"2 time\(s\) so far \(train\.max_skipped=1\); nothing was updated"):
        trainer.step(2)
    assert same(moved, adapter(trainer))
