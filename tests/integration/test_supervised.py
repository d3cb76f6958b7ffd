"""Supervised runs by the trainer: the loss falls, micro-batches and kills change nothing, RL goes on from them."""

import copy
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image

from customized_grpo import testing
from customized_grpo.policies.adapters.lora import adapter_state
from customized_grpo.report.write import write_report
from customized_grpo.training import resumable
from customized_grpo.training.setup import build
from customized_grpo.training.trainer import Trainer, train
from forked import exit_code, forked
from frozen_weights import frozen_hash
from runs import FULL, checkpoint_bytes, make_taught_world, metrics_of, taught_recipe, tiny_recipe, with_evaluation

KINDS = ("sft", "dpo")


@pytest.fixture(scope="module")
def taught_world(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_taught_world(tiny_world, tmp_path_factory.mktemp("taught") / "world")


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_learns_and_moves_nothing_else(taught_world: Path, tmp_path: Path, kind: str) -> None:
    changes = {"train__steps": 12, "train__save_samples_every": 6, **with_evaluation(taught_world, 6)}
    trainer = Trainer(build(taught_recipe(taught_world, tmp_path / "run", kind, **changes)))
    frozen, adapter = frozen_hash(trainer.parts.policy.transformer), adapter_state(trainer.parts.policy.transformer)
    run = trainer.run()
    assert frozen_hash(trainer.parts.policy.transformer) == frozen
    after = adapter_state(trainer.parts.policy.transformer)
    assert any(not torch.equal(after[name], adapter[name]) for name in after)
    rows = metrics_of(run)
    losses = [row["loss/surrogate"] for row in rows[1:]]
    assert sum(losses[-3:]) < 0.95 * sum(losses[:3])
    if kind == "dpo":
        assert losses[0] == pytest.approx(torch.log(torch.tensor(2.0)).item(), abs=1e-3)  # at the base
        assert rows[1]["dpo/margin"] == pytest.approx(0, abs=1e-3)
        assert rows[-1]["dpo/accuracy"] > 0.5
    assert not [name for row in rows for name in row if name.startswith(("reward/", "advantage/", "weight/", "ratio/"))]
    assert {"evaluation/bright/mean"} <= rows[0].keys() & rows[6].keys() & rows[12].keys()
    pictures = sorted(path.name for path in (run / "samples").glob("*.png"))
    assert pictures == ["step-000001.png", "step-000006.png", "step-000012.png"]
    page = write_report([run]).read_text(encoding="utf-8")
    assert ">Loss<" in page
    assert ">Training loss<" in page
    assert ">Training rewards<" not in page
    assert (">Pairs in order<" in page) == (kind == "dpo")
    assert "Advantage" not in page
    assert "NaN" not in page


@pytest.mark.parametrize("kind", KINDS)
def test_conformance_and_micro_batches(
    taught_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    trainer = Trainer(build(taught_recipe(taught_world, tmp_path / "run", kind, train__microbatch=2)))
    trainer.step(0)
    parts = trainer.parts
    example = parts.dataset[0]
    testing.check_objective(parts.objective, example, parts.encode(example))
    monkeypatch.setattr(Trainer, "optimize", lambda self: {})
    found = []
    for size in (2, 4, 100):
        monkeypatch.setattr(type(trainer.recipe), "pairs_per_backward", size)
        trainer.step(7)
        found.append(torch.cat([one.grad.flatten() for one in parts.parameters.values() if one.grad is not None]))
        for one in parts.parameters.values():
            one.grad = None
    for other in found[1:]:
        assert (other - found[0]).norm() / found[0].norm() < 2e-4  # each processor rounds in its own way


@pytest.mark.parametrize("kind", KINDS)
def test_ten_steps_are_five_a_kill_and_five_more(taught_world: Path, tmp_path: Path, kind: str) -> None:
    changes = {
        "train__steps": 10,
        "train__checkpoint_every": 5,
        "train__ema": 0.5,
        "train__schedule": {"name": "cosine", "warmup_steps": 2},
        **({"objective": {"kl": 0.1}} if kind == "sft" else {}),
        **with_evaluation(taught_world, 5),
    }
    whole = train(taught_recipe(taught_world, tmp_path / "whole", kind, **copy.deepcopy(changes)))
    recipe = taught_recipe(taught_world, tmp_path / "parts", kind, **copy.deepcopy(changes))

    def killed_at_eight() -> None:
        step = Trainer.step

        def killing(self: Trainer, number: int) -> dict[str, float]:
            if number == 7:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(self, number)

        Trainer.step = killing  # type: ignore[method-assign]
        train(recipe)

    code = exit_code(forked(tmp_path / "log", killed_at_eight))
    assert code == -signal.SIGKILL, (tmp_path / "log").read_text()
    resumed = recipe.model_copy(update={"run": recipe.run.model_copy(update={"resume": "latest"})})
    parts = train(resumed)
    assert checkpoint_bytes(parts, 10) == checkpoint_bytes(whole, 10)
    assert metrics_of(parts) == metrics_of(whole)


def test_another_target_is_another_run(taught_world: Path, tmp_path: Path) -> None:
    world = shutil.copytree(taught_world, tmp_path / "world")
    changes = {"train__steps": 2, "train__checkpoint_every": 1}
    train(taught_recipe(world, tmp_path / "run", "sft", **changes | {"train__steps": 1}))
    Image.new("RGB", (32, 32), "white").save(world / "target-1.png")
    with pytest.raises(ValueError, match=r"1 changed \(dog-1\)"):
        train(taught_recipe(world, tmp_path / "run", "sft", run__resume="latest", **changes))


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_can_be_taught(taught_world: Path, tmp_path: Path, kind: str) -> None:
    full = {key: FULL[key] for key in ("policy__lora", "policy__full", "train__lr")}
    kl = {"objective": {"kl": 0.1}} if kind == "sft" else {}
    run = train(taught_recipe(taught_world, tmp_path / "run", kind, train__steps=3, **full, **kl))
    losses = [row["loss/surrogate"] for row in metrics_of(run)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("objective", ["grpo", "nft"])
def test_rl_goes_on_from_the_lora_and_is_held_to_it(taught_world: Path, tmp_path: Path, objective: str) -> None:
    warm = train(taught_recipe(taught_world, tmp_path / "warm", "sft", train__steps=6))
    changes = {"policy__base_lora": {"path": str(warm), "mode": "adapter"}, "objective": {"type": objective, "kl": 0.5}}
    trainer = Trainer(build(tiny_recipe(taught_world, tmp_path / "rl", **copy.deepcopy(changes))))
    first = trainer.step(0)
    assert first["loss/kl"] == 0  # at step 0 the policy is the warm start, and so is its reference
    assert trainer.step(1)["loss/kl"] > 0
    bare = copy.deepcopy(changes) | {"policy__base_lora": None, "policy__lora": {"rank": 4, "path": str(warm)}}
    started = Trainer(build(tiny_recipe(taught_world, tmp_path / "bare", **bare)))
    assert started.step(0)["loss/kl"] > 0  # a start isn't part of the base


def test_a_checkpoint_has_the_supervised_recipe(taught_world: Path, tmp_path: Path) -> None:
    run = train(taught_recipe(taught_world, tmp_path / "run", "sft", train__steps=1))
    saved = resumable.saved_recipe(run / "checkpoints" / "step-000001" / "config.yaml")
    assert saved.objective.type == "sft"
    assert not saved.rewards
