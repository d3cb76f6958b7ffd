"""Rules in training: each acts as its formula says and no further, the pairs that ``keep`` leaves out aren't replayed,
and a run with all of them resumes to the byte.

Dimensions: G = 4 samples, K trained steps.
"""

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from customized_grpo.advantages.rules import best_and_worst, gate, sigmoid_scale, whiten
from customized_grpo.advantages.shaping import Advantages
from customized_grpo.data import order
from customized_grpo.memory.geometry import step_geometry
from customized_grpo.training import pictures
from customized_grpo.training import trainer as module
from customized_grpo.training.encoded import needed_of
from customized_grpo.training.resumable import compare_recipes
from customized_grpo.training.setup import build
from customized_grpo.training.trainer import Trainer, train
from runs import NFT, RULES, checkpoint_bytes, metrics_of, tiny_recipe

MakeTrainer = Callable[..., Trainer]
UNIT = {"warm": {"centre": 74.0, "slope": 0.5}}


@pytest.fixture
def trainer_of(tiny_world: Path, tmp_path: Path) -> MakeTrainer:
    return lambda rules, **changes: Trainer(
        build(tiny_recipe(tiny_world, tmp_path / "run", advantage__rules=rules, **copy.deepcopy(changes)))
    )


def spied(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, float], list[Any], list[Tensor]]:
    """Metrics of the first step, (groups, advantages) of each update, and the advantage of each replayed pair."""
    updates, pairs = list[Any](), list[Tensor]()
    update, batches = Trainer.update, module.micro_batches

    def spy(self: Trainer, groups: Any, advantages: Any, samples: range, *, first: bool) -> dict[str, float]:
        updates.append((groups, advantages))
        return update(self, groups, advantages, samples, first=first)

    def counted(*arguments: Any) -> Any:
        for one in batches(*arguments):
            pairs.append(one.advantage)
            yield one

    monkeypatch.setattr(Trainer, "update", spy)
    monkeypatch.setattr(module, "micro_batches", counted)
    metrics = trainer.step(0)
    monkeypatch.undo()
    return metrics, updates, pairs


def scores(trainer: Trainer) -> list[Tensor]:
    groups = [trainer.sample(0, group, index) for group, index in trainer.assignments(0)]
    return [trainer.parts.scorer.submit(one.example, one.images).result() for one in groups]


def plain(trainer: Trainer, rewards: list[Tensor]) -> list[Advantages]:
    """Advantages of these rewards by a trainer without rules, on the same groups."""
    groups = [trainer.sample(0, group, index) for group, index in trainer.assignments(0)]
    return [trainer.advantages_of(*pair) for pair in zip(rewards, groups, strict=True)]


def test_scale_and_gate_change_the_reward_before_it_is_normalised(
    trainer_of: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of({"scale": UNIT, "gate": {"bright": {"by": "warm", "floor": 0.5, "penalty": 9.0}}})
    rewards = scores(trainer)
    metrics, ((_, given), *_), _ = spied(trainer, monkeypatch)
    ruled, below = [], []
    for one in rewards:
        warm = sigmoid_scale(one[:, 1], centre=74.0, slope=0.5)
        ruled.append(torch.stack([gate(one[:, 0], warm, floor=0.5, penalty=9.0), warm], dim=1))
        below += (warm < 0.5).tolist()
    without = trainer_of({}, run__dir=str(trainer.parts.folder.parent / "without"))
    for one, other in zip(given, plain(without, ruled), strict=True):
        assert torch.equal(one.advantage, other.advantage)
    assert metrics["rules/gate/bright"] == pytest.approx(sum(below) / len(below))
    assert 0 < sum(below) < len(below)
    assert metrics["reward/warm/mean"] == pytest.approx(float(torch.cat(rewards)[:, 1].mean())), "metrics stay raw"


def test_a_sigmoid_is_steeper_with_more_references(trainer_of: MakeTrainer) -> None:
    trainer = trainer_of({"scale": {"warm": {"centre": 74.0, "slope": 0.5, "per_reference": 0.1, "beyond": 2}}})
    rewards = torch.tensor([[1.0, 70.0], [2.0, 80.0]])
    for references, slope in ((1, 0.4), (2, 0.5), (4, 0.7)):
        scaled = trainer.parts.rules.scaled(rewards, references)
        torch.testing.assert_close(scaled[:, 1], torch.sigmoid(slope * (rewards[:, 1] - 74.0)))
        assert torch.equal(scaled[:, 0], rewards[:, 0])


def test_a_group_that_is_too_alike_teaches_nothing(trainer_of: MakeTrainer) -> None:
    trainer = trainer_of({"spread": {"bright": {"least": 0.0}, "warm": {"least": 1e6}}})
    assert trainer.step(0)["rules/left_out_share"] == 0, "one reward that varies is enough"
    every = {"spread": {"bright": {"least": 1e6}, "warm": {"least": 1e6, "measure": "range"}}}
    trainer = trainer_of(every, run__dir=str(trainer.parts.folder.parent / "every"), train__weight_decay=0.0)
    metrics = trainer.step(0)
    assert metrics["rules/left_out_share"] == metrics["advantage/skipped_share"] == 1
    assert metrics["grad/norm"] == 0


def test_another_prompt_takes_the_place_of_a_group_that_is_left_out(
    trainer_of: MakeTrainer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The second group of the first step is the one whose warmth varies least."""
    spread = {"scale": UNIT, "spread": {"warm": {"least": 0.1, "measure": "range"}}}
    without, trainer = (
        trainer_of(spread | {"resample": times}, run__dir=str(tmp_path / str(times))) for times in (0, 2)
    )
    instead_of = trainer.assignments(0)[1][1]
    number = trainer.assignments(0)[1][0] + 2  # two groups a step, so the first attempt's second group is number 3
    again = trainer.sample(0, number, order.another(0, number, size=3, seed=42, instead_of=instead_of))
    before, ((left, given), *_), _ = spied(without, monkeypatch)
    after, ((groups, _), *_), _ = spied(trainer, monkeypatch)
    assert [one.left_out for one in given] == [False, True]
    assert before["rules/left_out_share"] == after["rules/resampled_share"] == 0.5
    assert "rules/resampled_share" not in before
    assert torch.equal(groups[0].images, left[0].images), "a group that teaches stays"
    assert groups[1].example.key != left[1].example.key
    assert torch.equal(groups[1].images, again.images)
    assert after["rules/left_out_share"] == 0


def test_groups_are_sampled_anew_as_often_as_asked(trainer_of: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of({"spread": {"warm": {"least": 1e6}}, "resample": 2})
    sampled = list[tuple[int, int]]()
    sample = Trainer.sample

    def spy(self: Trainer, step: int, group: int, index: int) -> Any:
        sampled.append((group, index))
        return sample(self, step, group, index)

    monkeypatch.setattr(Trainer, "sample", spy)
    metrics = trainer.step(0)
    assert [group for group, _ in sampled] == [0, 1, 2, 3, 4, 5]
    assert metrics["rules/left_out_share"] == metrics["rules/resampled_share"] == 1
    # a cache that is completed beforehand holds all that may be drawn
    held = {index for _, index in needed_of(trainer.recipe, trainer.parts.dataset, None)}
    assert {index for _, index in sampled} <= held


def test_whitened_advantages_are_those_of_all_groups(
    trainer_of: MakeTrainer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _, ((_, given), *_), _ = spied(trainer_of({"whiten": True}), monkeypatch)
    without = trainer_of({}, run__dir=str(tmp_path / "without"))
    before = plain(without, scores(without))
    expected, _ = whiten(torch.stack([one.joined for one in before]), torch.ones(2, 4, dtype=torch.bool))
    every = torch.stack([one.advantage for one in given])
    torch.testing.assert_close(every, expected.clamp(-5, 5))
    assert float(every.std()) == pytest.approx(1, abs=1e-3)


def test_a_harder_group_weighs_more_in_the_loss(trainer_of: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = {"scale": UNIT, "difficulty": {"reward": "warm", "low": 0.01}}
    trainer = trainer_of(rules)
    means = [float(sigmoid_scale(one[:, 1], centre=74.0, slope=0.5).mean()) for one in scores(trainer)]
    metrics, ((_, given), *_), pairs = spied(trainer, monkeypatch)
    weights = [one.weight for one in given]
    raw = [(1 - p) ** 2 for p in means]
    assert weights == pytest.approx([2 * one / sum(raw) for one in raw], rel=1e-4)
    assert sum(weights) / 2 == pytest.approx(1)
    assert metrics["rules/max_weight"] == pytest.approx(max(weights))
    # GRPO's loss is linear in the advantage of a pair, which holds the weight
    without = trainer_of({"scale": UNIT}, run__dir=str(trainer.parts.folder.parent / "without"))
    _, _, unweighted = spied(without, monkeypatch)
    half = len(pairs) // 2
    torch.testing.assert_close(torch.cat(pairs[:half]), torch.cat(unweighted[:half]) * weights[0])
    torch.testing.assert_close(torch.cat(pairs[half:]), torch.cat(unweighted[half:]) * weights[1])


def test_a_difficulty_needs_a_reward_in_the_unit_interval(trainer_of: MakeTrainer) -> None:
    with pytest.raises(
        ValueError, match=r"'warm' is from .* needs values in \[0, 1\]; start a new run with .*scale.warm"
    ):
        trainer_of({"difficulty": {"reward": "warm"}}).step(0)


@pytest.mark.parametrize("objective", ["grpo", "nft"])
def test_only_the_best_and_the_worst_are_replayed(
    trainer_of: MakeTrainer, monkeypatch: pytest.MonkeyPatch, objective: str
) -> None:
    changes: dict[str, Any] = NFT if objective == "nft" else {"train__updates_per_rollout": 2}
    trainer = trainer_of({"keep": {"best": 1, "worst": 1}}, train__microbatch=None, **changes)
    _, updates, pairs = spied(trainer, monkeypatch)
    assert len(updates) == 2
    whole = trainer_of({}, run__dir=str(trainer.parts.folder.parent / "without"), **changes)
    _, every, all_pairs = spied(whole, monkeypatch)
    assert 2 * sum(map(len, pairs)) == sum(map(len, all_pairs))
    groups, advantages = updates[0]
    for group, one, full_group, full in zip(groups, advantages, *every[0], strict=True):
        chosen = best_and_worst(full.joined, best=1, worst=1)
        assert len(group.images) == 2
        assert torch.equal(group.images, full_group.images[chosen])
        assert torch.equal(one.advantage, full.advantage[chosen])
    geometry = step_geometry(trainer.recipe, world=1, latent_shape=None)
    assert geometry.replay_forwards == sum(map(len, pairs))
    assert geometry.rollout_forwards == step_geometry(whole.recipe, world=1, latent_shape=None).rollout_forwards


@pytest.mark.parametrize("changes", [{}, {k: v for k, v in NFT.items() if k != "train__steps"}])
def test_a_run_with_every_rule_resumes_to_the_byte(tiny_world: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    rules = {key: value for key, value in RULES.items() if key != "train__old_log_probs" or not changes}
    settings = copy.deepcopy({**rules, **changes, "train__checkpoint_every": 1})
    train(tiny_recipe(tiny_world, tmp_path / "whole", **settings))
    train(tiny_recipe(tiny_world, tmp_path / "run", **(settings | {"train__steps": 2})))
    train(tiny_recipe(tiny_world, tmp_path / "run", **settings, run__resume="latest"))
    one, other = (checkpoint_bytes(tmp_path / name, 3) for name in ("whole", "run"))
    exported = "pytorch_lora_weights.safetensors"  # its header has the recipe, with the folder
    assert {name for name in one if one[name] != other[name]} <= {exported}
    assert metrics_of(tmp_path / "whole") == metrics_of(tmp_path / "run")


@pytest.mark.parametrize(
    "idle",
    [
        {"gate": {"bright": {"by": "warm", "floor": -1e4, "penalty": 9.0}}},
        {"spread": {"warm": {"least": 0.0}}},
        {"spread": {"warm": {"least": 1e6, "above": 1e6}}},
        {"scale": UNIT, "difficulty": {"reward": "warm", "low": 1.0, "high": 1.0}},
    ],
)
def test_a_rule_that_nothing_meets_changes_no_bit(
    trainer_of: MakeTrainer, tmp_path: Path, idle: dict[str, Any]
) -> None:
    off = {name: rule for name, rule in idle.items() if name == "scale"}
    trainers = [trainer_of(rules, run__dir=str(tmp_path / str(i))) for i, rules in enumerate((off, idle))]
    metrics = [one.step(0) for one in trainers]
    one, other = (trainer.parts.parameters for trainer in trainers)
    assert all(torch.equal(one[name], other[name]) for name in one)
    same = [name for name in metrics[0] if not name.startswith("time/")]
    assert {name: metrics[0][name] for name in same} == {name: metrics[1][name] for name in same}


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({"scale": {"wram": {"centre": 1, "slope": 1}}}, "scale.wram: there is no reward 'wram'; did you mean 'warm'?"),
        ({"gate": {"bright": {"by": "x", "floor": 1, "penalty": 1}}}, "gate.bright.by: there is no reward 'x'"),
        ({"gate": {"warm": {"by": "warm", "floor": 1, "penalty": 1}}}, "a reward can't be its own gate"),
        ({"gate": {"bright": {"by": "warm", "floor": 1, "penalty": 0}}}, "greater than 0"),
        ({"spread": {"x": {"least": 1}}}, "spread.x: there is no reward 'x'"),
        ({"difficulty": {"reward": "x"}}, "difficulty.reward: there is no reward 'x'"),
        ({"difficulty": {"reward": "warm", "low": 2.0}}, "the mean weight, has to lie between"),
        ({"scale": {"warm": {"centre": 1, "slope": 1, "beyond": 2}}}, "no effect without per_reference"),
        ({"scale": {"warm": {"centre": 1, "slope": 1, "per_reference": 1}}}, "a better image would score less"),
        ({"keep": {"best": 2, "worst": 2}}, "so nothing is left out"),
        ({"keep": {"best": 2, "worst": 1}}, "does not divide the 3 samples"),
        ({"keep": {"best": 0, "worst": 1}}, "greater than 0"),
        ({"whitened": True}, "Extra inputs"),
        ({"resample": 1}, "resample has no effect without spread"),
    ],
)
def test_rules_that_mean_nothing_are_refused(rules: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        tiny_recipe(Path("world"), Path("run"), advantage__rules=rules, train__updates_per_rollout=2)
    assert said in str(caught.value)


def test_a_run_goes_on_with_its_rules_alone() -> None:
    before = tiny_recipe(Path("world"), Path("run"))
    after = tiny_recipe(Path("world"), Path("run"), advantage__rules={"whiten": True})
    with pytest.raises(ValueError, match=r"advantage\.rules\.whiten: was False, given True"):
        compare_recipes(before, after)


def test_what_a_step_shows_is_the_whole_group(trainer_of: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Metrics and pictures are of every sample, whatever is trained on."""
    shown = list[Any]()
    monkeypatch.setattr(pictures, "save_sampled", lambda parts, done, *rest: shown.append(rest))
    trainer = trainer_of({"keep": {"best": 1, "worst": 1}}, train__microbatch=None)
    metrics = trainer.step(0)
    ((group, of_samples),) = shown
    values = of_samples()
    assert {"bright", "warm", "advantage/prompt", "advantage/identity", "advantage/mean"} == values.keys()
    assert {len(group.images), *map(len, values.values())} == {4}
    whole = trainer_of({}, run__dir=str(trainer.parts.folder.parent / "without")).step(0)
    for name in ("advantage/abs_mean", "advantage/share_conflict", "reward/warm/std"):
        assert metrics[name] == whole[name]


def test_advantages_of_chosen_samples_are_theirs() -> None:
    values = torch.arange(8.0).view(4, 2)
    one = Advantages(
        axes=values,
        joined=values,
        advantage=values,
        bonus=values,
        scored=torch.tensor([True, False, True, True]),
        skipped=False,
        clipped_share=0.0,
    )
    chosen = one.select(torch.tensor([1, 3]))
    assert chosen.scored.tolist() == [False, True]
    assert chosen.advantage.tolist() == [[2.0, 3.0], [6.0, 7.0]]
    assert one.compared.tolist() == [True, False, True, True]
    assert not dataclasses.replace(one, advantage=torch.zeros(4, 2)).compared.any()
