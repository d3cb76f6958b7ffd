"""Selective checkpointing: the first blocks, as many as asked for, are computed again; no gradient changes by a bit."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from customized_grpo.policies.checkpointing import checkpoint_blocks, num_checkpointed, repeated_blocks
from customized_grpo.policies.flux import UNOConfig
from customized_grpo.sampling.clock import Clock
from customized_grpo.sampling.dynamics import dance_sde
from customized_grpo.sampling.rollout import initial_noise, sample_group, transition_noise
from customized_grpo.sampling.schedule import StepPlan, shifted_sigmas
from customized_grpo.training.replay import micro_batches, replay
from customized_grpo.types import Example, Trajectory
from pipeline_cases import CASES, PROMPT, adapted, pictures, shrink_constants
from tiny import make_tiny_flux, tiny_policy

SHARES = (0.0, 0.5, 1.0)
SDE = dance_sde
G = 3


def flux(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """Two blocks of each kind."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = FluxTransformer2DModel(
            in_channels=64, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=4,
            joint_attention_dim=32, pooled_projection_dim=32, guidance_embeds=True, axes_dims_rope=(4, 6, 6),
        )  # fmt: skip
    return tiny_policy(make_tiny_flux(folder, transformer=transformer), dtype)


def of_case(name: str) -> Callable[[Path], Any]:
    return lambda folder: CASES[name].load(CASES[name].make(folder, **CASES[name].options), torch.float32)


@pytest.fixture(scope="module", params=["uno", "klein", "qwen-2509"])
def policy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    make = flux if request.param == "uno" else of_case(request.param)
    with pytest.MonkeyPatch.context() as patched:
        shrink_constants(patched)
        made = adapted(make(tmp_path_factory.mktemp("model") / request.param))
        made.given = made.encode(PROMPT, pictures()[:1])
        yield made


def rollout(policy: Any) -> Trajectory:
    place = {"seed": 0, "step": 0, "group": 0}
    return sample_group(
        policy,
        Example(key="1", prompt=PROMPT, references=pictures()[:1]),
        policy.given,
        sigmas=shifted_sigmas(4, 3.0),
        plan=StepPlan(4, (0, 1, 2), (1, 2)),
        transition=SDE,
        noise=initial_noise(policy.latent_shape, G, shared=True, **place),
        draws=transition_noise(policy.latent_shape, G, 3, **place),
        shared_noise=True,
        clock=Clock(policy.device),
    )


def replayed(policy: Any, group: Trajectory) -> tuple[Tensor, Tensor]:
    """Log-ratios of a first replay, and the gradient of all its pairs."""
    pairs = list(micro_batches([group], [torch.ones_like(group.log_prob)], range(G), G))
    ratios = []
    for one in pairs:
        new, _ = replay(policy, SDE, one)
        ratios.append((new - one.log_prob).detach())
        new.sum().backward()
    weights = [one for one in policy.transformer.parameters() if one.grad is not None]
    gradient = torch.cat([one.grad.flatten() for one in weights if one.grad is not None])
    for one in weights:
        one.grad = None
    return torch.cat(ratios), gradient


def test_gradients_and_first_ratio_are_the_same_bits_at_every_share(policy: Any) -> None:
    group, gradients = rollout(policy), []
    for share in SHARES:
        checkpoint_blocks(policy.transformer, share)
        ratios, gradient = replayed(policy, group)
        assert not ratios.any()
        gradients.append(gradient)
    assert gradients[0].abs().max() > 0
    assert all(torch.equal(gradients[0], one) for one in gradients[1:])


def test_the_first_blocks_are_computed_again_and_no_other(policy: Any) -> None:
    group, blocks = rollout(policy), repeated_blocks(policy.transformer)
    counts: dict[str, int] = {}

    def counting(name: str) -> Callable[..., None]:
        def count(*_: Any) -> None:
            counts[name] = counts.get(name, 0) + 1

        return count

    handles = [block.register_forward_pre_hook(counting(name)) for name, block in blocks]
    checkpoint_blocks(policy.transformer, 0.0)
    replayed(policy, group)
    once = dict(counts)
    assert len(set(once.values())) == 1
    for share in SHARES:
        counts.clear()
        checkpoint_blocks(policy.transformer, share)
        replayed(policy, group)
        twice = [name for name, _ in blocks if counts[name] == 2 * once[name]]
        assert twice == [name for name, _ in blocks][: num_checkpointed(share, len(blocks))]
        assert all(counts[name] == once[name] for name, _ in blocks if name not in twice)
    for handle in handles:
        handle.remove()


def test_blocks_are_listed_in_the_order_of_the_forward(policy: Any) -> None:
    seen: list[str] = []
    blocks = repeated_blocks(policy.transformer)
    handles = [block.register_forward_pre_hook(lambda *_, name=name: seen.append(name)) for name, block in blocks]
    with torch.no_grad():
        policy.velocity(torch.zeros(1, *policy.latent_shape), torch.tensor(0.5), policy.given)
    for handle in handles:
        handle.remove()
    assert seen[: len(blocks)] == [name for name, _ in blocks]
    assert len(blocks) >= 2


@pytest.mark.parametrize(("share", "again"), [(False, 0), (0.5, 2), (0.6, 3), (True, 4)])
def test_the_recipe_says_how_many(tmp_path: Path, share: float, again: int) -> None:
    folder = flux(tmp_path / "flux").pipeline.config._name_or_path
    policy = tiny_policy(Path(folder), gradient_checkpointing=share)
    blocks = [block for _, block in repeated_blocks(policy.transformer)]
    calls: list[nn.Module] = []
    for block in blocks:
        block.register_forward_pre_hook(lambda module, _: calls.append(module))
    x = torch.zeros(1, *policy.latent_shape, requires_grad=True)
    policy.velocity(x, torch.tensor(0.5), policy.encode(PROMPT, ())).sum().backward()
    assert [calls.count(block) for block in blocks] == [2] * again + [1] * (4 - again)


def test_a_model_without_names_for_its_blocks() -> None:
    class Plain(FluxTransformer2DModel):
        _repeated_blocks: list[str] = []  # noqa: RUF012 - diffusers has it so

    with torch.device("meta"):
        model = Plain(num_layers=1, num_single_layers=1)
    with pytest.raises(ValueError, match=r"policy.gradient_checkpointing: given 0.5, but Plain names no .* true or"):
        checkpoint_blocks(model, 0.5)
    checkpoint_blocks(model, 1.0)
    assert model.is_gradient_checkpointing


@pytest.mark.parametrize("share", [-0.1, 1.5, 2, "half"])
def test_what_is_no_share_is_refused(share: Any) -> None:
    with pytest.raises(ValidationError, match="gradient_checkpointing"):
        UNOConfig(model="x", gradient_checkpointing=share)


@pytest.mark.parametrize("share", [True, False, 0.3, 0, 1])
def test_what_is_a_share(share: Any) -> None:
    assert UNOConfig(model="x", gradient_checkpointing=share).gradient_checkpointing == share


@given(share=st.floats(0, 1), num_blocks=st.integers(1, 60))
def test_never_fewer_than_asked_for(share: float, num_blocks: int) -> None:
    found = num_checkpointed(share, num_blocks)
    assert share * num_blocks - 1e-6 <= found < share * num_blocks + 1
    assert 0 <= found <= num_blocks


def test_tenths_are_exact() -> None:
    assert [num_checkpointed(tenth / 10, 10) for tenth in range(11)] == list(range(11))


def live_bytes(policy: Any, group: Trajectory) -> int:
    """Bytes of the storages that a forward made and that are still held after it, by autograd or a checkpoint."""
    made: dict[int, tuple[Any, int]] = {}

    class Made(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            for one in tree_leaves(out):
                if isinstance(one, Tensor):
                    storage = one.untyped_storage()
                    made[storage.data_ptr()] = (StorageWeakRef(storage), storage.nbytes())
            return out

    pairs = next(micro_batches([group], [torch.ones_like(group.log_prob)], range(G), G))
    with Made():
        held, _ = replay(policy, SDE, pairs)
    assert held.requires_grad
    return sum(size for storage, size in made.values() if not storage.expired())


def test_cheap_operators_alone_are_computed_again_with_the_same_bits(policy: Any) -> None:
    group, found = rollout(policy), {}
    for share, recompute in ((0.0, "all"), (1.0, "cheap"), (0.5, "cheap"), (1.0, "all")):
        checkpoint_blocks(policy.transformer, share, recompute)  # type: ignore[arg-type]
        counts: Counter[str] = Counter()

        class Count(TorchDispatchMode):
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                counts[func._opname] += 1  # noqa: B023 (used in this turn of the loop alone)
                return func(*args, **(kwargs or {}))

        with Count():
            ratios, gradient = replayed(policy, group)
        assert not ratios.any()
        products = sum(number for name, number in counts.items() if name in ("mm", "addmm") or "attention" in name)
        found[share, recompute] = gradient, products, counts["native_layer_norm"]
    nothing, cheap, half, everything = found.values()
    assert all(torch.equal(nothing[0], one[0]) for one in (cheap, half, everything))
    assert nothing[1] == cheap[1] == half[1] < everything[1]  # no product is made twice
    assert nothing[2] < half[2] < cheap[2]  # the norms are


def test_in_half_precision_less_is_stored_the_more_is_recomputed(tmp_path: Path) -> None:
    policy = adapted(flux(tmp_path / "model", torch.bfloat16))
    policy.given = policy.encode(PROMPT, pictures()[:1])
    group, found = rollout(policy), {}
    for share, recompute in ((1.0, "all"), (1.0, "cheap"), (0.5, "cheap"), (0.0, "all")):
        checkpoint_blocks(policy.transformer, share, recompute)  # type: ignore[arg-type]
        found[share, recompute] = live_bytes(policy, group)
    assert sorted(set(found.values())) == list(found.values())


def test_a_recipe_says_what_is_recomputed_only_where_something_is(tmp_path: Path) -> None:
    given = {"model": "somewhere", "recompute": "cheap"}
    with pytest.raises(ValidationError, match=r"gradient_checkpointing is off, so nothing is recomputed"):
        UNOConfig.model_validate(given)
    with pytest.raises(ValidationError, match=r"compile: true makes one piece of code"):
        UNOConfig.model_validate(given | {"gradient_checkpointing": True, "compile": True})
    assert UNOConfig.model_validate(given | {"gradient_checkpointing": 0.5}).recompute == "cheap"
