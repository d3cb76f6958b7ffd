"""Pictures for training and measuring: pairs of a prompted target and a reference of the same subject."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import UInt8
from torch import Tensor

from customized_grpo.mini.render import render
from customized_grpo.mini.world import (
    Scenes,
    Split,
    Subjects,
    sample_reference_scenes,
    sample_scenes,
    sample_subjects,
)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """n subjects, each in a prompted scene and in the scene of its reference."""

    subjects: Subjects
    scenes: Scenes
    reference_scenes: Scenes

    def __len__(self) -> int:
        return len(self.subjects)


def draw_pairs(n: int, split: Split, seed: int) -> Pairs:
    """Draws n pairs of a split; only the test split has held-out combinations."""
    generator = torch.Generator().manual_seed(seed)
    subjects = sample_subjects(n, split, generator)
    scenes = sample_scenes(subjects.cls, generator, held_out=split == "test")
    return Pairs(subjects=subjects, scenes=scenes, reference_scenes=sample_reference_scenes(scenes.place, generator))


def render_many(subjects: Subjects, scenes: Scenes, *, chunk: int = 128) -> UInt8[Tensor, "n h w 3"]:
    """`render` in chunks that fit the processor's cache."""
    rows = torch.arange(len(subjects)).split(chunk)
    return torch.cat([render(subjects.take(r), scenes.take(r)) for r in rows])


def as_input(images: UInt8[Tensor, "n h w 3"]) -> Tensor:
    """uint8 channels-last pictures as the VAE's input: float in [-1, 1], channels first."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def as_uint8(x: Tensor) -> UInt8[Tensor, "n h w 3"]:
    """The inverse of `as_input`, clamped."""
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
