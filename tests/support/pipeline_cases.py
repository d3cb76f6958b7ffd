"""The policies that are whole diffusers pipelines: tiny models, stock pipelines, and how these are called."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import Flux2KleinKVPipeline, Flux2KleinPipeline, Flux2Pipeline
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus
from PIL import Image
from torch import Tensor

from customized_grpo.policies import qwen_image
from customized_grpo.policies.adapters.lora import attach, trainable_parameters
from customized_grpo.policies.base import LoraSettings
from tiny_flux2 import make_tiny_flux2, tiny_flux2
from tiny_flux3 import draw_flux3, make_tiny_flux3, stock_flux3, tiny_flux3
from tiny_qwen_image import make_tiny_qwen, stock_pipeline, tiny_qwen
from tiny_qwen_image21 import make_tiny_qwen21, stock_qwen21, tiny_qwen21

PROMPT = "a red dog"


@dataclass(frozen=True, slots=True)
class Case:
    """One model."""

    make: Callable[..., Path]
    load: Callable[..., Any]
    stock: Callable[[Path], Any]
    options: dict[str, Any] = field(default_factory=dict)
    """Of ``make``."""
    call: dict[str, Any] = field(default_factory=dict)
    """What the pipeline is called with to do as the policy does by default."""
    least: int = 0
    """References that it needs."""
    packed: bool = True
    """Whether the pipeline takes latents as tokens; else as a grid of them."""
    size: tuple[int, int] = (64, 48)
    """(height, width) that ``load`` draws."""
    drawn: Callable[..., tuple[Tensor, Any]] | None = None
    """How a pipeline is called that isn't called as the others are."""


def _stock(pipeline_class: Any) -> Callable[[Path], Any]:
    def make(folder: Path) -> Any:
        pipeline = pipeline_class.from_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return make


CASES = {
    "flux2": Case(make_tiny_flux2, tiny_flux2, _stock(Flux2Pipeline), {}, {"guidance_scale": 4.0}, 0, False),
    "klein-base": Case(
        make_tiny_flux2,
        tiny_flux2,
        _stock(Flux2KleinPipeline),
        {"klein": True},
        {"guidance_scale": 4.0},
        0,
        False,
    ),
    "klein": Case(
        make_tiny_flux2,
        tiny_flux2,
        _stock(Flux2KleinPipeline),
        {"klein": True, "distilled": True},
        {"guidance_scale": 1.0},
        0,
        False,
    ),
    "klein-kv": Case(
        make_tiny_flux2,
        tiny_flux2,
        _stock(Flux2KleinKVPipeline),
        {"klein": True, "distilled": True, "keys_kept": True, "layers": 2},
        {},
        0,
        False,
    ),
    "flux3": Case(make_tiny_flux3, tiny_flux3, stock_flux3, drawn=draw_flux3),
    "flux3-distilled": Case(make_tiny_flux3, tiny_flux3, stock_flux3, {"distilled": True}, drawn=draw_flux3),
    "qwen-2509": Case(
        make_tiny_qwen, tiny_qwen, stock_pipeline, {}, {"true_cfg_scale": 4.0, "negative_prompt": " "}, 1
    ),
    "qwen-2511": Case(
        make_tiny_qwen,
        tiny_qwen,
        stock_pipeline,
        {"zero_cond_t": True},
        {"true_cfg_scale": 4.0, "negative_prompt": " "},
        1,
    ),
    "qwen-2.1": Case(make_tiny_qwen21, tiny_qwen21, stock_qwen21, {}, {"output_resolution": 64}, size=(64, 96)),
}


def maker(folder: Callable[[], Path], **others: Callable[[Path], Path]) -> Callable[[str], Path]:
    """Tiny models by their key in ``CASES``, or in ``others``, each made once in a folder of its own."""
    made: dict[str, Path] = {}

    def of(name: str) -> Path:
        if name not in made:
            into = folder() / "m"
            made[name] = others[name](into) if name in others else CASES[name].make(into, **CASES[name].options)
        return made[name]

    return of


def shrink_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    """Areas of references that are constants of diffusers and of Qwen's policy, small enough for tests."""
    monkeypatch.setattr(pipeline_qwenimage_edit_plus, "VAE_IMAGE_SIZE", 64 * 64)
    monkeypatch.setattr(pipeline_qwenimage_edit_plus, "CONDITION_IMAGE_SIZE", 96 * 96)
    monkeypatch.setattr(qwen_image, "_SEEN_SIZE", 96)


def pictures() -> tuple[Image.Image, ...]:
    """Three references of different shapes, none of them whole tokens but the first."""
    square = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
    wide = Image.radial_gradient("L").resize((130, 66)).convert("RGB")
    tall = Image.linear_gradient("L").rotate(90).resize((70, 100)).convert("RGB")
    return square, wide, tall


def noise(policy: Any, n: int, seed: int = 0) -> Tensor:
    """Tokens of noise."""
    return torch.randn(n, *policy.latent_shape, generator=torch.Generator().manual_seed(seed))


def adapted(policy: Any, seed: int = 1) -> Any:
    """The policy with an adapter that is not zero, so that its low-rank path counts."""
    attach(policy, LoraSettings(rank=2), seed=0)
    draw = torch.Generator().manual_seed(seed)
    for parameter in trainable_parameters(policy).values():
        parameter.data = torch.randn(parameter.shape, generator=draw) * 0.1
    return policy


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a stock pipeline did."""

    sigmas: Tensor
    latents: Tensor
    """Tokens after the last step."""
    images: Any
    """(n, h, w, 3) in [0, 1]; what is transparent is laid on white."""


def draw(case: Case, pipeline: Any, start: Tensor, references: Sequence[Image.Image]) -> Drawn:
    """``pipeline(...)`` from the noise ``start`` in three steps of its own schedule, at ``case.size``."""
    if case.drawn is not None:
        latents, pictures_drawn = case.drawn(pipeline, PROMPT, start, references)
        return Drawn(pipeline.scheduler.sigmas.clone(), latents, pictures_drawn)
    n, s, c = start.shape
    seen: list[Tensor] = []

    def keep(_: Any, step: int, time: Tensor, given: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(given["latents"])
        return {}

    extra = {} if case.packed else {"max_sequence_length": 40}
    images = pipeline(
        prompt=PROMPT,
        image=list(references) or None,
        latents=start if case.packed else start.transpose(1, 2).reshape(n, c, 4, 3),
        height=case.size[0],
        width=case.size[1],
        num_inference_steps=3,
        num_images_per_prompt=n,
        callback_on_step_end=keep,
        output_type="np",
        **case.call,
        **extra,
    ).images
    assert len(seen) == 3
    assert seen[-1].shape == (n, s, c)
    if images.shape[-1] == 4:
        images = 1 - (1 - images[..., :3]) * images[..., 3:]
    return Drawn(pipeline.scheduler.sigmas.clone(), seen[-1], images)
