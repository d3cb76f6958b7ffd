"""What a run finds out in its first step and keeps: the rollout's batch, and whose log-probabilities are compared with.

A "GPU" here is a UNO that raises torch's own error above so many samples; a "compiled rollout" one whose forwards
without gradient are a little off.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from customized_grpo.policies.flux import UNO
from customized_grpo.training import autotune
from customized_grpo.training.faults import MemoryFullError
from customized_grpo.training.parts import Parts, RunState
from customized_grpo.training.setup import build
from customized_grpo.training.trainer import DivergedError, Trainer, train
from customized_grpo.types import Conditioning
from runs import checkpoint_bytes, metrics_of, tiny_recipe

G = 6
SMALL: dict[str, Any] = {
    "train__steps": 2,
    "train__group_size": G,
    "train__groups_per_step": 1,
    "train__microbatch": None,
    "train__checkpoint_every": 1,
    "sampling__steps": 4,
}


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Batch sizes of all forwards without gradient."""
    seen: list[int] = []
    real = UNO.velocity

    def velocity(self: UNO, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        if not torch.is_grad_enabled():
            seen.append(len(x))
        return real(self, x, sigma, cond)

    monkeypatch.setattr(UNO, "velocity", velocity)
    return seen


@pytest.fixture(autouse=True)
def no_collection(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Collecting garbage takes seconds in a process that holds this many libraries; whole runs do it nevertheless."""
    if "parts" in request.fixturenames:
        monkeypatch.setattr(autotune, "clear_device_cache", lambda **_: None)


@pytest.fixture(scope="module")
def parts(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """Of a run that nothing has happened to."""
    return build(tiny_recipe(tiny_world, tmp_path_factory.mktemp("choices") / "run", **SMALL))


def trainer_of(parts: Parts, **changes: Any) -> Trainer:
    """Another run of the same models."""
    recipe = tiny_recipe(Path(parts.recipe.policy.model).parent, parts.folder, **SMALL, **changes)
    return Trainer(replace(parts, recipe=recipe, state=RunState()))


@pytest.fixture
def holds(monkeypatch: pytest.MonkeyPatch, forwards: list[int]) -> Callable[[int], None]:
    """Sets how many samples a forward without gradient can hold."""

    def up_to(most: int) -> None:
        counted = UNO.velocity

        def velocity(self: UNO, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
            found = counted(self, x, sigma, cond)
            if not torch.is_grad_enabled() and len(x) > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")
            return found

        monkeypatch.setattr(UNO, "velocity", velocity)

    return up_to


def trainer_state(run: Path, step: int) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(
        (run / "checkpoints" / f"step-{step:06d}" / "state" / "trainer.json").read_text()
    )
    return state


def weights_and_optimizer(run: Path) -> list[bytes]:
    """Without the adapter in diffusers' format, whose header holds the recipe."""
    files = checkpoint_bytes(run, 2)
    return [files["adapter.safetensors"], files["optimizer.safetensors"]]


@pytest.mark.parametrize(("most", "found"), [(6, 6), (5, 3), (3, 3), (2, 2), (1, 1)])
def test_the_batch_is_the_group_halved_until_it_fits(
    parts: Parts, holds: Callable[[int], None], forwards: list[int], most: int, found: int
) -> None:
    trainer = trainer_of(parts, sampling__batch="auto")
    holds(most)
    group, index = trainer.assignments(0)[0]
    trainer.sample(0, group, index)
    tried = [size for size in (6, 3, 2, 1) if size >= found]
    assert forwards[: len(tried)] == tried
    assert max(forwards[len(tried) :]) == found
    assert trainer.parts.state.rollout_batch == found
    (news,) = trainer.parts.state.drain_news()
    assert f"auto found {found} of 6" in news
    forwards.clear()
    trainer.sample(0, group, index)
    assert max(forwards) == found, "it was looked for again"
    assert not trainer.parts.state.news


def test_a_batch_that_was_found_is_a_batch_that_was_given_and_is_kept(
    tiny_world: Path,
    tmp_path: Path,
    holds: Callable[[int], None],
    forwards: list[int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    auto, by_hand, resumed = tmp_path / "auto", tmp_path / "by-hand", tmp_path / "resumed"
    holds(4)
    train(tiny_recipe(tiny_world, auto, sampling__batch="auto", **SMALL))
    assert "step 1: sampling.batch: auto found 3 of 6 samples" in capsys.readouterr().err
    train(tiny_recipe(tiny_world, by_hand, sampling__batch=3, **SMALL))
    assert weights_and_optimizer(auto) == weights_and_optimizer(by_hand)
    assert metrics_of(auto) == metrics_of(by_hand)
    assert [trainer_state(auto, step)["rollout_batch"] for step in (1, 2)] == [3, 3]
    assert trainer_state(by_hand, 2)["rollout_batch"] is None

    shutil.copytree(auto, resumed)
    shutil.rmtree(resumed / "checkpoints" / "step-000002")
    holds(100)  # a larger card: looked for again it would be 6
    forwards.clear()
    train(tiny_recipe(tiny_world, resumed, run__resume="latest", sampling__batch="auto", **SMALL))
    assert max(forwards) == 3
    assert weights_and_optimizer(resumed) == weights_and_optimizer(auto)
    assert metrics_of(resumed) == metrics_of(auto)


def test_one_sample_that_does_not_fit_is_the_usual_error(
    tiny_world: Path, tmp_path: Path, holds: Callable[[int], None]
) -> None:
    holds(0)
    with pytest.raises(MemoryFullError, match=r"out of memory: CUDA out of memory. Tried to allocate 2.00 GiB. What"):
        train(tiny_recipe(tiny_world, tmp_path / "run", sampling__batch="auto", **SMALL))


def test_other_errors_are_not_taken_for_a_full_memory(
    tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: UNO, *given: Any) -> Tensor:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(UNO, "velocity", broken)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        train(tiny_recipe(tiny_world, tmp_path / "run", sampling__batch="auto", **SMALL))


def test_the_smallest_of_all_ranks_counts(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(parts, sampling__batch="auto")
    others = iter([True, True, False])  # out of memory on another rank with 6 and with 3
    asked: list[bool] = []

    def any_rank(_: Any, flag: bool) -> bool:
        asked.append(flag)
        return next(others)

    monkeypatch.setattr(autotune, "any_rank", any_rank)
    trainer.sample(0, *trainer.assignments(0)[0])
    assert trainer.parts.state.rollout_batch == 2
    assert asked == [False] * 3
    trainer.parts.state.rollout_batch = None
    monkeypatch.setattr(autotune, "any_rank", lambda *_: True)
    with pytest.raises(torch.OutOfMemoryError, match="another process is out of memory"):
        trainer.sample(0, *trainer.assignments(0)[0])


def test_the_room_of_the_moments_is_held_while_it_is_looked_for(
    tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They come with the first update, after the first rollout."""
    trainer = Trainer(build(tiny_recipe(tiny_world, tmp_path / "run", sampling__batch="auto", **SMALL)))
    held: list[int] = []
    real = torch.empty

    def empty(*size: Any, **how: Any) -> Tensor:
        if how.get("dtype") == torch.uint8:
            held.append(size[0])
        return real(*size, **how)

    monkeypatch.setattr(torch, "empty", empty)
    trainer.step(0)
    trained = sum(one.numel() for one in trainer.parts.parameters.values())
    moments = [
        value.nbytes
        for state in trainer.parts.optimizer.state.values()
        for name, value in state.items()
        if name != "step"
    ]
    assert held == [sum(moments)] == [8 * trained]


OFF = 1e-3
"""Of the velocity, relative."""


@pytest.fixture
def other_rollout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forwards without gradient are off by a fixed draw: code that was compiled for them alone."""
    real = UNO.velocity

    def velocity(self: UNO, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        found = real(self, x, sigma, cond)
        if torch.is_grad_enabled():
            return found
        draw = torch.randn(found.shape[1:], generator=torch.Generator().manual_seed(0))
        return found + OFF * found.abs().mean() * draw

    monkeypatch.setattr(UNO, "velocity", velocity)


TIGHT = SMALL | {"train__ratio_guard": 1e-7}


def test_a_rollout_that_computes_something_else_is_refused(
    tiny_world: Path, tmp_path: Path, other_rollout: None
) -> None:
    with pytest.raises(DivergedError, match=r"train.old_log_probs=replay"):
        train(tiny_recipe(tiny_world, tmp_path / "run", **TIGHT))


@pytest.mark.parametrize(("asked", "updates"), [("replay", 1), ("auto", 3)])
def test_recomputed_log_probabilities_make_the_first_ratio_exactly_one(
    tiny_world: Path,
    tmp_path: Path,
    other_rollout: None,
    capsys: pytest.CaptureFixture[str],
    asked: str,
    updates: int,
) -> None:
    changes = TIGHT | {"train__old_log_probs": asked, "train__updates_per_rollout": updates}
    train(tiny_recipe(tiny_world, tmp_path / "run", **changes))
    rows = metrics_of(tmp_path / "run")
    assert [row["ratio/max_abs_log_first"] for row in rows] == [0, 0]
    assert all(1e-7 < row["ratio/max_abs_log_rollout"] < 1 for row in rows), "what it hides is said"
    assert ("auto took the replay's" in capsys.readouterr().err) == (asked == "auto")
    assert trainer_state(tmp_path / "run", 1)["old_log_probs"] == ("replay" if asked == "auto" else None)


@pytest.mark.parametrize(("clip", "taken"), [(1e-4, "replay"), (10.0, "rollout")])
def test_a_rollout_outside_the_clip_range_is_not_trusted_whatever_the_guard(
    tiny_world: Path,
    tmp_path: Path,
    other_rollout: None,
    capsys: pytest.CaptureFixture[str],
    clip: float,
    taken: str,
) -> None:
    changes = SMALL | {"train__ratio_guard": 1.0, "train__old_log_probs": "auto", "objective__clip": clip}
    train(tiny_recipe(tiny_world, tmp_path / "run", **changes))
    assert f"auto took the {taken}'s" in capsys.readouterr().err


def test_a_rollout_within_the_guard_is_trusted_and_nothing_else_changes(
    tiny_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, auto = tmp_path / "plain", tmp_path / "auto"
    train(tiny_recipe(tiny_world, plain, train__updates_per_rollout=2, **SMALL))
    train(tiny_recipe(tiny_world, auto, train__updates_per_rollout=2, train__old_log_probs="auto", **SMALL))
    assert "auto took the rollout's: the two differ by at most" in capsys.readouterr().err
    assert trainer_state(auto, 2)["old_log_probs"] == "rollout"
    assert weights_and_optimizer(plain) == weights_and_optimizer(auto)
    assert metrics_of(plain) == metrics_of(auto)


def test_where_rollout_and_replay_agree_recomputing_changes_nothing(tiny_world: Path, tmp_path: Path) -> None:
    """One update of a rollout: the same batch, so the very numbers; three: other batches, so their rounding."""
    for updates in (1, 3):
        folders = [tmp_path / f"{name}-{updates}" for name in ("rollout", "replay")]
        for folder in folders:
            changes = {
                "train__old_log_probs": folder.name.split("-")[0],
                "train__updates_per_rollout": updates,
            }
            train(tiny_recipe(tiny_world, folder, **SMALL, **changes))
        one, other = (metrics_of(folder) for folder in folders)
        if updates == 1:
            assert weights_and_optimizer(folders[0]) == weights_and_optimizer(folders[1])
            assert one == other
        for before, after in zip(one, other, strict=True):
            assert after["grad/norm"] == pytest.approx(before["grad/norm"], rel=1e-4)


@pytest.mark.parametrize(
    ("asked", "updates", "first", "later"),
    [("rollout", 3, 3, 3), ("replay", 1, 3, 3), ("replay", 3, 5, 5), ("auto", 1, 6, 3)],
)
def test_forwards_that_recomputing_costs(
    parts: Parts, monkeypatch: pytest.MonkeyPatch, asked: str, updates: int, first: int, later: int
) -> None:
    """In thirds of the pairs: none for the share of the first update, and with auto all of them once."""
    counted: list[int] = []
    real = UNO.velocity

    def velocity(self: UNO, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        if torch.is_grad_enabled():
            counted.append(len(x))
        return real(self, x, sigma, cond)

    monkeypatch.setattr(UNO, "velocity", velocity)
    trainer = trainer_of(parts, train__old_log_probs=asked, train__updates_per_rollout=updates)
    groups = [trainer.sample(0, *trainer.assignments(0)[0])]
    advantages = [trainer.advantages_of(torch.arange(2.0 * G).view(G, 2).sin(), groups[0])]
    monkeypatch.setattr(Trainer, "optimize", lambda self: {})
    for thirds in (first, later):
        counted.clear()
        again = autotune.with_old(trainer.parts, groups, trainer.shares())
        for number, samples in enumerate(trainer.shares()):
            trainer.update(again, advantages, samples, first=number == 0)
        assert 3 * sum(counted) == thirds * groups[0].log_prob.numel()
    for one in parts.parameters.values():
        one.grad = None


def test_the_choice_is_kept(tiny_world: Path, tmp_path: Path, other_rollout: None) -> None:
    """A resumed run goes on as it began, although its rollout would now be trusted."""
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    changes = TIGHT | {"train__old_log_probs": "auto"}
    train(tiny_recipe(tiny_world, whole, **changes))
    shutil.copytree(whole, resumed)
    shutil.rmtree(resumed / "checkpoints" / "step-000002")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(autotune, "_decide", lambda *_: pytest.fail("decided again"))
        train(tiny_recipe(tiny_world, resumed, run__resume="latest", **changes))
    assert weights_and_optimizer(resumed) == weights_and_optimizer(whole)
    assert metrics_of(resumed) == metrics_of(whole)


def test_recomputed_values_are_the_replays_own_in_their_place(parts: Parts) -> None:
    """After the weights moved, so that no value is the rollout's."""
    trainer = trainer_of(parts, train__old_log_probs="replay")
    group = trainer.sample(0, *trainer.assignments(0)[0])
    weights = list(parts.parameters.values())
    before = [one.detach().clone() for one in weights]
    try:
        for one in weights:
            one.data.add_(0.05)
        (again,) = autotune.with_old(trainer.parts, [group], [range(2), range(2, 4), range(4, 6)])
        moved = (again.log_prob != group.log_prob).all(1).tolist()
        assert moved == [False, False, True, True, True, True]
        for g in range(2, G):
            (alone,) = autotune.with_old(trainer.parts, [group], [range(1), range(g, g + 1)])
            torch.testing.assert_close(alone.log_prob[g], again.log_prob[g], rtol=1e-5, atol=1e-6)
    finally:
        for one, old in zip(weights, before, strict=True):
            one.data.copy_(old)
