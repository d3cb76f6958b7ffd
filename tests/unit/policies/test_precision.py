"""Casts within blocks: each input is cast once with the same bits, and norms may stay in half precision."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from customized_grpo.policies.acceleration import apply
from customized_grpo.policies.adapters import tuning
from customized_grpo.policies.precision import cast_once, half_norms
from customized_grpo.recipe.config import Recipe
from gpu_autocast import as_on_a_gpu
from pipeline_cases import CASES, PROMPT, adapted, pictures, shrink_constants
from runs import tiny_dict
from tiny import make_tiny_flux, tiny_policy

CPU = torch.device("cpu")


@pytest.fixture(params=["uno", *sorted(CASES)])
def policy(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    shrink_constants(monkeypatch)
    if request.param == "uno":
        made = tiny_policy(make_tiny_flux(tmp_path / "model"), dtype=torch.bfloat16)
    else:
        case = CASES[request.param]
        made = case.load(case.make(tmp_path / "model", **case.options), torch.bfloat16)
    return adapted(made)


def outcome(policy: Any) -> tuple[Tensor, Tensor]:
    """Velocity, and the adapter's gradient."""
    cond = policy.encode(PROMPT, pictures()[:1])
    x = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(1)).to(policy.dtype)
    with as_on_a_gpu():
        velocity = policy.velocity(x, torch.tensor(0.7), cond)
        velocity.square().mean().backward()
    weights = tuning.trainable_parameters(policy).values()
    gradient = torch.cat([one.grad.flatten() for one in weights if one.grad is not None])
    for one in weights:
        one.grad = None
    return velocity.detach(), gradient


def test_inputs_that_are_cast_once_give_the_same_bits_and_the_gradient_to_rounding(policy: Any) -> None:
    velocity, gradient = outcome(policy)
    cast_once(policy.transformer)
    once, of_once = outcome(policy)
    assert torch.equal(once, velocity)
    assert (of_once - gradient).norm() < 0.01 * gradient.norm()
    assert gradient.norm() > 0


def test_norms_in_half_precision_are_as_near_to_float32_as_before(policy: Any) -> None:
    velocity, gradient = outcome(policy)
    dtypes = set()
    norms = [one for one in policy.transformer.modules() if isinstance(one, torch.nn.LayerNorm | torch.nn.RMSNorm)]
    for one in norms:
        one.register_forward_hook(lambda module, given, out: dtypes.add(out.dtype))
    outcome(policy)
    assert torch.float32 in dtypes
    half_norms(policy.transformer)
    dtypes.clear()
    half, of_half = outcome(policy)
    assert torch.bfloat16 in dtypes
    assert (half - velocity).norm() < 0.02 * velocity.norm()
    assert (of_half - gradient).norm() < 0.05 * gradient.norm()


def test_a_recipe_asks_for_half_norms_only_in_half_precision(tmp_path: Path) -> None:
    given = tiny_dict(tmp_path, tmp_path / "run", policy__norms="half")
    with pytest.raises(ValidationError, match=r"policy.norms: half is half precision, and run.precision=no"):
        Recipe.model_validate(given)
    given["run"]["precision"] = "bf16"
    assert Recipe.model_validate(given).policy.norms == "half"


def test_apply_spares_casts_always_and_float32_norms_where_asked(tmp_path: Path) -> None:
    for norms, dtype in (("float32", torch.float32), ("half", torch.bfloat16)):
        policy = tiny_policy(make_tiny_flux(tmp_path / norms), dtype=torch.bfloat16)
        apply(policy.transformer, CPU, quantization="none", attention=None, norms=norms, compile_blocks=False)  # type: ignore[arg-type]
        block, seen = policy.transformer.transformer_blocks[0], dict[str, torch.dtype]()
        block.norm2.register_forward_hook(lambda module, given, out, seen=seen: seen.update(norm=out.dtype))
        block.ff.net[0].register_forward_pre_hook(lambda module, given, seen=seen: seen.update(ff=given[0].dtype))
        cond = policy.encode(PROMPT, pictures()[:1])
        with as_on_a_gpu():
            policy.velocity(torch.zeros(1, *policy.latent_shape, dtype=policy.dtype), torch.tensor(0.7), cond)
        assert seen == {"norm": dtype, "ff": torch.bfloat16}
