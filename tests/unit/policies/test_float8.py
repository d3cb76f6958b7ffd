"""Rollouts in float8: how far a velocity moves, that the trained forward is untouched, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from customized_grpo.policies import float8
from customized_grpo.policies.float8 import Float8Products, quantized
from customized_grpo.training.engine_limits import Engine, check
from customized_grpo.training.setup import build
from customized_grpo.training.trainer import Trainer
from pipeline_cases import PROMPT, adapted, pictures
from runs import make_tiny_world, tiny_recipe
from tiny import make_tiny_flux, tiny_policy


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_world(tmp_path_factory.mktemp("world"))


def policy_of(folder: Path, dtype: torch.dtype = torch.bfloat16) -> Any:
    """A tiny FLUX with an adapter that counts."""
    return adapted(tiny_policy(make_tiny_flux(folder), dtype))


def velocity(policy: Any) -> Tensor:
    x = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(1)).to(policy.dtype)
    with torch.no_grad():
        found: Tensor = policy.velocity(x, torch.tensor(0.7), policy.encode(PROMPT, pictures()[:1]))
    return found


def test_a_row_keeps_its_largest_value_and_a_row_of_zeros_is_zero() -> None:
    rows = torch.randn(5, 64, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1e-6], [1], [1e3], [0], [9]])
    values, scale = quantized(rows)
    back = values.float() * scale
    torch.testing.assert_close(back.abs().amax(1), rows.abs().amax(1))
    assert (back - rows).norm(dim=1).le(0.04 * rows.norm(dim=1)).all()


def test_inside_every_product_is_in_float8_and_afterwards_all_is_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, calls = policy_of(tmp_path / "flux"), []
    plain, products = velocity(policy), Float8Products(policy)
    multiply = torch._scaled_mm
    monkeypatch.setattr(torch, "_scaled_mm", lambda *a, **k: calls.append(a[0].dtype) or multiply(*a, **k))
    with products.over():
        moved = velocity(policy)
    linear = [m for b in (*policy.transformer.transformer_blocks, *policy.transformer.single_transformer_blocks)
              for n, m in b.named_modules() if type(m) is nn.Linear and ".lora_" not in n]  # fmt: skip
    assert len(calls) == len(linear)
    assert 0.001 < float((moved - plain).norm() / plain.norm()) < 0.1
    assert torch.equal(velocity(policy), plain)
    with pytest.raises(KeyboardInterrupt), products.over():
        raise KeyboardInterrupt
    assert torch.equal(velocity(policy), plain)


def test_only_rollouts_are_in_float8(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the same run whose products are those of bfloat16: other images, and no product within a gradient."""
    multiply, with_gradient = torch._scaled_mm, []

    def watched(*args: Any, **kwargs: Any) -> Tensor:
        with_gradient.append(torch.is_grad_enabled())
        return multiply(*args, **kwargs)

    monkeypatch.setattr(torch, "_scaled_mm", watched)
    images = []
    for eight in (False, True):
        changes = {"objective": {"type": "nft"}, "run__precision": "bf16", "sampling__float8": eight}
        recipe = tiny_recipe(world, tmp_path / str(eight), **changes)
        trainer = Trainer(build(recipe))
        images.append(trainer.sample(0, 0, 0).images.float())
        assert trainer.step(0)["grad/norm"] > 0
    assert not any(with_gradient)
    assert len(with_gradient) > 0
    assert 0 < float((images[0] - images[1]).abs().mean()) < 20


def test_what_can_not_be_in_float8_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nft = {"objective": {"type": "nft"}, "run__precision": "bf16", "sampling__float8": True}
    for changes, message in (
        ({"objective": {}}, r"sampling.float8: objective.type grpo compares its loss's forward with the rollout's"),
        ({"run__precision": "no"}, r"sampling.float8: run.precision=no asks for float32; use one of the two"),
        ({"policy__quantization": "8bit"}, r"sampling.float8: policy.quantization=8bit has other weights"),
        ({"policy__compile": True}, r"sampling.float8: policy.compile makes code"),
    ):
        with pytest.raises(ValidationError, match=message):
            tiny_recipe(tmp_path, tmp_path, **(nft | changes))
    with pytest.raises(ValueError, match=r"sampling.float8: it keeps the base's weights a second time, whole"):
        check(Engine.FSDP2, tiny_recipe(tmp_path, tmp_path, **nft))
    with pytest.raises(ValueError, match=r"sampling.float8: no linear layer of the blocks is in half precision"):
        Float8Products(policy_of(tmp_path / "flux", torch.float32))
    policy = policy_of(tmp_path / "other")
    policy.device = torch.device("cuda")
    monkeypatch.setattr(float8.torch.cuda, "get_device_capability", lambda _: (8, 0))
    monkeypatch.setattr(float8.torch.cuda, "get_device_name", lambda _: "NVIDIA A100")
    with pytest.raises(ValueError, match=r"sampling.float8: NVIDIA A100 multiplies no float8"):
        Float8Products(policy)
