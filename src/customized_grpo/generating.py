"""Images from a trained adapter, one reference set and one prompt: what ``customized-grpo generate`` does."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from customized_grpo.config import EvaluateRecipe, Recipe
from customized_grpo.policies import lora
from customized_grpo.policies.base import load_policy
from customized_grpo.sampling.rollout import generate
from customized_grpo.sampling.schedule import resolve_shift, shifted_sigmas
from customized_grpo.seeding import generator

_BATCH = 4


def draw(
    recipe: Recipe | EvaluateRecipe,
    adapter: str,
    references: Sequence[Image.Image],
    prompt: str,
    file: Path,
    *,
    steps: int | None,
    seed: int,
    num: int,
) -> list[Path]:
    """Write ``num`` images; image i depends on (seed, i) alone.

    Args:
        recipe: says the policy, the device, and the sampler.
        adapter: a run, a checkpoint, or an adapter's folder or file.
        references: images of the subject.
        prompt: what to draw.
        file: the image to write; several get -0, -1, ... before the suffix.
        steps: of the sampler; None: the recipe's.
        seed: of the initial noise.
        num: number of images.

    Raises:
        ValueError: the adapter is missing or doesn't fit, or the policy can't be loaded.
    """
    settings = lora.read_adapter(adapter).settings()
    use_gpu = recipe.run.device != "cpu" and torch.cuda.is_available()
    if recipe.run.device == "cuda" and not use_gpu:
        raise ValueError(
            "run.device is cuda, but this machine has no usable GPU; give --config with run.device: auto"
        )
    device = torch.device("cuda" if use_gpu else "cpu")
    policy = load_policy(recipe.policy, device=device, precision=recipe.run.precision)
    lora.attach(policy, settings, seed=0)
    cond = policy.encode(prompt, references)
    shift = resolve_shift(recipe.sampling.shift, policy.latent_shape[0])
    sigmas = shifted_sigmas(steps or recipe.sampling.steps, shift)
    noise = torch.stack(
        [torch.randn(policy.latent_shape, generator=generator(seed, "generate", 0, i)) for i in range(num)]
    )
    images = torch.cat([generate(policy, cond, batch, sigmas) for batch in noise.split(_BATCH)])
    files = [file] if num == 1 else [file.with_stem(f"{file.stem}-{i}") for i in range(num)]
    file.parent.mkdir(parents=True, exist_ok=True)
    for path, image in zip(files, images, strict=True):
        Image.fromarray(image.numpy()).save(path)
    return files
