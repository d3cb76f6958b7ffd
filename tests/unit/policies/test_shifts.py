"""Each policy's own rule of noise levels is its pipeline's: diffusers' function of mu and its scheduler, step for step.

That a whole pipeline arrives at the same grid is in test_pipelines and test_kontext.
"""

import itertools
from typing import Any

import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.modular_pipelines.flux3.before_denoise import Flux3SetTimestepsStep
from diffusers.pipelines.flux import pipeline_flux, pipeline_flux_kontext
from diffusers.pipelines.flux2 import pipeline_flux2, pipeline_flux2_klein
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus
from diffusers.pipelines.qwenimage21 import pipeline_qwenimage21

from customized_grpo.policies.flux import KontextConfig, UNOConfig
from customized_grpo.policies.flux2 import Flux2Config, Flux2KleinConfig
from customized_grpo.policies.flux3 import Flux3KleinConfig
from customized_grpo.policies.qwen_image import QwenImageEditPlusConfig
from customized_grpo.policies.qwen_image21 import QwenImage21Config
from customized_grpo.recipe.loading import RecipeError, load_recipe
from customized_grpo.sampling.schedule import sigma_grid
from tiny_qwen_image import SCHEDULER

FLUX = {
    "base_image_seq_len": 256, "base_shift": 0.5, "max_image_seq_len": 4096, "max_shift": 1.15, "shift": 3.0,
    "use_dynamic_shifting": True,
}  # fmt: skip
"""Of FLUX.1-dev and of FLUX.2, whose pipelines leave the lengths and shifts in it alone."""
_ARGUMENTS = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")

MODELS: dict[str, tuple[Any, dict[str, Any], Any]] = {
    "uno": (UNOConfig, FLUX, pipeline_flux.calculate_shift),
    "flux-kontext": (KontextConfig, FLUX, pipeline_flux_kontext.calculate_shift),
    "flux2": (Flux2Config, FLUX, pipeline_flux2.compute_empirical_mu),
    "flux2-klein": (Flux2KleinConfig, FLUX, pipeline_flux2_klein.compute_empirical_mu),
    "qwen": (QwenImageEditPlusConfig, SCHEDULER, pipeline_qwenimage_edit_plus.calculate_shift),
    "qwen-2.1": (QwenImage21Config, SCHEDULER, pipeline_qwenimage21.calculate_shift),
}


SIDES = (256, 512, 1024, 1056, 1536)
"""FLUX.2 changes its rule between 1024 and 1056."""


@pytest.mark.parametrize("name", MODELS)
def test_the_grid_is_the_schedulers(name: str) -> None:
    config, published, rule = MODELS[name]
    scheduler = FlowMatchEulerDiscreteScheduler.from_config({**published, "time_shift_type": "exponential"})
    flux2 = rule.__name__ == "compute_empirical_mu"
    for side, steps in itertools.product(SIDES, (2, 4, 25, 50)):
        section = config.model_validate({"model": "x", "height": side, "width": side})
        tokens = section.latent_shape()[0]
        mu = rule(tokens, steps) if flux2 else rule(tokens, *(published[key] for key in _ARGUMENTS))
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
        found, case = sigma_grid(section, "dynamic", steps, tokens), f"{side} pixels, {steps} steps"
        assert (found - scheduler.sigmas).abs().max() <= 2e-6, case
        assert (found[0], found[-1]) == (1, 0), case
        assert (found.diff() < 0).all(), case


@pytest.mark.parametrize("steps", [2, 16, 50])
def test_flux3s_grid_is_its_blocks(steps: int) -> None:
    """A constant shift, which the blocks' own scheduler has."""
    blocks = Flux3SetTimestepsStep(num_inference_steps=steps)
    (component,) = blocks.expected_components
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(component.config)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps))
    for side in SIDES:
        section = Flux3KleinConfig(model="x", height=side, width=side)
        found = sigma_grid(section, "dynamic", steps, section.latent_shape()[0])
        assert (found - scheduler.sigmas).abs().max() <= 2e-6


@pytest.mark.parametrize(("steps", "before_last"), [(4, 0.02), (25, 0.02), (50, 0.02)])
def test_qwens_grid_ends_at_its_terminal(steps: int, before_last: float) -> None:
    section = QwenImageEditPlusConfig(model="x")
    assert float(sigma_grid(section, "dynamic", steps, 1024)[-2]) == pytest.approx(before_last, abs=1e-7)
    assert float(sigma_grid(section, 1.714, steps, 1024)[-2]) > before_last


def test_a_terminal_needs_two_steps() -> None:
    with pytest.raises(ValueError, match="at least 2 steps"):
        sigma_grid(QwenImageEditPlusConfig(model="x"), "dynamic", 1, 1024)


@pytest.mark.parametrize(
    ("recipe", "policy"),
    [
        ("flux2_klein_customized_grpo", "flux2-klein"),
        ("flux3_klein_customized_grpo", "flux3-klein"),
        ("qwen_edit_customized_grpo", "qwen-image-edit-plus"),
        ("kontext_customized_grpo", "flux-kontext"),
        ("qwen_image_21_customized_nft", "qwen-image-2.1"),
    ],
)
def test_a_rule_of_another_model_is_refused(recipe: str, policy: str) -> None:
    override = "sampling.shift=uno"
    with pytest.raises(RecipeError, match=f"'uno'; policy.type {policy} allows: a number above 0, or dynamic"):
        load_recipe(recipe, [override])
    assert load_recipe("uno_customized_grpo", [override]).sampling.shift == "uno"
