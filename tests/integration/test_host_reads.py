"""No step of a rollout and no micro-batch of a replay waits for the device: a look at a value would, and an upload.

On a CPU there is nothing to wait for, so the operators that would are refused: what reads a value (``item``,
``nonzero``, a boolean mask), and what makes a tensor of Python numbers, which a GPU's tensor is then copied from.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from customized_grpo.objectives.base import load_objective
from customized_grpo.policies.checkpointing import checkpoint_blocks
from customized_grpo.policies.flux import UNO
from customized_grpo.recipe.drawn import size_of
from customized_grpo.sampling.clock import Clock
from customized_grpo.training.parts import Parts
from customized_grpo.training.setup import build
from customized_grpo.training.trainer import Trainer
from pipeline_cases import CASES, PROMPT, adapted, pictures, shrink_constants
from runs import tiny_recipe

WAITS = {
    "aten::_local_scalar_dense",  # item, float, bool, int, tolist of one value, a Python branch on a tensor
    "aten::nonzero",  # a boolean mask as an index
    "aten::masked_select",
    "aten::_unique2",
    "aten::equal",
    "aten::repeat_interleave",  # by a tensor of counts; by a number it is another operator
    "aten::lift_fresh",  # torch.tensor: made on the CPU, then copied
}


MASKED = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
TO_HOST = {Tensor.cpu, Tensor.numpy, Tensor.tolist, Tensor.item, torch.allclose, Tensor.allclose}
"""On a CPU these reach no operator that could be told from another."""


class NoOperatorWaits(TorchDispatchMode):
    """Raises at every operator that a GPU would have to be waited for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().split(".")[0]
        masked = name in MASKED and any(one is not None and one.dtype == torch.bool for one in args[1])
        if name in WAITS or masked:
            raise AssertionError(f"{name} waits for the device")
        return func(*args, **(kwargs or {}))


class NothingToTheHost(TorchFunctionMode):
    """Raises at every function that brings values to the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in TO_HOST:
            raise AssertionError(f"{func.__name__} waits for the device")
        return func(*args, **(kwargs or {}))


@contextmanager
def no_host_reads() -> Iterator[None]:
    with NoOperatorWaits(), NothingToTheHost():
        yield


@pytest.mark.parametrize(
    "look",
    [
        lambda x: x[x > 0],
        lambda x: x.masked_fill_(x > 0, 1.0)[x > 0],
        lambda x: x.cpu(),
        lambda x: x.numpy(),
        lambda x: x.tolist(),
        lambda x: float(x.sum()),
        lambda x: bool((x > 0).any()),
        lambda x: torch.allclose(x, x),
        lambda x: torch.equal(x, x),
        lambda x: x.repeat_interleave(torch.ones(3, dtype=torch.long)),
        lambda x: x.nonzero(),
        lambda x: torch.where(x > 0),
        lambda x: x + torch.tensor([1.0, 2.0, 3.0]),
    ],
)
def test_every_look_is_found(look: Callable[[Tensor], Any]) -> None:
    x = torch.randn(3)
    with no_host_reads(), pytest.raises(AssertionError, match="waits for the device"):
        look(x)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Watches the phases ``rollout`` and ``replay`` of every clock, and notes them."""
    seen: list[str] = []
    real = Clock.phase

    @contextmanager
    def phase(self: Clock, name: str) -> Iterator[None]:
        with real(self, name):
            if name not in ("rollout", "replay"):
                yield
                return
            seen.append(name)
            with no_host_reads():
                yield

    monkeypatch.setattr(Clock, "phase", phase)
    return seen


@pytest.fixture(scope="module")
def parts(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return build(recipe(tiny_world, tmp_path_factory.mktemp("host") / "run"))


def recipe(world: Path, folder: Path, **changes: Any) -> Any:
    return tiny_recipe(world, folder, **{"train__groups_per_step": 1, "sampling__steps": 6, **changes})


def trainer_of(parts: Parts, **changes: Any) -> Trainer:
    made = recipe(Path(parts.recipe.policy.model).parent, parts.folder, **changes)
    return Trainer(
        replace(parts, recipe=made, objectives={size_of(made.policy): load_objective(made, parts.policy, parts.sigmas)})
    )


WINDOW = {"type": "window", "width": 2, "every": 1}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sampling__dynamics": {"type": "flow_sde"}},
        {"sampling__dynamics": {"type": "cps"}},
        {"sampling__plan": {**WINDOW, "solver": "dpm_solver_2m"}},
        {"sampling__plan": {"type": "branch"}, "sampling__batch": 1},
        {"train__updates_per_rollout": 2, "train__microbatch": 3, "train__old_log_probs": "replay"},
        {"objective": {"type": "nft", "step_weighting": "equal"}, "train__updates_per_rollout": 2},
        {"objective": {"type": "awm", "kl": 0.1, "levels": {"draw": "stratified"}}},
        {"objective": {"ratio": "guard"}, "train__updates_per_rollout": 2},
        {"objective": {"ratio": "dppo"}},
        {"objective__kl": 0.01},
    ],
    ids=[
        "as it is",
        "flow_sde",
        "cps",
        "window, solver",
        "branch, one by one",
        "recomputed",
        "nft",
        "awm",
        "guard",
        "dppo",
        "KL",
    ],
)
def test_a_step_reads_nothing_of_the_device(parts: Parts, watched: list[str], changes: dict[str, Any]) -> None:
    trainer = trainer_of(parts, **changes)
    trainer.step(1)
    assert set(watched) == {"rollout", "replay"}


def test_a_look_into_the_loop_is_found(parts: Parts, watched: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The control, in both phases and in the backward pass."""
    real = UNO.velocity
    trainer = trainer_of(parts)

    def looking(grad: bool) -> Any:
        def velocity(self: UNO, x: Tensor, sigma: Tensor, cond: Any) -> Tensor:
            found = real(self, x, sigma, cond)
            if torch.is_grad_enabled() == grad and found.abs().max() > 0:  # a branch on a value
                return found
            return found

        return velocity

    for grad, phase in ((False, "rollout"), (True, "replay")):
        watched.clear()
        with monkeypatch.context() as patched:
            patched.setattr(UNO, "velocity", looking(grad))
            with pytest.raises(AssertionError, match="_local_scalar_dense waits"):
                trainer.step(0)
        assert watched[-1] == phase

    def backward_looks(self: UNO, x: Tensor, sigma: Tensor, cond: Any) -> Tensor:
        found = real(self, x, sigma, cond)
        if found.requires_grad:
            found.register_hook(lambda gradient: gradient * float(gradient.abs().max() >= 0))
        return found

    monkeypatch.setattr(UNO, "velocity", backward_looks)
    with pytest.raises(AssertionError, match="_local_scalar_dense waits"):
        trainer.step(0)
    for one in parts.parameters.values():
        one.grad = None


@pytest.mark.parametrize("name", ["flux2", "klein", "qwen-2509"])
def test_other_policies_forwards_read_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_constants(monkeypatch)
    case = CASES[name]
    policy = adapted(case.load(case.make(tmp_path / name, **case.options), torch.float32))
    checkpoint_blocks(policy.transformer, 0.5)
    cond = policy.encode(PROMPT, pictures()[:1])
    x, sigma = torch.zeros(2, *policy.latent_shape), torch.tensor([0.5, 0.7])
    with no_host_reads():
        policy.velocity(x, sigma, cond).sum().backward()
