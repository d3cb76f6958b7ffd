"""Conformance kit: properties that every policy, reward, aggregator and objective must have, yours included.

Call it from your own tests; violations raise an ``AssertionError``. Dimensions: n batch, S latent tokens,
C channels, G group size, Q axes (prompt, identity, then further ones), K trained steps, H x W pixels.
"""

import asyncio
import inspect
from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from jaxtyping import UInt8
from PIL import Image as PILImage
from torch import Tensor

from customized_grpo.advantages.axes import with_further
from customized_grpo.advantages.shaping import Aggregator, asks_raw
from customized_grpo.objectives.base import Draw, Objective
from customized_grpo.policies.adapters.sharding import base_transformer
from customized_grpo.policies.adapters.tuning import reference
from customized_grpo.policies.base import Policy
from customized_grpo.registry import config_model
from customized_grpo.rewards.base import AnyReward, AsyncGroupReward, AsyncReward, Reward
from customized_grpo.rewards.function import reward_class
from customized_grpo.sampling.clock import Clock
from customized_grpo.types import Conditioning, Example

_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Tolerance, relative to the largest value, between batches of different size."""


def check_policy(policy: Policy, example: Example) -> None:
    """Check a loaded policy with an adapter, or unfrozen with ``keep_base`` (``tuning.attach``), on one example.

    Shapes and dtypes; the same result for the same input; a sample's velocity does not depend on the others of its
    batch; one sigma for all equals the same sigma per row; gradients reach every trained weight and nothing else;
    with the trained weights switched off the policy still runs; decode gives uint8 images on the CPU.

    Raises:
        AssertionError: names the violated property.
    """
    n, sigma = 4, torch.tensor(0.7, device=policy.device)
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(n, *policy.latent_shape, generator=draw).to(policy.device, policy.dtype)
    cond = policy.encode(example.prompt, example.references)
    for name, tensor in cond.tensors.items():
        assert tensor.shape[0] == 1, (
            f"conditioning {name!r} has shape {tuple(tensor.shape)}; its first dimension must be 1"
        )
        assert not tensor.requires_grad, f"conditioning {name!r} carries a gradient; encode under torch.no_grad"
        assert not tensor.is_inference(), f"conditioning {name!r} is an inference tensor; use torch.no_grad instead"
    again = policy.encode(example.prompt, example.references)
    for name, tensor in cond.tensors.items():
        assert torch.equal(tensor, again.tensors[name]), f"encoding twice gives another {name!r}"

    with torch.no_grad():
        whole = policy.velocity(x, sigma, cond)
        assert whole.shape == x.shape, f"velocity of x {tuple(x.shape)} has shape {tuple(whole.shape)}"
        assert whole.dtype == torch.float32, f"velocity must be float32, not {whole.dtype}"
        assert bool(whole.isfinite().all()), "velocity is not finite"
        assert torch.equal(whole, policy.velocity(x, sigma, cond)), "the same velocity twice differs (dropout, noise?)"
        kept = policy.prefill(cond)
        assert torch.equal(whole, policy.velocity(x, sigma, kept)), (
            "prefill changes the velocity: rollout and replay differ"
        )
        rows = policy.velocity(x, sigma.expand(n), cond)
        assert torch.equal(whole, rows), "one sigma per row, all equal, gives another velocity than one sigma for all"
        for size in (1, 2):
            parts = torch.cat([policy.velocity(part, sigma, cond) for part in torch.split(x, size)])
            _close(parts, whole, policy.dtype, f"velocity in batches of {size} differs from a batch of {n}")
        spread = torch.linspace(0.2, 1.0, n, device=policy.device)
        mixed = policy.velocity(x, spread, cond)
        alone = torch.cat([policy.velocity(x[i : i + 1], spread[i], cond) for i in range(n)])
        _close(mixed, alone, policy.dtype, "samples at their own sigma differ from the same samples alone")
        assert not torch.equal(mixed, whole), "velocity does not depend on sigma"

    _check_gradient(policy, x, whole, lambda: policy.velocity(x, sigma, cond))
    with torch.no_grad(), reference(policy):
        assert bool(policy.velocity(x, sigma, cond).isfinite().all()), "without its training the velocity is not finite"
    with torch.no_grad():
        assert torch.equal(whole, policy.velocity(x, sigma, cond)), "tuning.reference did not restore what is trained"

    images = policy.decode(x)
    assert images.dtype == torch.uint8, f"decode must give uint8, not {images.dtype}"
    assert images.device.type == "cpu", f"decode must give images on the CPU, not on {images.device}"
    assert images.ndim == 4, f"decode must give (n, h, w, 3), not {tuple(images.shape)}"
    assert images.shape[::3] == (n, 3), f"decode must give (n, h, w, 3), not {tuple(images.shape)}"
    assert torch.equal(images, policy.decode(x)), "decoding twice differs"


def _check_gradient(policy: Policy, x: Tensor, expected: Tensor, velocity: Callable[[], Tensor]) -> None:
    named = dict(base_transformer(policy).named_parameters())
    trained = [name for name, parameter in named.items() if parameter.requires_grad]
    assert trained, "nothing is trained; attach an adapter first (policies.adapters.tuning.attach)"
    adapter = [name for name in trained if ".lora_" in name]
    assert not adapter or adapter == trained, "weights other than the adapter's would be trained"
    kept = {name: named[name].grad for name in trained}
    output = velocity()
    assert torch.equal(output, expected), "velocity with gradients differs from velocity without: the ratio is not 1"
    for name in trained:
        named[name].grad = None
    output.square().mean().backward()
    for name in trained:
        grad = named[name].grad
        assert grad is not None, f"no gradient reaches {name}; data-parallel training would wait for it"
        assert bool(grad.isfinite().all()), f"the gradient of {name} is not finite"
    # B starts at zero, so A's gradient is zero at first: only the sum is sure to be non-zero.
    total = sum(float(named[name].grad.abs().sum()) for name in trained)
    assert total > 0, "all gradients are zero"
    for name in trained:
        named[name].grad = kept[name]


def check_reward(
    reward: AnyReward | Callable[..., Any],
    example: Example,
    images: UInt8[Tensor, "g h w 3"],
    *,
    pairwise: bool = False,
) -> None:
    """Check a reward, or a plain reward function ``f(example, images)``, on a group of at least 3 different images.

    Shape, float32 and CPU; the same scores twice; scores follow their images in a permutation; inputs are not
    modified; and a local reward gives an image the same score alone as in the group, up to rounding, unless it is
    ``pairwise``: made to compare the images of a group. NaN (unscorable) is allowed, infinity is not.

    Raises:
        AssertionError: names the violated property.
    """
    if inspect.isfunction(reward):
        kind: Any = reward_class(reward)
        reward = kind(kind.Config(type="function"), device=torch.device("cpu"))
    assert isinstance(reward, AnyReward), (
        f"{reward!r} is not a reward: give a Reward, AsyncReward, AsyncGroupReward or a function f(example, images)"
    )
    group = images.shape[0]
    assert group >= 3, f"give at least 3 images, not {group}"
    before, references = images.clone(), [image.tobytes() for image in example.references]
    scores = _score(reward, example, images)
    assert scores.shape == (group,), f"{group} images must give {group} scores, not shape {tuple(scores.shape)}"
    assert scores.dtype == torch.float32, f"scores must be float32, not {scores.dtype}"
    assert scores.device.type == "cpu", f"scores must be on the CPU, not on {scores.device}"
    assert not scores.requires_grad, "scores carry a gradient; score under torch.no_grad"
    assert not bool(scores.isinf().any()), f"infinite scores: {scores.tolist()}; unscorable is NaN"
    assert torch.equal(images, before), "the reward changed the images it was given"
    assert [image.tobytes() for image in example.references] == references, "the reward changed the references"
    again = _score(reward, example, images)
    assert torch.allclose(scores, again, rtol=0, atol=0, equal_nan=True), "scoring twice differs"
    order = torch.arange(group).roll(1)
    moved = _score(reward, example, images[order])
    assert torch.allclose(moved, scores[order], rtol=1e-4, atol=1e-5, equal_nan=True), (
        f"scores do not follow their images: {scores[order].tolist()} expected after a permutation, "
        f"{moved.tolist()} given"
    )
    if isinstance(reward, Reward) and not pairwise:
        alone = torch.cat([_score(reward, example, image[None]) for image in images])
        assert torch.allclose(alone, scores, rtol=1e-3, atol=1e-4, equal_nan=True), (
            f"scores depend on what else is in the group: {scores.tolist()} together, {alone.tolist()} one by "
            "one; pass pairwise=True if it compares them on purpose"
        )


def _score(reward: AnyReward, example: Example, images: Tensor) -> Tensor:
    if isinstance(reward, Reward):
        return reward(example, images)
    pictures = [PILImage.fromarray(image.numpy()) for image in images]

    async def one_by_one(judge: AsyncReward) -> list[float]:
        return [await judge(example, picture) for picture in pictures]

    async def together(server: AsyncGroupReward) -> list[float]:
        return [float(score) for score in await server(example, pictures)]

    scores = one_by_one(reward) if isinstance(reward, AsyncReward) else together(reward)
    return torch.tensor(asyncio.run(scores))


def check_aggregator(
    aggregator: Aggregator,
    *,
    num_axes: int = 2,
) -> None:
    """Check an aggregator ``(a[G,Q], w[K,Q]) -> [G,K]``, its own parameters bound, for Q = ``num_axes``.

    Shape and float32; finite for every sign pattern, also at the clip and if the axes cancel; advantages follow their
    samples in a permutation; a group without advantages (all rewards equal) gets exact zeros; inputs are not modified.
    One that takes ``raw`` is given the axes' rewards, too, with a NaN among them where the advantage is 0.

    Raises:
        AssertionError: names the violated property.
    """
    if inspect.isfunction(aggregator):
        config_model("aggregators", aggregator)  # refuses what no recipe could fill
    w = torch.tensor([[0.7, 0.3], [0.5, 0.5], [0.2, 0.8]])
    w = with_further(w, [1 / num_axes] * (num_axes - 2))
    values = (-5.0, -1.0, -1e-6, 0.0, 1e-6, 1.0, 5.0) if num_axes == 2 else (-5.0, -1e-6, 0.0, 1.0)
    a = torch.tensor(list(product(values, repeat=num_axes)))
    given, weights = a.clone(), w.clone()

    def joined(advantages: Tensor) -> Tensor:
        if not asks_raw(aggregator):
            return aggregator(advantages, w)
        return aggregator(advantages, w, raw=torch.where(advantages == 0, torch.nan, 0.5 + 0.1 * advantages))

    result = joined(a)
    assert result.shape == (len(a), len(w)), (
        f"a {tuple(a.shape)}, w {tuple(w.shape)} give {tuple(result.shape)}, not (G, K)"
    )
    assert result.dtype == torch.float32, f"advantages must be float32, not {result.dtype}"
    bad = [tuple(a[i].tolist()) for i in (~result.isfinite()).any(dim=1).nonzero().flatten().tolist()]
    assert not bad, f"not finite for (prompt, identity, ...) = {bad[:5]}"
    assert torch.equal(a, given), "the aggregator changed the advantages it was given"
    assert torch.equal(w, weights), "the aggregator changed the weights it was given"
    order = torch.randperm(len(a), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        joined(a[order]),
        result[order],
        rtol=1e-4,
        atol=1e-5,
        msg="advantages do not follow their samples",
    )
    for first in range(len(a) - 1):
        group = a[first : first + 2]
        assert bool(joined(group).isfinite().all()), f"not finite in a small group: {group.tolist()}"
    zero = joined(torch.zeros(4, num_axes))
    assert torch.equal(zero, torch.zeros(4, 3)), f"a group without advantages must get zeros, not {zero.tolist()}"


def _close(given: Tensor, expected: Tensor, dtype: torch.dtype, message: str) -> None:
    difference = float((given - expected).abs().max() / expected.abs().max())
    allowed = _TOLERANCE[dtype]
    assert difference <= allowed, f"{message}: by {difference:.1e} of the largest value; allowed is {allowed:.0e}"


def check_objective(objective: Objective, example: Example, cond: Conditioning) -> None:
    """Check an objective on one group of one example, with the weights as they are.

    Draws are those of their place, whatever was drawn before; the loss is finite and does not depend on the pairs'
    order; a zero advantage has no gradient where the weights are those that sampled; others have one. A supervised
    objective, whose example has targets, doesn't look at advantages, and its pairs are those of whole examples.

    Raises:
        AssertionError: names the violated property.
    """
    policy = objective.policy
    draw, clock = Draw(0, 0, 0), Clock(policy.device)
    group, again = (objective.sample(example, cond, draw, clock=clock, batch=None) for _ in range(2))
    size, levels = len(group.images), len(group.progress)
    taught = objective.recipe.objective.targets
    asked = taught or objective.recipe.train.group_size
    assert size == asked, f"{size} images, where {asked} are asked for"
    assert torch.equal(group.images, again.images), "the same draw gives other images"
    assert torch.equal(group.progress, again.progress), "the same draw gives other levels"
    assert bool((group.progress >= 0).all()), "a level is before the grid"
    assert bool((group.progress <= objective.recipe.sampling.steps - 1).all()), "a level is beyond the grid's last step"
    weight = objective.level_weights(group)
    assert weight.shape == (levels,), f"weights of {levels} levels have shape {tuple(weight.shape)}"
    assert objective.sensitivity.shape == (objective.recipe.sampling.steps,), "sensitivity is one number for each step"
    g = torch.arange(size, device=policy.device).repeat(levels)
    k = torch.arange(levels, device=policy.device).repeat_interleave(size)
    advantage = torch.linspace(-1, 1, len(g), device=policy.device)
    trained = [one for one in base_transformer(policy).parameters() if one.requires_grad]

    def gradient(order: Tensor, scale: float) -> Tensor:
        pairs = group.pairs(g[order], k[order], scale * advantage[order], weight[k[order]])
        found = objective.loss(pairs, on_policy=True)
        assert found.loss.shape == (), "the loss must be a mean over the pairs"
        assert bool(found.loss.isfinite()), "the loss is not finite"
        grads = torch.autograd.grad(found.loss, trained, allow_unused=True)
        return torch.cat([one.flatten() for one in grads if one is not None])

    in_order = torch.arange(len(g), device=policy.device)
    plain = gradient(in_order, 1.0)
    assert bool(plain.isfinite().all()), "the gradient is not finite"
    assert bool(plain.any()), "no gradient reaches the weights"
    assert taught or not bool(gradient(in_order, 0.0).any()), "a zero advantage has a gradient"
    turned = gradient(in_order.view(-1, taught or 1).flip(0).flatten(), 1.0)
    assert float((turned - plain).norm() / plain.norm()) < 1e-3, "the gradient depends on the pairs' order"
