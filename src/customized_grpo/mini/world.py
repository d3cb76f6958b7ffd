"""Contents of the miniature world: subjects (known by their reference), scenes (named by the prompt), splits.

A subject is a critter: a body shape (its class, named in the prompt) and an identity that only a reference shows
(pattern, body hue, body value, pattern hue, ears, face). A scene is a place, a position, a size and a hat, all named by
the prompt. Everything is a batch of n; n = number of pictures.
"""

from dataclasses import dataclass, fields
from typing import Literal, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

CLASSES = ("ball", "cube", "cone", "gem", "star", "bean")
PATTERNS = ("solid", "hstripe", "vstripe", "dots", "half", "ring")
EARS = ("none", "pointed", "round", "antenna")
FACES = ("dots", "goggles", "cyclops")
PLACES = ("beach", "snow", "grass", "night", "red floor", "water", "city", "sunset")
POSITIONS = ("left", "middle", "right")
SIZES = ("small", "big")
HATS = ("none", "red", "blue", "yellow")

MEDIUM = 2
"""Index of the size used only in references; no prompt names it."""

Split = Literal["train", "tune", "test"]
HUE_CELLS = 8


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Subjects:
    """A batch of critters. Hues are in [0, 1) and wrap around; value is HSV brightness in [0.55, 0.95]."""

    cls: Int[Tensor, "n"]
    pattern: Int[Tensor, "n"]
    ears: Int[Tensor, "n"]
    face: Int[Tensor, "n"]
    hue: Float[Tensor, "n"]
    value: Float[Tensor, "n"]
    pattern_hue: Float[Tensor, "n"]

    def __len__(self) -> int:
        return int(self.cls.shape[0])

    def take(self, index: Tensor) -> "Subjects":
        """The rows at `index` (integers or a mask)."""
        return Subjects(**{f.name: getattr(self, f.name)[index] for f in fields(self)})


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Scenes:
    """A batch of scenes; `size` may be MEDIUM (references only). `jitter` in [-1, 1] moves x, y and the radius."""

    place: Int[Tensor, "n"]
    position: Int[Tensor, "n"]
    size: Int[Tensor, "n"]
    hat: Int[Tensor, "n"]
    jitter: Float[Tensor, "n 3"]

    def __len__(self) -> int:
        return int(self.place.shape[0])

    def take(self, index: Tensor) -> "Scenes":
        """The rows at `index` (integers or a mask)."""
        return Scenes(**{f.name: getattr(self, f.name)[index] for f in fields(self)})


def _hash(columns: tuple[Tensor, ...], salt: int) -> Int[Tensor, "n"]:
    """Hash of small integers into [0, 2^31), the same on every machine."""
    h = torch.full_like(columns[0], 2166136261 + salt)
    for column in columns:
        h = ((h ^ (column + 0x9E37)) * 16777619) & 0x7FFFFFFF
        h = (h ^ (h >> 13)) * 1540483477 & 0x7FFFFFFF
        h = h ^ (h >> 15)
    return h


def subject_split(subjects: Subjects) -> Int[Tensor, "n"]:
    """Split of each subject: 0 train (85 %), 1 tune (5 %), 2 test (10 %).

    The cell of a subject is its class, pattern, ears, face and an eighth of the hue circle: 3456 cells.
    """
    cell = (subjects.hue * HUE_CELLS).long().clamp(0, HUE_CELLS - 1)
    h = _hash((subjects.cls, subjects.pattern, subjects.ears, subjects.face, cell), 1) % 20
    return torch.where(h < 2, 2, torch.where(h < 3, 1, 0))


def held_out_combination(
    cls: Int[Tensor, "n"], place: Int[Tensor, "n"], position: Int[Tensor, "n"], hat: Int[Tensor, "n"]
) -> Bool[Tensor, "n"]:
    """True for combinations of class, place, position and hat held out from training (15 % of 576)."""
    return _hash((cls, place, position, hat), 2) % 100 < 15


def _draw_subjects(n: int, generator: torch.Generator) -> Subjects:
    def integers(high: int) -> Tensor:
        return torch.randint(high, (n,), generator=generator)

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(n, generator=generator) * (high - low) + low

    hue = uniform(0.0, 1.0)
    return Subjects(
        cls=integers(len(CLASSES)),
        pattern=integers(len(PATTERNS)),
        ears=integers(len(EARS)),
        face=integers(len(FACES)),
        hue=hue,
        value=uniform(0.55, 0.95),
        pattern_hue=(hue + uniform(0.25, 0.75)) % 1.0,
    )


def sample_subjects(n: int, split: Split, generator: torch.Generator) -> Subjects:
    """n subjects of a split, uniform over attributes."""
    wanted = {"train": 0, "tune": 1, "test": 2}[split]
    found: list[Subjects] = []
    count = 0
    while count < n:
        batch = _draw_subjects(max(64, 2 * n), generator)
        batch = batch.take(subject_split(batch) == wanted)
        found.append(batch)
        count += len(batch)
    return concatenate(found).take(torch.arange(n))


def concatenate(batches: list[Subjects]) -> Subjects:
    """Several batches of subjects as one."""
    return Subjects(**{f.name: torch.cat([getattr(b, f.name) for b in batches]) for f in fields(Subjects)})


def sample_scenes(cls: Int[Tensor, "n"], generator: torch.Generator, *, held_out: bool) -> Scenes:
    """One prompted scene per class, from held-out combinations only, or from the others only.

    45 % have no hat, so that prompts with and without one are both common.
    """
    n = int(cls.shape[0])
    place = torch.zeros(n, dtype=torch.long)
    position, hat = place.clone(), place.clone()
    todo = torch.ones(n, dtype=torch.bool)
    while bool(todo.any()):
        fresh_place = torch.randint(len(PLACES), (n,), generator=generator)
        fresh_position = torch.randint(len(POSITIONS), (n,), generator=generator)
        bare = torch.rand(n, generator=generator) < 0.45
        fresh_hat = torch.where(bare, 0, torch.randint(1, len(HATS), (n,), generator=generator))
        place = torch.where(todo, fresh_place, place)
        position = torch.where(todo, fresh_position, position)
        hat = torch.where(todo, fresh_hat, hat)
        todo = held_out_combination(cls, place, position, hat) != held_out
    size = torch.randint(len(SIZES), (n,), generator=generator)
    jitter = torch.rand(n, 3, generator=generator) * 2 - 1
    return Scenes(place=place, position=position, size=size, hat=hat, jitter=jitter)


def sample_reference_scenes(other_than: Int[Tensor, "n"], generator: torch.Generator) -> Scenes:
    """Scenes of references: middle, medium, no hat, in any place but the one given, so that a copy is always wrong."""
    n = int(other_than.shape[0])
    step = torch.randint(1, len(PLACES), (n,), generator=generator)
    jitter = torch.rand(n, 3, generator=generator) * 2 - 1
    return Scenes(
        place=(other_than + step) % len(PLACES),
        position=torch.ones(n, dtype=torch.long),
        size=torch.full((n,), MEDIUM),
        hat=torch.zeros(n, dtype=torch.long),
        jitter=jitter,
    )
