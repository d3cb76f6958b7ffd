"""What is computed together on a FLUX is what is computed one by one, and compiled blocks are the plain ones.

The table in docs/performance.md names these tests and those of the other optimisations.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from customized_grpo.objectives import grpo as module
from customized_grpo.objectives.base import load_objective
from customized_grpo.policies.base import load_policy
from customized_grpo.recipe.drawn import size_of
from customized_grpo.training.parts import Parts
from customized_grpo.training.setup import build
from customized_grpo.training.trainer import Trainer
from customized_grpo.types import Trajectory
from runs import tiny_recipe

G = 4
ROUNDING: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}
"""Of a float32 chain of six steps in another order of adding."""


@pytest.fixture(scope="module")
def parts(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return build(tiny_recipe(tiny_world, tmp_path_factory.mktemp("plain") / "run", sampling__steps=6))


def rollout(parts: Parts, **changes: Any) -> Trajectory:
    made = tiny_recipe(Path(parts.recipe.policy.model).parent, parts.folder, sampling__steps=6, **changes)
    trainer = Trainer(
        replace(parts, recipe=made, objectives={size_of(made.policy): load_objective(made, parts.policy, parts.sigmas)})
    )
    sampled = trainer.sample(3, *trainer.assignments(3)[0])
    assert isinstance(sampled, Trajectory)
    return sampled


def assert_same(one: Trajectory, other: Trajectory) -> None:
    for name in ("x", "x_next", "log_prob"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), **ROUNDING)
    assert (one.images.int() - other.images.int()).abs().max() <= 1
    assert one.x.std() > 0.1


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("plan", ["all", "window"])
def test_a_group_at_once_is_its_samples_one_by_one(parts: Parts, batch: int, plan: str) -> None:
    kind: dict[str, Any] = {"type": plan} | ({"width": 2, "every": 1} if plan == "window" else {})
    assert_same(rollout(parts, sampling__plan=kind), rollout(parts, sampling__plan=kind, sampling__batch=batch))


def test_a_shared_prefix_is_each_samples_own(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sample from the same noise on its own way, as if it weren't shared: the path that the plan can't shorten."""
    window = {"sampling__plan": {"type": "window", "width": 1, "every": 1}}
    sizes: list[int] = []
    policy = type(parts.policy)
    real, sample = policy.velocity, module.sample_group

    def velocity(self: Any, x: Any, *given: Any) -> Any:
        sizes.append(len(x))
        return real(self, x, *given)

    monkeypatch.setattr(policy, "velocity", velocity)
    shared = rollout(parts, **window)
    assert sizes == [1, 1, 1, G, G, G]
    sizes.clear()
    monkeypatch.setattr(module, "sample_group", lambda *given, **how: sample(*given, **(how | {"shared_noise": False})))
    own = rollout(parts, **window)
    assert sizes == [G] * 6
    assert_same(shared, own)


def test_images_decoded_together_are_those_decoded_alone(parts: Parts) -> None:
    policy = parts.policy
    x = torch.randn(6, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    alone = torch.cat([policy.decode(one) for one in x.split(1)])
    assert (policy.decode(x).int() - alone.int()).abs().max() <= 1, "a rounding of a half"
    assert alone.float().std() > 1


@pytest.mark.filterwarnings("ignore")  # of torch's own compiler
def test_compiled_blocks_are_the_plain_ones_in_both_phases(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the shapes of a rollout, a shared prefix and a replay; traced for both passes, without making C++ of it."""
    real = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **how: real(self, backend="aot_eager", **how))
    spec = parts.recipe.policy
    device = torch.device("cpu")
    plain = load_policy(spec, device=device, precision="no")
    compiled = load_policy(spec.model_copy(update={"compile": True}), device=device, precision="no")
    cond = parts.encode(parts.dataset[0])
    torch.compiler.reset()
    before = counters["stats"]["unique_graphs"]
    for n in (G, 1):
        x = torch.randn(n, *plain.latent_shape, generator=torch.Generator().manual_seed(n))
        outputs, gradients = [], []
        for policy in (plain, compiled):
            with torch.no_grad():
                rolled = policy.velocity(x, torch.tensor(0.7), cond)
            given = x.clone().requires_grad_()
            found = policy.velocity(given, torch.tensor(0.7), cond)
            (gradient,) = torch.autograd.grad(found.square().sum(), given)
            outputs += [rolled, found.detach()]
            gradients.append(gradient)
        for other in outputs[1:]:
            torch.testing.assert_close(other, outputs[0], **ROUNDING)
        torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-4)
    assert counters["stats"]["unique_graphs"] - before >= 8, "nothing was compiled"
