"""The conformance kit finds what is wrong: each broken plug-in fails with the sentence that says why."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from customized_grpo.policies.adapters.lora import attach, trainable_parameters
from customized_grpo.policies.base import LoraSettings, Policy, PolicyConfig
from customized_grpo.rewards.base import AsyncGroupReward, AsyncReward, Reward, RewardConfig
from customized_grpo.testing import check_aggregator, check_policy, check_reward
from customized_grpo.types import Conditioning, Example
from tiny import make_tiny_flux, tiny_policy

Velocity = Callable[[Policy, Tensor, Tensor, Conditioning], Tensor]
EXAMPLE = Example(key="1", prompt="a red cube", references=(Image.linear_gradient("L").convert("RGB"),))
IMAGES = torch.arange(4 * 8 * 8 * 3).reshape(4, 8, 8, 3).remainder(251).to(torch.uint8)


class Altered(Policy):
    """A good policy with one method replaced."""

    Config = PolicyConfig

    def __init__(
        self,
        inner: Policy,
        *,
        velocity: Velocity = lambda inner, x, sigma, cond: inner.velocity(x, sigma, cond),
        decode: Callable[[Policy, Tensor], Tensor] = lambda inner, x: inner.decode(x),
        cond: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    ) -> None:
        self.inner, self._velocity, self._decode, self._cond = inner, velocity, decode, cond
        self.transformer, self.latent_shape = inner.transformer, inner.latent_shape
        self.device, self.dtype = inner.device, inner.dtype

    @classmethod
    def load(cls, config: Any, *, device: torch.device, dtype: torch.dtype) -> Self:
        raise AssertionError("built from another policy")

    def encode(self, prompt: str, references: Sequence[Image.Image]) -> Conditioning:
        tensors = self.inner.encode(prompt, references).tensors
        return Conditioning({name: self._cond(tensor) for name, tensor in tensors.items()})

    def velocity(self, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        return self._velocity(self.inner, x, sigma, cond)

    def decode(self, x: Tensor) -> Tensor:
        return self._decode(self.inner, x)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_flux(tmp_path_factory.mktemp("flux"))


@pytest.fixture
def policy(folder: Path) -> Policy:
    policy = tiny_policy(folder)
    attach(policy, LoraSettings(rank=2), seed=0)
    return policy


def test_a_wrapper_that_changes_nothing_passes(policy: Policy) -> None:
    check_policy(Altered(policy), EXAMPLE)


def mixing(inner: Policy, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
    return inner.velocity(x, sigma, cond) + 1e-3 * x.float().mean(dim=0)


def first_sigma(inner: Policy, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
    return inner.velocity(x, sigma.reshape(-1)[0], cond)


def other_in_training(inner: Policy, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
    return inner.velocity(x, sigma, cond) * (1.0 + 1e-6 * torch.is_grad_enabled())


def noisy(inner: Policy, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
    return inner.velocity(x, sigma, cond) + 1e-4 * torch.randn(x.shape)


def detached(inner: Policy, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
    return inner.velocity(x, sigma, cond).detach() + 0.0 * sum(p.sum() for p in trainable_parameters(inner).values())


@pytest.mark.parametrize(
    ("velocity", "message"),
    [
        (lambda p, x, s, c: p.velocity(x, s, c)[:, 1:], "velocity of x"),
        (lambda p, x, s, c: p.velocity(x, s, c).bfloat16(), "must be float32"),
        (lambda p, x, s, c: p.velocity(x, s, c) / 0, "not finite"),
        (noisy, "twice differs"),
        (mixing, "velocity in batches of 1 differs"),
        (first_sigma, "at their own sigma"),
        (lambda p, x, s, c: p.velocity(x, torch.tensor(0.5), c), "does not depend on sigma"),
        (lambda p, x, s, c: p.velocity(x, s, c) * (1 + 0.1 * s.ndim), "one sigma per row"),
        (other_in_training, "the ratio is not 1"),
        (detached, "all gradients are zero"),
    ],
)
def test_broken_velocities_are_found(policy: Policy, velocity: Velocity, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_policy(Altered(policy, velocity=velocity), EXAMPLE)


def test_a_prefill_that_is_no_mere_saving_is_found(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    def halved(self: Policy, cond: Conditioning) -> Conditioning:
        return Conditioning({name: tensor / 2 for name, tensor in cond.tensors.items()})

    monkeypatch.setattr(Altered, "prefill", halved)
    with pytest.raises(AssertionError, match="prefill changes the velocity"):
        check_policy(Altered(policy), EXAMPLE)


@pytest.mark.parametrize(
    ("decode", "message"),
    [
        (lambda p, x: p.decode(x).float(), "must give uint8"),
        (lambda p, x: p.decode(x).permute(0, 3, 1, 2), r"\(n, h, w, 3\)"),
        (lambda p, x: p.decode(x) + (torch.rand(1) * 250).byte(), "decoding twice differs"),
    ],
)
def test_broken_decoders_are_found(policy: Policy, decode: Callable[[Policy, Tensor], Tensor], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_policy(Altered(policy, decode=decode), EXAMPLE)


@pytest.mark.parametrize(
    ("cond", "message"),
    [
        (lambda t: t.repeat_interleave(2, 0), "first dimension must be 1"),
        (lambda t: t.clone().requires_grad_(), "carries a gradient"),
        (lambda t: t + torch.rand(1), "encoding twice"),
    ],
)
def test_broken_encoders_are_found(policy: Policy, cond: Callable[[Tensor], Tensor], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_policy(Altered(policy, cond=cond), EXAMPLE)


def test_a_policy_without_an_adapter_is_found(folder: Path) -> None:
    policy = tiny_policy(folder)
    with pytest.raises(AssertionError, match="attach an adapter first"):
        check_policy(policy, EXAMPLE)


def test_unfrozen_weights_are_found(policy: Policy) -> None:
    policy.transformer.get_submodule("proj_out").requires_grad_(True)
    with pytest.raises(AssertionError, match="other than the adapter"):
        check_policy(policy, EXAMPLE)


def test_a_weight_without_gradient_is_found(policy: Policy) -> None:
    block = policy.transformer.get_submodule("transformer_blocks.0")
    block.add_module("extra", nn.ModuleDict({"lora_A": nn.Linear(2, 2)}))
    with pytest.raises(AssertionError, match=r"no gradient reaches .*extra\.lora_A"):
        check_policy(policy, EXAMPLE)


class Fake(Reward):
    """Mean brightness, altered by a function of (scores, images, example)."""

    Config = RewardConfig

    def __init__(self, config: Any, *, device: torch.device) -> None:
        self.alter: Callable[[Tensor, Tensor, Example], Tensor] = config

    def __call__(self, example: Example, images: Tensor) -> Tensor:
        return self.alter(images.float().mean(dim=(1, 2, 3)), images, example)


def fake(alter: Callable[[Tensor, Tensor, Example], Tensor]) -> Fake:
    return Fake(alter, device=torch.device("cpu"))


def blacken(scores: Tensor, images: Tensor, example: Example) -> Tensor:
    images.zero_()
    return scores


def draw_on_reference(scores: Tensor, images: Tensor, example: Example) -> Tensor:
    image = example.references[0].copy()
    example.references[0].putpixel((0, 0), (9, 9, 9))
    example.references[0].putpixel((1, 0), image.getpixel((1, 0)))
    return scores


@pytest.mark.parametrize(
    "alter",
    [
        lambda s, i, e: s,
        lambda s, i, e: torch.where(s > 127, torch.nan, s),
    ],
)
def test_good_rewards_pass(alter: Callable[[Tensor, Tensor, Example], Tensor]) -> None:
    check_reward(fake(alter), EXAMPLE, IMAGES.clone())


@pytest.mark.parametrize(
    "alter", [lambda s, i, e: s - s.mean(), lambda s, i, e: torch.where(s > s.median(), torch.nan, s)]
)
def test_a_reward_that_compares_images_has_to_say_so(
    alter: Callable[[Tensor, Tensor, Example], Tensor],
) -> None:
    check_reward(fake(alter), EXAMPLE, IMAGES.clone(), pairwise=True)
    with pytest.raises(AssertionError, match="depend on what else is in the group"):
        check_reward(fake(alter), EXAMPLE, IMAGES.clone())


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (lambda s, i, e: s[:2], "must give 4 scores"),
        (lambda s, i, e: s.double(), "must be float32"),
        (lambda s, i, e: s / 0, "infinite scores"),
        (lambda s, i, e: s + torch.rand(4), "scoring twice differs"),
        (lambda s, i, e: s + torch.arange(4), "do not follow their images"),
        (lambda s, i, e: s.clone().requires_grad_(), "carry a gradient"),
        (blacken, "changed the images"),
        (draw_on_reference, "changed the references"),
    ],
)
def test_broken_rewards_are_found(alter: Callable[[Tensor, Tensor, Example], Tensor], message: str) -> None:
    example = Example(key="1", prompt="a", references=(Image.new("RGB", (4, 4)),))
    with pytest.raises(AssertionError, match=message):
        check_reward(fake(alter), example, IMAGES.clone())


class Judge(AsyncReward):
    """Brightness of the first pixel."""

    Config = RewardConfig

    def __init__(self, config: Any, *, device: torch.device) -> None:
        self.count = 0

    async def __call__(self, example: Example, image: Image.Image) -> float:
        self.count += 1
        pixel = image.getpixel((0, 0))
        assert isinstance(pixel, tuple)
        return float(sum(pixel))


def test_judges_over_the_network_are_checked_too() -> None:
    judge = Judge(None, device=torch.device("cpu"))
    check_reward(judge, EXAMPLE, IMAGES.clone())
    assert judge.count == 12


class Server(AsyncGroupReward):
    """The same, a whole group in one call; ``shift`` mixes up whose score is whose."""

    Config = RewardConfig

    def __init__(self, config: Any, *, device: torch.device) -> None:
        self.count = 0
        self.shift = 0

    async def __call__(self, example: Example, images: Sequence[Image.Image]) -> list[float]:
        self.count += 1
        scores = [float(sum(image.getpixel((0, 0)))) for image in images]  # type: ignore[arg-type]
        turn = self.shift * self.count % len(scores)
        return scores[turn:] + scores[:turn]


def test_servers_are_checked_too() -> None:
    server = Server(None, device=torch.device("cpu"))
    check_reward(server, EXAMPLE, IMAGES.clone())
    assert server.count == 3, "one call a group"
    server.shift = 1
    with pytest.raises(AssertionError, match="scoring twice differs"):
        check_reward(server, EXAMPLE, IMAGES.clone())


def weighted(a: Tensor, w: Tensor) -> Tensor:
    return a @ w.T


def harmonic_unguarded(a: Tensor, w: Tensor) -> Tensor:
    return weighted(a, w) + (a.prod(1) / a.sum(1))[:, None]


def rescale(a: Tensor, w: Tensor) -> Tensor:
    a.mul_(2.0)
    return weighted(a, w)


def test_a_good_aggregator_passes() -> None:
    check_aggregator(weighted)


@pytest.mark.parametrize(
    ("aggregator", "message"),
    [
        (lambda a, w: weighted(a, w).T, r"not \(G, K\)"),
        (lambda a, w: weighted(a, w).double(), "must be float32"),
        (harmonic_unguarded, "not finite for"),
        (rescale, "changed the advantages"),
        (lambda a, w: weighted(a, w) + torch.arange(len(a))[:, None], "do not follow their samples"),
        (lambda a, w: weighted(a, w) + 0.1, "must get zeros"),
        (lambda a, w: weighted(a, w) / (len(a) > 5), "not finite in a small group"),
    ],
)
def test_broken_aggregators_are_found(aggregator: Callable[[Tensor, Tensor], Tensor], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_aggregator(aggregator)
