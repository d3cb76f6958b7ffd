"""Shared training of the stages `clip` and `dino`: from a student and its loss to an asset; noise on pictures."""

from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, final

import torch
from torch import Tensor, nn

from build_mini.common import LOG, Context, Training, replace_folder, write_card
from customized_grpo.mini.oracle import CHOICES, HUES

Student = TypeVar("Student", bound=nn.Module)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderRecipe(ABC):
    """Shape, seed and training length of one encoder; the judge differs from the reward in all three."""

    title: str
    folder: str
    seed: int
    hidden: int
    layers: int
    steps: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Asset:
    """Assets of an averaged student, with the text of its card."""

    parts: Sequence[Any]
    """Objects with `save_pretrained`, the model first."""
    metrics: dict[str, float]
    data: str
    recipe: str


Lesson = tuple[Callable[[int], Tensor], Callable[[Mapping[str, Tensor]], Asset]]
"""Loss at a step, and the assets made from the averaged weights."""


def train_encoder(
    context: Context,
    recipe: EncoderRecipe,
    make: Callable[[], Student],
    learn: Callable[[Student], Lesson],
) -> None:
    """Trains, measures and writes one model.

    Args:
        context: of the build.
        recipe: of the model.
        make: a new student.
        learn: from the student to its loss and its asset.
    """
    name = recipe.folder.replace("/", "-")
    done = context.work / f"{name}-done"
    if done.exists():
        LOG.info("%s: done already", recipe.folder)
        return
    torch.manual_seed(context.seed + recipe.seed)
    student = make()
    training = Training(context, name, student, steps=recipe.steps, lr=1.5e-3, ema=0.99, weight_decay=0.02)
    loss_of, asset = learn(student)

    def export() -> None:
        made = asset(training.average)
        LOG.info("%s: %s", recipe.folder, made.metrics)
        with replace_folder(context.out / recipe.folder) as aside:
            for part in made.parts:
                part.save_pretrained(aside)
            about = f"{training.step} steps of {made.recipe}"
            write_card(
                aside,
                recipe.title,
                data=made.data,
                recipe=about,
                seconds=training.seconds,
                metrics=made.metrics,
            )

    training.run(loss_of, every_s=240, hook=export)
    export()
    done.touch()


def processor(kind: type[Any], mean: Sequence[float], std: Sequence[float]) -> Any:
    """transformers' processor of 64 x 64 pixels."""
    return kind(
        do_resize=True,
        size={"height": 64, "width": 64},
        resample=3,
        do_center_crop=False,
        do_rescale=True,
        do_normalize=True,
        image_mean=list(mean),
        image_std=list(std),
        do_convert_rgb=True,
    )


@final
class AttributeReader(nn.Linear):
    """A linear reader of a picture's attributes, which only training uses."""

    def __init__(self, width: int) -> None:
        self.sizes = [*CHOICES.values(), *(2 for _ in HUES), 1]
        super().__init__(width, sum(self.sizes))

    def read(self, features: Tensor) -> dict[str, Tensor]:
        """Logits of each choice, and the numbers, by name."""
        return dict(zip((*CHOICES, *HUES, "value"), self(features).split(self.sizes, dim=1), strict=True))


def under(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a student's part, by the names that they have in it."""
    return {key.removeprefix(f"{name}."): one for key, one in tensors.items() if key.startswith(f"{name}.")}


def noisy(images: Tensor, generator: torch.Generator) -> Tensor:
    """uint8 images as float32 in [0, 255], with noise of a strength that is drawn, too."""
    images = images.float()
    noise = 12 * torch.rand((), generator=generator) * torch.randn(images.shape, generator=generator)
    return (images + noise).clamp(0, 255)
