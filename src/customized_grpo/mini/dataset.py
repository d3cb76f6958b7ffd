"""The miniature world as a data set: prompts with one masked reference each, drawn from (seed, split, index)."""

from typing import Any, Final, Literal, final

import torch
from PIL import Image
from pydantic import Field

from customized_grpo.data.base import DatasetConfig
from customized_grpo.mini.grammar import prompt
from customized_grpo.mini.render import render, render_with_masks
from customized_grpo.mini.world import (
    CLASSES,
    Scenes,
    Subjects,
    sample_reference_scenes,
    sample_scenes,
    sample_subjects,
)
from customized_grpo.types import Example

_SPLIT_SALT: Final = {"train": 1, "tune": 2, "test": 3}


@final
class MiniDataset:
    """Examples of the miniature world; ground truth is in ``Example.extra["truth"]``.

    The splits share no subject. Only ``test`` has the held-out combinations of class, place, position and hat;
    ``tune``, for choosing settings, has the same combinations as ``train``. The reference is never in the prompt's
    place.
    """

    @final
    class Config(DatasetConfig):
        """The ``data`` section of a recipe with ``type: mini``."""

        split: Literal["train", "tune", "test"] = Field(default="train", description="split of subjects and prompts")
        size: int = Field(default=4096, ge=1, description="number of examples")
        seed: int = Field(default=0, ge=0, description="seed of the examples within the split")

    def __init__(self, config: Config) -> None:
        self._config = config

    def __len__(self) -> int:
        return self._config.size

    def __getitem__(self, index: int) -> Example:
        """The example at ``index``, a function of (seed, split, index) only.

        Raises:
            IndexError: ``index`` is outside [0, len).
        """
        split, seed = self._config.split, self._config.seed
        subject, scene, reference_scene = self._drawn(index)
        words = {
            "cls": int(subject.cls),
            "place": int(scene.place),
            "position": int(scene.position),
            "size": int(scene.size),
            "hat": int(scene.hat),
        }
        truth: dict[str, Any] = {
            **words,
            "pattern": int(subject.pattern),
            "ears": int(subject.ears),
            "face": int(subject.face),
            "hue": float(subject.hue),
            "value": float(subject.value),
            "pattern_hue": float(subject.pattern_hue),
            "reference_place": int(reference_scene.place),
        }
        picture, mask = (Image.fromarray(one[0].numpy()) for one in render_with_masks(subject, reference_scene))
        return Example(
            key=f"mini-{split}-{seed}-{index:06d}",
            prompt=prompt(**words),
            references=(picture,),
            masks=(mask,),
            subject=CLASSES[words["cls"]],
            extra={"truth": truth},
        )

    def targets(self, index: int, number: int) -> tuple[Image.Image, ...]:
        """The true picture of the prompt; as a pair, against the subject copied with the reference's scene."""
        subject, scene, reference_scene = self._drawn(index)
        return tuple(Image.fromarray(render(subject, one)[0].numpy()) for one in (scene, reference_scene)[:number])

    def lacking(self, number: int) -> list[str]:
        """None: every example has them."""
        return []

    def _drawn(self, index: int) -> tuple[Subjects, Scenes, Scenes]:
        """Subject, the prompt's scene, and the reference's."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside this data set of {len(self)} examples")
        split, seed = self._config.split, self._config.seed
        generator = torch.Generator().manual_seed((seed * 4 + _SPLIT_SALT[split]) * 1_000_003 + index)
        subject = sample_subjects(1, split, generator)
        scene = sample_scenes(subject.cls, generator, held_out=split == "test")
        return subject, scene, sample_reference_scenes(scene.place, generator)
