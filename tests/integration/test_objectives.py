"""What holds for GRPO holds for every objective: micro-batches, masks, exact resume, full fine-tuning, the old policy.

Dimensions: G = 4 samples, K trained levels, S latent tokens, C latent channels.
"""

import copy
import dataclasses
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from customized_grpo import testing
from customized_grpo.advantages.shaping import Advantages
from customized_grpo.memory.footprint import of_recipe
from customized_grpo.memory.geometry import step_geometry
from customized_grpo.objectives.base import Draw, rows_at
from customized_grpo.objectives.forward import Levels
from customized_grpo.recipe.config import Recipe
from customized_grpo.training import autotune
from customized_grpo.training.setup import build
from customized_grpo.training.trainer import Trainer, train
from customized_grpo.types import Noised
from frozen_weights import frozen_hash
from runs import FULL, checkpoint_bytes, metrics_of, tiny_dict, tiny_recipe

LAG = {"schedule": "ramp", "rate": 0.2, "limit": 0.5}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "nft": {"objective": {"type": "nft"}},
    "nft, lagging": {
        "objective": {"type": "nft", "beta": 0.1, "old": LAG, "kl": 0.01, "step_weighting": "equal"},
        "train__updates_per_rollout": 2,
    },
    "nft, noise on the way": {
        "objective": {"type": "nft"},
        "sampling__dynamics": {"type": "cps"},
        "sampling__plan": {"type": "branch"},
        "train__updates_per_rollout": 2,
    },
    "nft, cached": {
        "objective": {"type": "nft"},
        "sampling__cache": {"type": "first_block", "threshold": 0.3},
        "sampling__batch": 3,
    },
    "nft, extrapolated": {
        "objective": {"type": "nft", "beta": 0.1, "old": LAG},
        "sampling__cache": {"type": "taylorseer", "warmup": 1},
        "sampling__dynamics": {"type": "cps"},
        "sampling__plan": {"type": "branch"},
    },
    "awm": {
        "objective": {"type": "awm", "clip": 0.1, "levels": {"draw": "stratified", "number": 3}},
        "sampling__solver": "dpm_solver_2m",
        "train__updates_per_rollout": 2,
    },
    "awm, averaged": {
        "objective": {"type": "awm", "average": {"rate": 0.2}, "average_kl": 0.5},
        "train__updates_per_rollout": 2,
    },
    "guard": {"objective": {"ratio": "guard"}, "train__updates_per_rollout": 2},
    "dppo": {"objective": {"ratio": "dppo"}, "train__updates_per_rollout": 2, "train__old_log_probs": "replay"},
}
FORWARD = [name for name in OBJECTIVES if OBJECTIVES[name]["objective"].get("type")]

MakeTrainer = Callable[..., Trainer]


@pytest.fixture
def trainer_of(tiny_world: Path, tmp_path: Path) -> MakeTrainer:
    """A trainer of an objective, before its first step."""
    return lambda name, **changes: Trainer(
        build(tiny_recipe(tiny_world, tmp_path / "run", **copy.deepcopy(OBJECTIVES[name]), **changes))
    )


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: one.detach().clone() for name, one in trainer.parts.parameters.items()}


def moved(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return any(not torch.equal(one[name], other[name]) for name in one)


def gradient(
    trainer: Trainer,
    monkeypatch: pytest.MonkeyPatch,
    *,
    microbatch: int = 4,
    advantage: float | None = None,
    first: bool = True,
    change: Callable[[Any], Any] = lambda group: group,
) -> Tensor:
    """Of the first, or else of the second update of two groups; ``advantage`` replaces every one of the real."""
    monkeypatch.setattr(Trainer, "optimize", lambda self: {})
    settings = trainer.recipe.train.model_copy(update={"microbatch": microbatch})
    recipe = trainer.recipe.model_copy(update={"train": settings})
    monkeypatch.setattr(trainer, "parts", dataclasses.replace(trainer.parts, recipe=recipe))
    with trainer.parts.sampling():
        groups = [trainer.sample(7, group, index) for group, index in trainer.assignments(7)]
        groups = autotune.with_old(trainer.parts, groups, trainer.shares())
    advantages = [
        trainer.advantages_of(trainer.parts.scorer.submit(one.example, one.images).result(), one) for one in groups
    ]
    if advantage is not None:
        for one in advantages:
            one.advantage.fill_(advantage)
    samples = trainer.shares()[0 if first else -1]
    trainer.update([change(one) for one in groups], advantages, samples, first=first)
    parameters = trainer.parts.parameters.values()
    flat = torch.cat([one.grad.flatten() for one in parameters if one.grad is not None])
    for one in parameters:
        one.grad = None
    return flat


@pytest.mark.parametrize("name", OBJECTIVES)
def test_micro_batches_never_change_the_gradient(
    trainer_of: MakeTrainer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    trainer = trainer_of(name)
    trainer.step(0)  # the first weights have a zero in every product
    for first in (True, False) if len(trainer.shares()) > 1 else (True,):
        whole = gradient(trainer, monkeypatch, microbatch=1000, first=first)
        assert whole.norm() > 0
        for size in (1, 3):
            other = gradient(trainer, monkeypatch, microbatch=size, first=first)
            assert (other - whole).norm() / whole.norm() < 1e-4, f"micro-batch {size}"


@pytest.mark.parametrize("name", OBJECTIVES)
def test_zero_advantages_give_exactly_zero_gradient_on_and_off_policy(
    trainer_of: MakeTrainer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    trainer = trainer_of(name, objective__kl=0.0)
    trainer.step(0)
    for first in (True, False) if len(trainer.shares()) > 1 else (True,):
        assert not gradient(trainer, monkeypatch, advantage=0.0, first=first).any()
        assert gradient(trainer, monkeypatch, advantage=1.0, first=first).any()  # the control


def test_off_policy_a_judgement_of_zero_is_none_of_a_sample_that_was_left_out(
    trainer_of: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFT's formula pulls a pair of advantage 0 back to the old policy; one that was not scored has no part at all."""
    trainer = trainer_of("nft, lagging", objective__kl=0.0)
    trainer.step(0)
    shares: list[Any] = []
    monkeypatch.setattr(Trainer, "shares", lambda self: shares or [range(4)])

    def only(advantages: list[float]) -> Tensor:
        def given(self: Trainer, rewards: Tensor, group: Noised) -> Advantages:
            column = torch.tensor(advantages)[:, None].expand(4, len(group.progress)).clone()
            scored = torch.tensor([True, True, True, False])
            return Advantages(
                axes=column[:, :2],
                joined=column,
                advantage=column,
                bonus=column * 0,
                scored=scored,
                skipped=False,
                clipped_share=0.0,
            )

        monkeypatch.setattr(Trainer, "advantages_of", given)
        return gradient(trainer, monkeypatch)

    judged = only([1e-30, 0.0, 0.0, 0.0])  # the rest of a group that is not all alike
    assert judged.any()
    assert not only([0.0, 0.0, 0.0, 0.0]).any()
    shares.append(range(3, 4))
    assert not only([1e-30, 0.0, 0.0, 0.0]).any()  # the one that was not scored


@pytest.mark.parametrize("name", OBJECTIVES)
def test_constant_rewards_move_nothing(trainer_of: MakeTrainer, name: str) -> None:
    rewards = {f"of_{axis}": {"type": "runs:Constant", "axis": axis} for axis in ("prompt", "identity")}
    trainer = trainer_of(name, rewards=rewards, train__weight_decay=0.0, objective__kl=0.0)
    before = weights(trainer)
    assert trainer.step(0)["grad/norm"] == 0
    assert not moved(before, weights(trainer))


@pytest.mark.parametrize("name", FORWARD)
def test_an_unscorable_sample_has_no_part_in_the_gradient(
    trainer_of: MakeTrainer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    rewards = {"patchy": {"type": "runs:Patchy", "axis": "prompt"}, "warm": {"type": "runs:Warmth", "axis": "identity"}}
    trainer = trainer_of(name, rewards=rewards, advantage__max_failed_share=1.0, objective__kl=0.0)
    trainer.step(0)

    def other(sample: int) -> Callable[[Any], Any]:
        def change(group: Noised) -> Noised:
            x0 = group.x0.clone()
            x0[sample] += 1.0
            return dataclasses.replace(group, x0=x0)

        return change

    plain = gradient(trainer, monkeypatch)
    assert torch.equal(gradient(trainer, monkeypatch, change=other(1)), plain)  # the second of a group is unscorable
    assert not torch.equal(gradient(trainer, monkeypatch, change=other(0)), plain)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_run_goes_on_to_the_same_bytes_and_moves_the_adapter_alone(
    tiny_world: Path, tmp_path: Path, name: str
) -> None:
    changes = OBJECTIVES[name] | {"train__checkpoint_every": 2}
    trainer = Trainer(build(tiny_recipe(tiny_world, tmp_path / "whole", **changes)))
    transformer = trainer.parts.policy.transformer
    frozen, before = frozen_hash(transformer), weights(trainer)
    trainer.run()
    assert frozen_hash(transformer) == frozen
    assert moved(before, weights(trainer))
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "step-000004")
    train(tiny_recipe(tiny_world, tmp_path / "again", run__resume="latest", **changes))
    whole, again = checkpoint_bytes(tmp_path / "whole", 4), checkpoint_bytes(tmp_path / "again", 4)
    assert ("old.safetensors" in whole) == bool({"old", "average"} & OBJECTIVES[name]["objective"].keys())
    assert whole == again
    assert metrics_of(tmp_path / "whole") == metrics_of(tmp_path / "again")


@pytest.mark.parametrize("name", ["nft, lagging", "awm"])
def test_every_weight_is_trained_and_resumed_too(tiny_world: Path, tmp_path: Path, name: str) -> None:
    changes = FULL | OBJECTIVES[name] | {"train__steps": 3, "train__checkpoint_every": 1}
    train(tiny_recipe(tiny_world, tmp_path / "whole", **changes))
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "step-000003")
    train(tiny_recipe(tiny_world, tmp_path / "again", run__resume="latest", **changes))
    state = [tmp_path / run / "checkpoints" / "step-000003" / "state" for run in ("whole", "again")]
    files = [{file.name: file.read_bytes() for file in folder.iterdir()} for folder in state]
    assert files[0] == files[1]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_conforms(trainer_of: MakeTrainer, name: str) -> None:
    trainer = trainer_of(name)
    trainer.step(0)
    parts = trainer.parts
    example = parts.dataset[0]
    testing.check_objective(parts.objective, example, parts.encode(example))


def test_the_old_policy_samples_and_lags(trainer_of: MakeTrainer) -> None:
    trainer = trainer_of("nft, lagging")
    parts = trainer.parts
    start = weights(trainer)
    trainer.step(0)  # two updates, after which the decay is .4
    after = weights(trainer)
    with parts.sampling():
        old = weights(trainer)
    assert not moved(after, weights(trainer))
    for name, one in old.items():
        torch.testing.assert_close(one, 0.4 * start[name] + 0.6 * after[name])
    group, index = trainer.assignments(1)[0]
    with parts.sampling():
        lagging = trainer.sample(1, group, index)
    newest = trainer.sample(1, group, index)
    assert isinstance(lagging, Noised)
    assert isinstance(newest, Noised)
    assert torch.equal(lagging.noise, newest.noise)
    assert not torch.equal(lagging.x0, newest.x0)


def test_on_policy_the_old_velocity_is_free_and_the_same(
    trainer_of: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of("nft, noise on the way")
    trainer.step(0)

    def computed(group: Noised) -> Noised:
        return autotune._recomputed(trainer.parts, group, [range(4)])

    free = gradient(trainer, monkeypatch)
    monkeypatch.setattr("customized_grpo.training.autotune.is_on_policy", lambda *_, **__: False)
    assert torch.equal(gradient(trainer, monkeypatch, change=computed), free)


def test_time_weights_are_read_at_the_levels_place() -> None:
    table = torch.tensor([[0.7, 0.3], [0.5, 0.5], [0.1, 0.9]])
    at = rows_at(table, torch.tensor([0.0, 0.25, 1.0, 1.5, 2.0]))
    expected = torch.tensor([[0.7, 0.3], [0.65, 0.35], [0.5, 0.5], [0.3, 0.7], [0.1, 0.9]])
    torch.testing.assert_close(at, expected)
    steps = torch.tensor([2, 0])
    assert torch.equal(rows_at(table, steps), table[steps])


@pytest.mark.parametrize(
    ("levels", "number"),
    [({}, 4), ({"number": 2}, 2), *(({"draw": one}, 4) for one in ("uniform", "stratified", "logit_normal"))],
)
def test_levels_lie_on_the_samplers_curve(trainer_of: MakeTrainer, levels: dict[str, Any], number: int) -> None:
    trainer = trainer_of("nft", objective__levels=levels)
    parts = trainer.parts
    example = parts.dataset[0]
    clock, cond = parts.clock, parts.encode(example)
    groups = [parts.objective.sample(example, cond, Draw(1, step, 0), clock=clock, batch=None) for step in (0, 0, 1)]
    first, again, other = groups
    assert isinstance(first, Noised)
    assert first.levels.shape == (number,)
    grid = parts.sigmas
    assert bool((first.levels <= 1).all())
    assert bool((first.levels >= grid[-2]).all())
    assert bool((first.levels.diff() < 0).all())
    below = first.places.long().clamp(max=3)
    expected = torch.lerp(grid[below], grid[below + 1], first.places - below)
    torch.testing.assert_close(first.levels, expected)
    assert torch.equal(first.progress, again.progress)
    assert torch.equal(first.progress, other.progress) == (levels == {})
    assert first.noise.shape == (4, number, *parts.policy.latent_shape)
    assert len({float(one.sum()) for one in first.noise.flatten(0, 1)}) == 4 * number


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampling__plan": {"type": "all"}}, "give both, or neither"),
        ({"sampling__dynamics": {"type": "cps"}}, "give both, or neither"),
        ({"sampling__shared_noise": True}, "all samples of a group would be the same image"),
        ({"sampling__solver": None}, "samples by a solver"),
        (
            {"sampling__dynamics": {"type": "cps"}, "sampling__plan": {"type": "all"}, "sampling__solver": "euler"},
            "give one, and null for the other",
        ),
        ({"train__old_log_probs": "replay"}, r"train\.old_log_probs: it has no effect"),
        ({"train__ratio_guard": 1.0}, r"train\.ratio_guard: it has no effect"),
        ({"objective": {"type": "nft", "clip": 0.1}}, "clip"),
        ({"objective": {"type": "nft", "levels": {"std": 2.0}}}, "belong to logit_normal"),
        ({"objective": {"type": "nft", "levels": {"number": 5}}}, "has 4 trained levels; use at most as many"),
        ({"objective": {"type": "nft", "old": {"warmup": 3}}}, "belongs to power"),
        ({"objective": {"type": "nft", "old": {"schedule": "power", "flat": 3}}}, "belongs to ramp"),
        ({"objective": {"type": "grpo"}, "sampling__solver": "euler"}, r"sampling\.solver: it has no effect"),
        ({"objective": {"type": "grpo"}, "sampling__plan": None}, r"sampling\.plan: null"),
        ({"objective": {"type": "nft", "beta": 0.1}}, r"objective\.beta: it has no effect"),
        (
            {"sampling__dynamics": {"type": "cps"}, "sampling__plan": {"type": "fraction", "fraction": 0.3}},
            "trains no step of the sampler",
        ),
        ({"objective": {"type": "awm", "average_kl": 0.1}}, "give both, or neither"),
        ({"objective": {"ratio": "dppo"}, "train__old_log_probs": "auto"}, "auto compares log-probabilities"),
        ({"objective": {"ratio": "dppo", "clip": 0.1}}, "clip has no effect with ratio 'dppo'"),
        ({"objective": {"threshold": 0.1}}, "threshold has no effect with ratio 'plain'"),
    ],
)
def test_what_an_objective_never_looks_at_is_refused(
    tiny_world: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    given = {"objective": {"type": "nft"}} | changes
    with pytest.raises(ValueError, match=message):
        tiny_recipe(tiny_world, tmp_path / "run", **given)


def test_a_resolved_recipe_is_read_again(tiny_world: Path, tmp_path: Path) -> None:
    for name, changes in OBJECTIVES.items():
        recipe = tiny_recipe(tiny_world, tmp_path / "run", **changes)
        assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe, name
    before = tiny_dict(tiny_world, tmp_path / "run")
    assert "type" not in before["objective"]
    assert Recipe.model_validate(before).objective.type == "grpo"  # as in the recipes of earlier versions


def test_weights_of_levels_are_equal_pulls(trainer_of: MakeTrainer) -> None:
    parts = trainer_of("nft", objective__step_weighting="equal").parts
    pulls = parts.objective.sensitivity
    assert pulls[-1] == 0
    torch.testing.assert_close(pulls[:-1], pulls[:1].expand(4))
    example = parts.dataset[0]
    group = parts.objective.sample(example, parts.encode(example), Draw(1, 0, 0), clock=parts.clock, batch=None)
    assert math.isclose(float(parts.objective.level_weights(group).mean()), 1.0, rel_tol=1e-6)


def test_the_estimate_counts_what_an_objective_keeps(tiny_world: Path, tmp_path: Path) -> None:
    def size(name: str, **changes: Any) -> tuple[int | None, int]:
        recipe = tiny_recipe(tiny_world, tmp_path / "run", **(copy.deepcopy(OBJECTIVES[name]) | changes))
        found = {line.name: line.bytes for line in of_recipe(recipe).resident}
        geometry = step_geometry(recipe, world=1, latent_shape=(4, 64))
        return geometry.trajectory_bytes, found["adapter"]

    numbers = 2 * 4 * 4 * 64  # 2 groups of 4 samples
    assert size("nft")[0] == numbers * 4 * (1 + 4)
    assert size("nft, lagging")[0] == numbers * 4 * (1 + 4 + 4)
    assert size("awm")[0] == numbers * 4 * (1 + 3 + 3)
    assert size("awm, averaged")[0] == numbers * 4 * (1 + 4 + 4 + 4)
    assert size("nft, lagging", train__updates_per_rollout=1)[0] == numbers * 4 * (1 + 4 + 4)
    plain, lagging = size("nft")[1], size("nft, lagging", objective__kl=0.0)[1]
    assert lagging == plain * 3 // 2  # weights, gradients, and the old policy
    assert size("guard")[0] == numbers * 2 * (4 + 4 + 4)  # 2 of 4 steps: before, after, mean


def test_the_effective_weight_counts_how_often_a_level_is_drawn() -> None:
    for levels in (Levels(), Levels(draw="uniform"), Levels(draw="logit_normal", mean=2.0, std=0.5)):
        density = levels.density(6)
        assert density.shape == (6,)
        assert density[-1] == 0
        assert float(density.sum()) == pytest.approx(5)
    assert float(density[:2].sum()) > 4.9  # the last: near the noise


@pytest.mark.parametrize(("threshold", "masked"), [(1e3, False), (1e-12, True)])
def test_dppo_clips_nothing_and_counts_what_it_masks(trainer_of: MakeTrainer, threshold: float, masked: bool) -> None:
    trainer = trainer_of("dppo", objective__threshold=threshold)
    assert trainer.parts.objective.ratio_clip is None
    assert (trainer.step(0)["ratio/clip_share"] > 0) == masked


def test_guard_has_a_clip_of_its_own(trainer_of: MakeTrainer) -> None:
    assert trainer_of("guard").parts.objective.ratio_clip == 2e-6


def test_an_old_policy_that_is_the_newest_costs_nothing(trainer_of: MakeTrainer) -> None:
    trainer = trainer_of("nft", objective__old={"flat": 1, "rate": 0.5})
    assert not trainer.parts.old_samples
    trainer.step(0)
    assert not trainer.parts.old_samples  # the decay after one update is 0
    trainer.step(1)
    assert trainer.parts.old_samples
    assert trainer.step(2)["velocity/moved"] > 0


def test_a_cache_is_counted_and_never_on_while_weights_are_compared(
    trainer_of: MakeTrainer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trainer = trainer_of("nft, extrapolated")
    parts, on, real = trainer.parts, list[bool](), type(trainer.parts.policy).velocity

    def seen(self: Any, *given: Any) -> Tensor:
        on.append(self.transformer.is_cache_enabled)
        return real(self, *given)

    monkeypatch.setattr(type(parts.policy), "velocity", seen)
    found = trainer.step(0)
    rollouts = on.index(False)
    assert rollouts
    assert not any(on[rollouts:])  # old velocities, and the trained forwards
    assert 0 < found["rollout/blocks_run"] < 1
    assert "rollout/blocks_run" not in trainer_of("nft", run__dir=str(tmp_path / "other")).step(0)


def test_a_pull_of_nothing_is_refused(trainer_of: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("customized_grpo.objectives.nft.NFT.pull", lambda self, sigma: 1 - sigma)
    with pytest.raises(ValueError, match="a level whose gradient is 0"):
        trainer_of("nft", objective__step_weighting="equal")
