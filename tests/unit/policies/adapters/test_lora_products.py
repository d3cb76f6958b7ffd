"""A LoRA layer as one operator: its gradient, its distance to peft's form, its FLOPs, and where peft's own stays."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from customized_grpo.policies import balance
from customized_grpo.policies.adapters import lora_products, tuning
from customized_grpo.policies.adapters.lora_products import lora_product
from customized_grpo.recipe.sections import LoraSettings
from pipeline_cases import PROMPT, pictures
from tiny import make_tiny_flux, tiny_policy


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_flux(tmp_path_factory.mktemp("model") / "flux")


def trained(folder: Path, dtype: torch.dtype, *, balanced: bool = False) -> Any:
    policy = tiny_policy(folder, dtype)
    section = policy.config.model_copy(update={"lora": LoraSettings(rank=4, alpha=6.0, balance=balanced)})
    tuning.attach(policy, section, 0)
    draw = torch.Generator().manual_seed(3)
    for one in tuning.trainable_parameters(policy).values():
        one.data = torch.randn(one.shape, generator=draw) * 0.3
    return policy


def without(policy: Any) -> Any:
    """The same policy with peft's own form."""
    for layer in policy.transformer.modules():
        if isinstance(layer, Linear):
            layer.__dict__.pop("forward", None)
    return policy


def outcome(policy: Any, b: float | None = None) -> tuple[Tensor, Tensor]:
    """Velocity, and the adapter's gradient."""
    cond = policy.encode(PROMPT, pictures()[:1])
    if b is not None:
        cond = balance.at(cond, b, policy.device)
    x = torch.randn(3, *policy.latent_shape, generator=torch.Generator().manual_seed(1)).to(policy.dtype)
    velocity = policy.velocity(x, torch.tensor(0.7), cond)
    velocity.square().mean().backward()
    weights = tuning.trainable_parameters(policy).values()
    gradient = torch.cat([one.grad.flatten() for one in weights if one.grad is not None])
    return velocity.detach(), gradient


def test_its_gradient_is_that_of_its_formula() -> None:
    draw = torch.Generator().manual_seed(0)
    x, weight, bias, inner, factor = (
        torch.randn(shape, generator=draw, dtype=torch.float64)
        for shape in ((2, 3, 5), (7, 5), (7,), (2, 3, 4), (7, 4))
    )
    expected = x @ weight.T + bias + 1.5 * inner @ factor.T
    torch.testing.assert_close(lora_product(x, weight, bias, inner, factor, 1.5), expected)
    torch.testing.assert_close(lora_product(x, weight, None, inner, factor, 1.5), expected - bias)
    given = tuple(one.requires_grad_() for one in (x, inner, factor))
    assert torch.autograd.gradcheck(lambda a, z, b: lora_product(a, weight, bias, z, b, 1.5), given)
    torch.library.opcheck(lora_product, (x, weight, bias, inner, factor, 1.5))


@pytest.mark.parametrize("b", [None, -0.6])
def test_in_half_precision_it_is_as_near_to_float32_as_pefts_own(folder: Path, b: float | None) -> None:
    true = outcome(trained(folder, torch.float32, balanced=b is not None), b)
    own = outcome(without(trained(folder, torch.bfloat16, balanced=b is not None)), b)
    joined = outcome(trained(folder, torch.bfloat16, balanced=b is not None), b)
    for exact, of_peft, found in zip(true, own, joined, strict=True):
        assert not torch.equal(found, of_peft)  # it was used
        assert (found - exact).norm() < 1.5 * (of_peft - exact).norm()  # 1.22 on one processor, and below 1 on another


def test_in_float32_the_bits_are_pefts(folder: Path) -> None:
    own, joined = outcome(without(trained(folder, torch.float32))), outcome(trained(folder, torch.float32))
    assert all(torch.equal(one, other) for one, other in zip(own, joined, strict=True))


def test_torch_counts_the_same_flops(folder: Path) -> None:
    counts = []
    for policy in (without(trained(folder, torch.bfloat16)), trained(folder, torch.bfloat16)):
        with FlopCounterMode(display=False) as counter:
            outcome(policy)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_an_adapter_that_is_off_or_one_of_two_is_pefts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora_products, "lora_product", lambda *_: pytest.fail("it is for one active adapter"))
    policy = trained(folder, torch.bfloat16)
    with tuning.reference(policy):
        cond = policy.encode(PROMPT, [])
        policy.velocity(torch.zeros(1, *policy.latent_shape, dtype=policy.dtype), torch.tensor(0.7), cond)
