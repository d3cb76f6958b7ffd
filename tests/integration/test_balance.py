"""Training a balanced adapter: each group at its own b, in rollout, replay and old policy, and exactly resumed."""

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from customized_grpo.advantages.time_weights import leaning
from customized_grpo.commands.app import app
from customized_grpo.evaluation import evaluator
from customized_grpo.memory.footprint import of_recipe
from customized_grpo.policies import balance
from customized_grpo.policies.export import export
from customized_grpo.recipe.config import EvaluateRecipe, Recipe
from customized_grpo.recipe.loading import save_recipe
from customized_grpo.sampling.draw import draw
from customized_grpo.testing import check_objective
from customized_grpo.training.setup import build
from customized_grpo.training.trainer import Trainer
from customized_grpo.types import Conditioning
from runs import (
    BALANCED,
    NFT,
    break_off,
    checkpoint_bytes,
    make_taught_world,
    metrics_of,
    taught_recipe,
    tiny_recipe,
    with_evaluation,
)


def recipe_of(world: Path, run: Path, kind: str = "grpo", **changes: Any) -> Recipe:
    own = NFT if kind == "nft" else {}
    return tiny_recipe(world, run, **(own | BALANCED | changes))


@pytest.mark.parametrize("kind", ["grpo", "nft"])
def test_a_run_that_broke_off_goes_on_to_the_byte(tiny_world: Path, tmp_path: Path, kind: str) -> None:
    more = {"train__checkpoint_every": 1, "train__ema": 0.5, **with_evaluation(tiny_world, 3)}
    whole = Trainer(build(recipe_of(tiny_world, tmp_path / "whole", kind, **more)))
    folder = whole.run()
    if kind == "grpo":
        assert [row["ratio/max_abs_log_first"] for row in metrics_of(folder)[1:]] == [0.0] * 3
    break_off(Trainer(build(recipe_of(tiny_world, tmp_path / "part", kind, **more))), at=2)
    Trainer(build(recipe_of(tiny_world, tmp_path / "part", kind, run__resume="latest", **more))).run()
    assert checkpoint_bytes(folder, 3) == checkpoint_bytes(tmp_path / "part", 3)
    slope = folder / "checkpoints" / "step-000003" / "balance" / "pytorch_lora_weights.safetensors"
    assert slope.is_file()
    assert "balance/pytorch_lora_weights.safetensors" in (slope.parents[1] / "manifest.json").read_text()
    files = [
        draw(recipe_of(tiny_world, folder), [str(folder)], [whole.parts.dataset[0].references[0]], "a red dog",
             tmp_path / f"{b}.png", steps=2, seed=0, num=1, grid=None, balance=b)[0]
        for b in (-1.0, 1.0)
    ]  # fmt: skip
    assert files[0].read_bytes() != files[1].read_bytes()


def test_every_group_has_its_own_balance(tiny_world: Path, tmp_path: Path) -> None:
    """Its conditioning says it, its weights lean by it, and its samples are those of that b."""
    trainer = Trainer(build(recipe_of(tiny_world, tmp_path / "run", advantage__reach=0.5)))
    parts, draw_of = trainer.parts, torch.Generator().manual_seed(3)
    for one in parts.parameters.values():
        one.data = torch.randn(one.shape, generator=draw_of) * 0.05
    seen = []
    for group in (0, 1):
        rollout = trainer.sample(1, group, 0)
        b = float(rollout.cond.tensors[balance.BALANCE])
        assert b == pytest.approx(balance.drawn(trainer.recipe.run.seed, 1, group))
        rows = parts.time_weights[rollout.progress.long()]
        assert torch.equal(trainer.weights_of(rollout), leaning(rows, b, reach=0.5))
        plain = Conditioning({name: one for name, one in rollout.cond.tensors.items() if name != balance.BALANCE})
        with torch.no_grad():
            x, sigma = rollout.x[:, 0], rollout.sigmas[rollout.steps[0]]
            at_b, at_0 = (parts.policy.velocity(x, sigma, cond) for cond in (rollout.cond, plain))
        assert float((at_b - at_0).abs().max()) > 1e-4
        seen.append(b)
    assert seen[0] != seen[1]


@pytest.mark.parametrize("kind", ["grpo", "nft"])
def test_conformance_of_objectives(tiny_world: Path, tmp_path: Path, kind: str) -> None:
    parts = Trainer(build(recipe_of(tiny_world, tmp_path / "run", kind))).parts
    cond = balance.at(parts.encode(parts.dataset[0]), 0.4, parts.policy.device)
    check_objective(parts.objective, parts.dataset[0], cond)


def test_memory_counts_both_updates(tiny_world: Path, tmp_path: Path) -> None:
    balanced = of_recipe(recipe_of(tiny_world, tmp_path))
    twice = of_recipe(recipe_of(tiny_world, tmp_path, policy__lora={"rank": 4}))
    assert balanced.resident == twice.resident


def test_what_has_no_effect_is_refused(tiny_world: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"advantage\.reach: given 0\.5, which has no effect without"):
        tiny_recipe(tiny_world, tmp_path, advantage__reach=0.5)
    world = make_taught_world(tiny_world, tmp_path / "taught")
    with pytest.raises(ValueError, match=r"policy\.lora\.balance: b moves the weights of rewards, and .*sft"):
        taught_recipe(world, tmp_path, "sft", policy__lora={"balance": True})


def test_an_evaluation_at_several_balances(tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base is drawn once; each b is the evaluation of its export; the report compares them."""
    given = recipe_of(tiny_world, tmp_path / "run", **with_evaluation(tiny_world, 3))
    run = Trainer(build(given)).run()
    recipe = EvaluateRecipe(run=given.run, policy=given.policy, sampling={"steps": 5}, evaluate=given.evaluate)
    save_recipe(recipe, tmp_path / "evaluate.yaml")
    drawn = mock.Mock(wraps=evaluator.sample_images)
    monkeypatch.setattr(evaluator, "sample_images", drawn)

    def evaluated(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["evaluate", str(tmp_path / "evaluate.yaml"), *arguments])

    out = tmp_path / "several"
    done = evaluated(f"run.dir={out}", "--lora", str(run), "--balances=-1,0,0.5")
    assert done.exit_code == 0, done.output
    assert str(out / "report.html") in done.stdout
    assert drawn.call_count == 4, "a batch of the base, and one at each b"
    folders = [out / name for name in ("balance-1", "balance+0", "balance+0.5")]
    base = {(folder / "evaluation" / "base.jsonl").read_bytes() for folder in folders}
    assert len(base) == 1
    tuned = [(folder / "evaluation" / "tuned.jsonl").read_bytes() for folder in folders]
    assert len(set(tuned)) == 3
    export(str(run), tmp_path / "plain", "diffusers", with_base=False, recipe=None, balance=0.5)
    one = evaluated(f"run.dir={tmp_path / 'one'}", "--lora", str(tmp_path / "plain"))
    assert one.exit_code == 0, one.output
    assert (tmp_path / "one" / "evaluation" / "tuned.jsonl").read_bytes() == tuned[2]
    for text, message in (("-1,x", "give numbers"), ("0,0", "each once"), ("0,2", "from -1 to 1")):
        assert message in evaluated("--lora", str(run), f"--balances={text}").stderr
    assert "none is given; give --lora" in evaluated("--balances=0,1").stderr
