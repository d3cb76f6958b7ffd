"""``flux-kontext``: the same numbers as diffusers' own pipeline, exact replays, and what is refused."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxKontextPipeline
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from customized_grpo.policies.adapters.lora import attach, save_adapter, trainable_parameters
from customized_grpo.policies.base import LoraSettings
from customized_grpo.policies.flux import Kontext, KontextConfig
from customized_grpo.policies.flux_tokens import kontext_size
from customized_grpo.sampling.clock import Clock
from customized_grpo.sampling.dynamics import dance_sde
from customized_grpo.sampling.rollout import sample_group, sample_images
from customized_grpo.sampling.schedule import AllPlan, shifted_sigmas, sigma_grid
from customized_grpo.testing import check_policy
from customized_grpo.training.replay import micro_batches, replay
from customized_grpo.types import Example
from tiny import make_tiny_flux, tiny_kontext

PROMPT = "a red cube on a table"
G = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_flux(tmp_path_factory.mktemp("kontext"), kontext=True)


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.radial_gradient("L").resize((100, 55)).convert("RGB")


def fit_to_kontext(image: Image.Image, side: int) -> Image.Image:
    return image.convert("RGB").resize(kontext_size(image.size, side), Image.Resampling.LANCZOS)


def adapted(folder: Path, dtype: torch.dtype = torch.float32, **changes: Any) -> Kontext:
    """A policy whose adapter is not zero, so that its low-rank path counts."""
    policy = tiny_kontext(folder, dtype, **changes)
    attach(policy, LoraSettings(rank=4), seed=0)
    draw = torch.Generator().manual_seed(1)
    for parameter in trainable_parameters(policy).values():
        parameter.data = torch.randn(parameter.shape, generator=draw) * 0.1
    return policy


def noise(policy: Kontext, n: int = 2) -> Tensor:
    return torch.randn(n, *policy.latent_shape, generator=torch.Generator().manual_seed(0))


def pipeline_of(folder: Path) -> FluxKontextPipeline:
    pipeline = FluxKontextPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def settings(start: Tensor) -> dict[str, Any]:
    return {
        "prompt": PROMPT,
        "height": 64,
        "width": 48,
        "max_area": 64 * 48,
        "max_sequence_length": 16,
        "guidance_scale": 3.5,
        "num_images_per_prompt": len(start),
        "latents": start,
        "_auto_resize": False,
    }


def test_velocity_is_what_the_pipeline_computes(folder: Path, picture: Image.Image) -> None:
    """The forward inside ``pipe(...)``, with and without a picture, against ``velocity`` at the same state."""
    policy, pipeline = tiny_kontext(folder), pipeline_of(folder)
    pipeline.scheduler.set_shift(1.0)
    start, seen = noise(policy), []
    pipeline.transformer.register_forward_hook(lambda _, args, output: seen.append(output[0]))
    for image in (fit_to_kontext(picture, 64), None):
        pipeline(image=image, num_inference_steps=1, sigmas=[0.7], output_type="latent", **settings(start))
        cond = policy.encode(PROMPT, [] if image is None else [picture])
        with torch.no_grad():
            given = policy.velocity(start, torch.tensor(0.7), cond)
        torch.testing.assert_close(given, seen[-1][:, : start.shape[1]], rtol=0, atol=2e-6)
    assert (seen[0][:, : start.shape[1]] - seen[1]).abs().max() > 1e-3  # the picture matters


def test_generate_is_the_pipeline(folder: Path, picture: Image.Image) -> None:
    """Whole: preprocessing, ids, the dynamic shift, sampler and decoding."""
    policy, pipeline = tiny_kontext(folder), pipeline_of(folder)
    pipeline.scheduler.register_to_config(use_dynamic_shifting=True)
    start = noise(policy)
    image = fit_to_kontext(picture, 64)
    expected = pipeline(image=image, num_inference_steps=4, output_type="np", **settings(start)).images
    sigmas = sigma_grid(policy.config, "dynamic", 4, policy.latent_shape[0])
    ours = sample_images(policy, policy.encode(PROMPT, [picture]), start, sigmas).numpy()
    assert np.abs(ours.astype(int) - (expected * 255).round().astype(int)).max() <= 1
    assert (ours == (expected * 255).round()).mean() > 0.999


@pytest.mark.parametrize("size", [(1000, 1000), (1600, 900), (333, 1000), (500, 640)])
def test_references_are_scaled_as_the_pipeline_does(size: tuple[int, int], folder: Path) -> None:
    """At 1024 by its own choice of a preferred resolution."""
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    seen: list[Tensor] = []

    class Seen(Exception):
        pass

    pipeline = pipeline_of(folder)
    real = pipeline.image_processor.preprocess

    def preprocess(image: Image.Image, height: int, width: int) -> Tensor:
        seen.append(real(image, height, width))
        raise Seen

    pipeline.image_processor.preprocess = preprocess
    start = torch.zeros(1, 12, 64)
    with pytest.raises(Seen):
        pipeline(image=picture, **(settings(start) | {"_auto_resize": True}))
    ours = np.asarray(fit_to_kontext(picture, 1024), dtype=np.float32)
    expected = seen[0][0].permute(1, 2, 0).numpy()
    assert ours.shape == expected.shape
    assert np.abs(ours / 127.5 - 1 - expected).max() < 1e-6


@pytest.mark.parametrize(("side", "area"), [(512, 512**2), (256, 256**2), (16, 16 * 16)])
def test_smaller_references_keep_the_shape(side: int, area: int) -> None:
    for size in ((1000, 1000), (1600, 900), (300, 1000)):
        width, height = kontext_size(size, side)
        assert width % 16 == height % 16 == 0
        assert width * height <= area * 1.1
        if side > 16:
            assert width * height >= area * 0.8
            assert math.isclose(width / height, size[0] / size[1], rel_tol=0.35)


def test_conformance(folder: Path, picture: Image.Image) -> None:
    check_policy(adapted(folder), Example(key="1", prompt=PROMPT, references=(picture,)))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_first_replay_is_exact(folder: Path, picture: Image.Image, checkpointing: bool) -> None:
    """At the rollout's batch size to the bit, and in other micro-batches within float32's rounding."""
    policy = adapted(folder, gradient_checkpointing=checkpointing)
    transition, plan = partial(dance_sde, eta=0.4), AllPlan().steps(0, 4, 0)
    start = noise(policy, G)
    draws = torch.randn(G, 3, *policy.latent_shape, generator=torch.Generator().manual_seed(2))
    example = Example(key="1", prompt=PROMPT, references=(picture,))
    group = sample_group(
        policy,
        example,
        policy.encode(PROMPT, [picture]),
        sigmas=shifted_sigmas(4, 3.0),
        plan=plan,
        transition=transition,
        noise=start,
        draws=draws,
        shared_noise=False,
        clock=Clock(policy.device),
    )
    for size, bound in ((G, 0.0), (1, 1e-6), (3 * G, 1e-6)):
        batches = micro_batches([group], [torch.zeros_like(group.log_prob)], range(G), size)
        ratios = [replay(policy, transition, pairs)[0].detach() - pairs.log_prob for pairs in batches]
        assert float(torch.cat(ratios).abs().max()) <= bound


def test_the_pipeline_loads_a_checkpoint_to_the_same_velocity(
    folder: Path, picture: Image.Image, tmp_path: Path
) -> None:
    policy = adapted(folder)
    save_adapter(policy, tmp_path, {})
    stock = tiny_kontext(folder)
    FluxKontextPipeline.from_pretrained(folder, transformer=stock.transformer).load_lora_weights(tmp_path)
    x, sigma = noise(policy), torch.tensor(0.7)
    with torch.no_grad():
        expected = policy.velocity(x, sigma, policy.encode(PROMPT, [picture]))
        given = stock.velocity(x, sigma, stock.encode(PROMPT, [picture]))
    assert torch.equal(given, expected)


def test_references_beyond_one_are_refused(folder: Path, picture: Image.Image) -> None:
    policy = tiny_kontext(folder, min_references=1)
    for references in ([], [picture] * 2):
        with pytest.raises(ValueError, match=r"references given, but policy\.type=flux-kontext takes 1 "):
            policy.encode(PROMPT, references)
    with pytest.raises(ValidationError, match="max_references"):
        KontextConfig(model="x", max_references=2)  # type: ignore[arg-type]
