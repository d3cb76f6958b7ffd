"""The first replay gives the rollout's log-probabilities back, and each is weighted by the step it was made at.

Dimensions: G = 4 samples, K trained steps.
"""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from customized_grpo.advantages.aggregators import sars
from customized_grpo.advantages.normalize import normalize
from customized_grpo.objectives import grpo as module
from customized_grpo.objectives.grpo import GRPO
from customized_grpo.sampling.dynamics import log_prob
from customized_grpo.sampling.rollout import transition_noise
from customized_grpo.sampling.schedule import shifted_sigmas
from customized_grpo.training.faults import DivergedError, check_replay
from customized_grpo.training.parts import Parts
from customized_grpo.training.replay import Pairs, micro_batches, replay
from customized_grpo.training.setup import build
from customized_grpo.training.trainer import Trainer
from customized_grpo.types import Trajectory
from runs import tiny_recipe

from .conftest import Finished

G = 4


@pytest.fixture(scope="module", params=["no", "bf16"])
def trained(
    request: pytest.FixtureRequest,
    tiny_world: Path,
    finished: Finished,
    tmp_path_factory: pytest.TempPathFactory,
) -> Trainer:
    """With an adapter that has learnt something: a new one is zero and proves little."""
    changes = {
        "run__precision": request.param,
        "policy__lora": {"rank": 4, "path": str(finished.folder)},
        "train__group_size": G,
    }
    return Trainer(build(tiny_recipe(tiny_world, tmp_path_factory.mktemp("run") / "run", **changes)))


def grpo_of(parts: Parts) -> GRPO:
    assert isinstance(parts.objective, GRPO)
    return parts.objective


def rollout(trainer: Trainer, step: int = 3) -> Trajectory:
    group, index = trainer.assignments(step)[0]
    sampled = trainer.sample(step, group, index)
    assert isinstance(sampled, Trajectory)
    return sampled


def largest_log_ratio(trainer: Trainer, group: Trajectory, microbatch: int) -> float:
    parts, nothing = trainer.parts, torch.zeros_like(group.log_prob)
    ratios = [
        replay(parts.policy, grpo_of(parts).transition, pairs)[0].detach() - pairs.log_prob
        for pairs in micro_batches([group], [nothing], range(G), microbatch)
    ]
    return float(torch.cat(ratios).abs().max())


def scored_before_rounding(trainer: Trainer, step: int) -> Trajectory:
    """A rollout's states, but with the probabilities of the float32 states that they were rounded from."""
    group, parts, sampling = rollout(trainer, step), trainer.parts, trainer.recipe.sampling
    place = {"seed": trainer.recipe.run.seed, "step": step, "group": trainer.assignments(step)[0][0]}
    stochastic = grpo_of(parts).plan.steps(step, sampling.steps, trainer.recipe.run.seed, place["group"]).stochastic
    draws = transition_noise(parts.policy.latent_shape, G, len(stochastic), **place)
    scores = []
    with torch.no_grad():
        for column, k in enumerate(group.steps.tolist()):
            x, sigma, sigma_next = group.x[:, column], group.sigmas[k], group.sigmas[k + 1]
            velocity = parts.policy.velocity(x, sigma, group.cond)
            gaussian = grpo_of(parts).transition(velocity, x.float(), sigma, sigma_next, sigma_max=group.sigmas[1])
            x_next = gaussian.mean + gaussian.std * draws[:, stochastic.index(k)]
            assert torch.equal(x_next.to(group.x.dtype), group.x_next[:, column])
            scores.append(log_prob(x_next, gaussian))
    return dataclasses.replace(group, log_prob=torch.stack(scores, dim=1))


def test_the_first_replay_is_exact(trained: Trainer) -> None:
    group = rollout(trained)
    assert largest_log_ratio(trained, group, G) == 0
    if trained.parts.policy.dtype == torch.float32:
        for microbatch in (1, 3, 100):
            assert largest_log_ratio(trained, group, microbatch) < 1e-6


def test_scoring_before_rounding_would_not_be(trained: Trainer) -> None:
    groups = [scored_before_rounding(trained, step) for step in range(8)]
    wrong = max(largest_log_ratio(trained, group, G) for group in groups)
    if trained.parts.policy.dtype == torch.float32:
        assert wrong == 0  # nothing is rounded
        return
    assert wrong > 1e-4
    with pytest.raises(DivergedError, match=r"first replay's largest \|log-ratio\|"):
        check_replay(wrong, trained.recipe.train.ratio_guard)


def test_gradient_checkpointing_changes_nothing(trained: Trainer) -> None:
    group = rollout(trained)
    transformer: Any = trained.parts.policy.transformer
    parameters = list(trained.parts.parameters.values())

    def gradient() -> Tensor:
        pairs = next(micro_batches([group], [torch.ones_like(group.log_prob)], range(G), G))
        new, _ = replay(trained.parts.policy, grpo_of(trained.parts).transition, pairs)
        return torch.cat([one.flatten() for one in torch.autograd.grad(new.sum(), parameters)])

    plain = gradient()
    transformer.enable_gradient_checkpointing()
    try:
        assert largest_log_ratio(trained, group, G) == 0
        if trained.parts.policy.dtype == torch.float32:
            assert largest_log_ratio(trained, group, 1) < 1e-6
        assert torch.equal(gradient(), plain)
    finally:
        transformer.disable_gradient_checkpointing()
    assert plain.abs().max() > 0


def published(k: Tensor) -> Tensor:
    """The paper's weights at T = 25, (prompt, identity) a row."""
    prompt = 0.3 + 0.4 * (1 - torch.sigmoid(0.8 * (k.double() - 10)))
    prompt = torch.where(k < 6, 0.7, torch.where(k >= 22, 0.5, prompt))
    return torch.stack([prompt, 1 - prompt], dim=1).float()


@pytest.mark.parametrize("shuffled", [False, True], ids=["as it is", "control"])
def test_the_time_weight_is_that_of_the_replayed_step(
    tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shuffled: bool
) -> None:
    recipe = tiny_recipe(tiny_world, tmp_path / "run", sampling__steps=25, train__groups_per_step=1)
    trainer = Trainer(build(recipe))
    rewards: list[Tensor] = []
    replayed: list[Pairs] = []
    real = Trainer.advantages_of

    def spy(self: Trainer, scores: Tensor, group: Trajectory) -> Any:
        rewards.append(scores)
        if shuffled:  # rows of other steps than those that the states belong to
            group = dataclasses.replace(group, steps=group.steps.flip(0))
        return real(self, scores, group)

    def spy_replay(policy: Any, transition: Any, pairs: Pairs) -> Any:
        replayed.append(pairs)
        return replay(policy, transition, pairs)

    monkeypatch.setattr(Trainer, "advantages_of", spy)
    monkeypatch.setattr(module, "replay", spy_replay)
    metrics = trainer.step(0)

    grid = shifted_sigmas(25, 3.0)
    steps, right = [], []
    for pairs in replayed:
        k = (pairs.sigma[:, None] == grid).int().argmax(1)  # found by the sigma that the replay ran at
        assert len(k.unique()) == 1
        expected = sars(normalize(rewards[0]), published(k[:1]), gamma=0.4)[:, 0]
        steps.append(int(k[0]))
        right.append(torch.allclose(pairs.advantage, expected, atol=1e-5))
    assert len(set(steps)) == 14  # 0.6 of the 24 trainable
    assert min(steps) < 6
    assert max(steps) >= 10
    assert metrics["ratio/max_abs_log_first"] == 0  # so each sigma is the one that the states were made at
    assert all(right) != shuffled
