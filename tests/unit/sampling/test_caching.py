"""Caches in a rollout: what they skip, that nothing is left of them, and that no forward reuses another's.

Dimensions: n samples, T sampler steps, S latent tokens, C latent channels.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from customized_grpo import load_policy, load_recipe, registry
from customized_grpo.memory.estimate import Tokens, cache_bytes
from customized_grpo.policies.base import Policy
from customized_grpo.policies.checkpointing import repeated_blocks
from customized_grpo.recipe.keys import Cache
from customized_grpo.sampling.caching import RolloutCache
from customized_grpo.sampling.clock import Clock
from customized_grpo.sampling.dynamics import cps
from customized_grpo.sampling.rollout import Noisy, initial_noise, sample_final, transition_noise
from customized_grpo.sampling.schedule import StepPlan, shifted_sigmas
from customized_grpo.sampling.solver import SolverName
from customized_grpo.types import Conditioning
from pipeline_cases import CASES, PROMPT, adapted, noise, pictures, shrink_constants
from tiny import make_tiny_flux, tiny_kontext, tiny_policy
from toy_policy import ToyPolicy

T = 8
SIGMAS = shifted_sigmas(T, 3.0)
NEVER = {"first_block": {"threshold": 1e-30}, "taylorseer": {"warmup": T}}
SOME: dict[str, dict[str, Any]] = {"first_block": {"threshold": 10.0}, "taylorseer": {"warmup": 2, "interval": 3}}
COMPUTED = (0, 1, 3, 6)
"""Steps of ``SOME``'s taylorseer, as diffusers counts: the warm-up, and from the second after it every third."""


def _mini() -> Policy:
    return load_policy(load_recipe("mini_nft", ["run.device=cpu"]))


def _flux(folder: Path) -> Policy:
    return tiny_policy(make_tiny_flux(folder))


def _kontext(folder: Path) -> Policy:
    return tiny_kontext(make_tiny_flux(folder, kontext=True))


def _case(name: str) -> Callable[[Path], Policy]:
    return lambda folder: CASES[name].load(CASES[name].make(folder, **CASES[name].options))


MODELS: dict[str, Callable[[Path], Policy]] = {
    "mini": lambda folder: _mini(),
    "uno": _flux,
    "uno, checkpointed": lambda folder: tiny_policy(make_tiny_flux(folder), gradient_checkpointing=True),
    "flux-kontext": _kontext,
    **{name: _case(name) for name in CASES if name not in ("flux3", "flux3-distilled", "qwen-2.1")},
}
GUIDED = ("klein-base", "qwen-2509", "qwen-2511")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Policy, Conditioning]]:
    """Every policy with an adapter that counts, and one conditioning with a reference."""
    with pytest.MonkeyPatch.context() as patch:
        shrink_constants(patch)
        found = {}
        for name, make in MODELS.items():
            policy = adapted(make(tmp_path_factory.mktemp(name)))
            found[name] = policy, policy.encode(PROMPT, pictures()[:1])
        return found


FUSED = ("flux2", "klein-base", "klein", "klein-kv")
"""FLUX.2's last blocks have one sequence, which first_block doesn't expect."""
PAIRS = [(name, kind) for name in MODELS for kind in NEVER if kind == "taylorseer" or name not in FUSED]


def test_every_declared_cache_is_tried_and_no_other(models: dict[str, tuple[Policy, Conditioning]]) -> None:
    for name, (policy, _) in models.items():
        section: Any = policy.config  # type: ignore[attr-defined]
        assert tuple(kind for kind in NEVER if (name, kind) in PAIRS) == section.caches, name
    for left_out in ("flux3-klein", "qwen-image-2.1"):
        assert registry.resolve("policies", left_out).Config.caches == ()


def cache_of(policy: Policy, kind: str, options: dict[str, dict[str, Any]]) -> RolloutCache:
    return RolloutCache(Cache.model_validate({"type": kind, **options[kind]}), policy)


def drawn(
    policy: Policy,
    cond: Conditioning,
    cache: RolloutCache | None = None,
    *,
    x: Tensor | None = None,
    by: SolverName | Noisy = "euler",
    batch: int | None = None,
) -> Tensor:
    start = noise(policy, 3) if x is None else x
    clock = Clock(torch.device("cpu"))
    return sample_final(policy, cond, sigmas=SIGMAS, noise=start, by=by, clock=clock, batch=batch, cache=cache)[0]


def trained(policy: Policy, cond: Conditioning) -> list[Tensor]:
    """A forward with gradient, and the gradient of every trained parameter."""
    velocity = policy.velocity(noise(policy, 2, seed=5), SIGMAS[2:4], cond)
    weights = [one for one in policy.transformer.parameters() if one.requires_grad]
    grads = torch.autograd.grad(velocity.square().sum(), weights, allow_unused=True)
    return [velocity.detach(), *(one for one in grads if one is not None)]


def hooks_of(model: nn.Module) -> list[int]:
    return [len(one._forward_pre_hooks) + len(one._forward_hooks) for one in model.modules()]


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_a_cache_that_never_skips_changes_no_bit(models: Any, name: str, kind: str) -> None:
    policy, cond = models[name]
    cache = cache_of(policy, kind, NEVER)
    assert torch.equal(drawn(policy, cond, cache), drawn(policy, cond))
    assert cache.drain() == {"rollout/blocks_run": 1.0}


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_a_cache_skips_blocks_and_moves_the_samples(models: Any, name: str, kind: str) -> None:
    policy, cond = models[name]
    cache, blocks = cache_of(policy, kind, SOME), len(repeated_blocks(policy.transformer))
    found, plain = drawn(policy, cond, cache), drawn(policy, cond)
    # of first_block the first step is whole, and of the others the first block alone runs
    expected = len(COMPUTED) / T if kind == "taylorseer" else (blocks + T - 1) / (blocks * T)
    assert cache.drain()["rollout/blocks_run"] == pytest.approx(expected)
    assert found.isfinite().all()
    assert 1e-3 < (found - plain).norm() / plain.norm() < 1


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_nothing_of_a_cache_is_left_after_a_rollout(models: Any, name: str, kind: str) -> None:
    policy, cond = models[name]
    before, hooks = trained(policy, cond), hooks_of(policy.transformer)
    drawn(policy, cond, cache_of(policy, kind, SOME))
    assert hooks_of(policy.transformer) == hooks
    assert not policy.transformer.is_cache_enabled
    after = trained(policy, cond)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_a_group_never_sees_the_one_before(models: Any, name: str, kind: str) -> None:
    policy, cond = models[name]
    cache = cache_of(policy, kind, SOME)
    first = drawn(policy, cond, cache)
    other = drawn(policy, cond, cache, x=noise(policy, 4, seed=9))
    assert other.shape[0] == 4
    assert torch.equal(drawn(policy, cond, cache), first)
    assert torch.equal(drawn(policy, cond, cache_of(policy, kind, SOME)), first)


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_parts_of_a_batch_keep_to_themselves(models: Any, name: str, kind: str) -> None:
    policy, cond = models[name]
    x = noise(policy, 3)
    parts = drawn(policy, cond, cache_of(policy, kind, SOME), x=x, batch=2)
    alone = [drawn(policy, cond, cache_of(policy, kind, SOME), x=part) for part in x.split(2)]
    assert torch.equal(parts, torch.cat(alone))


def extrapolated(values: Sequence[Tensor | None], at: int, order: int) -> Tensor:
    """The Taylor series of diffusers at step ``at``: differences of the newest computed steps, by their distances."""
    done = [k for k in range(at) if values[k] is not None]
    factors: list[Tensor] = []
    for k in done:
        new, distance = [values[k]], k - done[done.index(k) - 1]
        for j in range(min(order, len(factors))):
            new.append((new[j] - factors[j]) / distance)  # type: ignore[operator]
        factors = new  # type: ignore[assignment]
    return sum(one * (at - done[-1]) ** j / math.factorial(j) for j, one in enumerate(factors))  # type: ignore[return-value]


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("name", ["uno", "flux2", "klein-base", "qwen-2511"])
def test_taylorseer_extrapolates_each_forwards_output(models: Any, name: str, order: int) -> None:
    policy, cond = models[name]
    outputs: dict[str, list[Tensor | None]] = {}
    branches = ["text", "negative"] if name in GUIDED else ["text"]

    def branch(x: Tensor, sigma: Tensor, which: str) -> Tensor:
        only = {key: one for key, one in cond.tensors.items() if key != "negative"}
        return policy.velocity(x, sigma, Conditioning(only | {"text": cond.tensors[which]}))

    x = noise(policy, 3)
    with torch.no_grad():
        for k in range(T):
            kept = {which: outputs.setdefault(which, []) for which in branches}
            now = {
                which: branch(x, SIGMAS[k], which) if k in COMPUTED else extrapolated(kept[which], k, order)
                for which in branches
            }
            for which in branches:
                kept[which].append(now[which] if k in COMPUTED else None)
            v = now["text"]
            if name in GUIDED:
                v = now["negative"] + policy.config.guidance * (now["text"] - now["negative"])
                if name.startswith("qwen"):
                    v = v * now["text"].norm(dim=-1, keepdim=True) / v.norm(dim=-1, keepdim=True)
            x = x + (SIGMAS[k + 1] - SIGMAS[k]) * v
    found = drawn(policy, cond, cache_of(policy, "taylorseer", {"taylorseer": SOME["taylorseer"] | {"order": order}}))
    torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", NEVER)
@pytest.mark.parametrize("name", ["mini", "qwen-2509"])
def test_noise_on_the_way_may_begin_with_one_sample_for_all(models: Any, name: str, kind: str) -> None:
    policy, cond = models[name]
    plan = StepPlan(T, (3, 5), (3, 5))
    where = {"seed": 0, "step": 0, "group": 0}
    x = initial_noise(policy.latent_shape, 3, shared=True, **where)
    by = Noisy(plan=plan, transition=cps, draws=transition_noise(policy.latent_shape, 3, 2, **where), shared_noise=True)
    whole = drawn(policy, cond, cache_of(policy, kind, NEVER), x=x, by=by)
    assert torch.equal(whole, drawn(policy, cond, x=x, by=by))
    found = drawn(policy, cond, cache_of(policy, kind, SOME), x=x, by=by)
    assert not torch.equal(found, whole)
    assert len({float(one.sum()) for one in found}) == 3


def test_the_computed_steps_are_those_of_diffusers(models: Any) -> None:
    policy, cond = models["uno"]
    for options in ({}, {"warmup": 1, "interval": 2}, {"warmup": 2, "interval": 5}, {"warmup": 7}):
        cache = Cache.model_validate({"type": "taylorseer", **options})
        drawn(policy, cond, counting := RolloutCache(cache, policy))
        steps = cache.computed_steps(T)
        assert steps is not None
        assert counting.drain()["rollout/blocks_run"] == pytest.approx(len(steps) / T)
    assert Cache.model_validate({"type": "taylorseer", **SOME["taylorseer"]}).computed_steps(T) == list(COMPUTED)
    assert Cache(type="first_block").computed_steps(T) is None


def kept_bytes(model: nn.Module) -> int:
    """Bytes of all tensors in the states of diffusers' hooks, each once."""
    found: dict[int, int] = {}

    def walk(value: Any) -> None:
        if isinstance(value, Tensor):
            found[value.data_ptr()] = value.nbytes
        elif isinstance(value, dict | list | tuple):
            for one in value.values() if isinstance(value, dict) else value:
                walk(one)
        elif type(value).__module__.startswith("diffusers.hooks") and type(value).__name__.endswith("State"):
            walk(vars(value))

    for module in model.modules():
        for hook in vars(module)["_diffusers_hook"].hooks.values() if "_diffusers_hook" in vars(module) else ():
            for manager in vars(hook).values():
                if type(manager).__name__ == "StateManager":
                    walk(manager._state_cache)
    return sum(found.values())


@pytest.mark.parametrize(("name", "kind"), [pair for pair in PAIRS if pair[0] in ("uno", "klein-base", "qwen-2509")])
def test_what_a_cache_keeps_is_estimated(models: Any, name: str, kind: str) -> None:
    policy, cond = models[name]
    cache = cache_of(policy, kind, SOME)
    with torch.no_grad(), cache.over(lambda x, sigma: policy.velocity(x, sigma, cond)) as velocity:
        for k in range(5):
            velocity(noise(policy, 3), SIGMAS[k])
        kept = kept_bytes(policy.transformer)
    tokens = Tokens(
        image=policy.latent_shape[0] + cond.tensors["references"].shape[1], text=cond.tensors["text"].shape[1]
    )
    width = policy.transformer.config.num_attention_heads * policy.transformer.config.attention_head_dim
    sizes = {"width": width, "channels": policy.latent_shape[1], "n": 3 * (1 + (name in GUIDED)), "b": 4}
    estimated = cache_bytes(Cache.model_validate({"type": kind, **SOME[kind]}), tokens, **sizes)
    assert kept == pytest.approx(estimated, rel=0.1)  # the empty prompt of guidance may be shorter


def test_an_error_in_a_rollout_leaves_nothing_behind(models: Any) -> None:
    policy, cond = models["uno"]
    cache, hooks = cache_of(policy, "first_block", SOME), hooks_of(policy.transformer)
    with (
        pytest.raises(RuntimeError),
        torch.no_grad(),
        cache.over(lambda x, s: policy.velocity(x[..., 1:], s, cond)) as v,
    ):
        v(noise(policy, 2), SIGMAS[0])
    assert hooks_of(policy.transformer) == hooks
    assert drawn(policy, cond, cache).isfinite().all()


def test_a_transformer_without_caches_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sampling\.cache: .* has none of diffusers' caches"):
        RolloutCache(Cache(type="first_block"), ToyPolicy())
