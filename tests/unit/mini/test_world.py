"""The miniature world: prompts, splits, pictures and the data set."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from customized_grpo.mini.dataset import MiniDataset
from customized_grpo.mini.grammar import MAX_TOKENS, prompt, words
from customized_grpo.mini.render import render, render_with_masks
from customized_grpo.mini.world import (
    CLASSES,
    HATS,
    PLACES,
    POSITIONS,
    SIZES,
    held_out_combination,
    sample_reference_scenes,
    sample_scenes,
    sample_subjects,
    subject_split,
)

_RANGES = [range(len(names)) for names in (CLASSES, PLACES, POSITIONS, SIZES, HATS)]


def _dataset(split: str, size: int = 200, seed: int = 0) -> MiniDataset:
    return MiniDataset(MiniDataset.Config(type="mini", split=split, size=size, seed=seed))


def test_prompts_differ_and_fit_the_tokenizers() -> None:
    seen = set()
    for cls, place, position, size, hat in itertools.product(*_RANGES):
        text = prompt(cls=cls, place=place, position=position, size=size, hat=hat)
        # One token a word, a begin and an end token.
        assert len(text.split()) + 2 <= MAX_TOKENS
        assert set(text.split()) <= set(words())
        seen.add(text)
    assert len(seen) == 1152


@pytest.mark.parametrize(("split", "index"), [("train", 0), ("tune", 1), ("test", 2)])
def test_subjects_belong_to_their_split(split, index) -> None:
    subjects = sample_subjects(500, split, torch.Generator().manual_seed(1))
    assert len(subjects) == 500
    assert bool((subject_split(subjects) == index).all())


@pytest.mark.parametrize("held_out", [False, True])
def test_held_out_combinations_stay_apart(held_out: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    cls = torch.randint(len(CLASSES), (500,), generator=generator)
    scenes = sample_scenes(cls, generator, held_out=held_out)
    found = held_out_combination(cls, scenes.place, scenes.position, scenes.hat)
    assert bool((found == held_out).all())


def test_shares_of_the_splits() -> None:
    grid = torch.cartesian_prod(torch.arange(6), torch.arange(8), torch.arange(3), torch.arange(4))
    assert 0.11 < held_out_combination(*grid.T).float().mean() < 0.19
    everyone = sample_subjects(2000, "train", torch.Generator().manual_seed(3))
    anyone = replace(everyone, hue=torch.rand(2000, generator=torch.Generator().manual_seed(4)))
    shares = torch.bincount(subject_split(anyone), minlength=3) / 2000
    assert 0.78 < shares[0] < 0.92
    assert 0.02 < shares[1] < 0.09
    assert 0.06 < shares[2] < 0.15


def test_pictures_are_deterministic_and_show_every_attribute() -> None:
    generator = torch.Generator().manual_seed(5)
    subject = sample_subjects(1, "train", generator)
    scene = sample_scenes(subject.cls, generator, held_out=False)
    picture = render(subject, scene)
    assert picture.dtype == torch.uint8
    assert picture.shape == (1, 64, 64, 3)
    assert torch.equal(picture, render(subject, scene))
    other = {
        "cls": (subject.cls + 1) % 6,
        "pattern": (subject.pattern + 1) % 6,
        "ears": (subject.ears + 1) % 4,
        "face": (subject.face + 1) % 3,
        "hue": (subject.hue + 0.3) % 1,
        "value": 1.5 - subject.value,
        "pattern_hue": (subject.pattern_hue + 0.3) % 1,
    }
    for name, value in other.items():
        assert not torch.equal(picture, render(replace(subject, **{name: value}), scene)), name
    for name, count in (("place", 8), ("position", 3), ("size", 2), ("hat", 4)):
        moved = replace(scene, **{name: (getattr(scene, name) + 1) % count})
        assert not torch.equal(picture, render(subject, moved)), name


def test_a_picture_does_not_depend_on_its_batch() -> None:
    generator = torch.Generator().manual_seed(6)
    subjects = sample_subjects(5, "train", generator)
    scenes = sample_reference_scenes(torch.zeros(5, dtype=torch.long), generator)
    alone = render(subjects.take(torch.tensor([3])), scenes.take(torch.tensor([3])))
    assert torch.equal(render(subjects, scenes)[3], alone[0])


def test_a_mask_is_what_no_place_shows_through() -> None:
    generator = torch.Generator().manual_seed(8)
    subjects = sample_subjects(8, "train", generator)
    scenes = sample_scenes(subjects.cls, generator, held_out=False)
    pictures, masks = render_with_masks(subjects, scenes)
    assert torch.equal(pictures, render(subjects, scenes))
    places = torch.stack([render(subjects, replace(scenes, place=torch.full((8,), place))) for place in range(8)])
    spread = places.float().std(0).sum(-1)
    assert masks.shape == (8, 64, 64)
    assert spread[masks == 255].max() <= 2  # rounding alone
    assert spread[masks == 0].min() > 5
    example = _dataset("train")[3]
    assert example.masks[0].size == example.references[0].size
    assert example.masks[0].mode == "L"


@pytest.mark.parametrize("split", ["train", "tune", "test"])
def test_a_copy_is_always_wrong(split: str) -> None:
    data = _dataset(split)
    for index in range(0, 200, 4):
        example = data[index]
        truth = example.extra["truth"]
        asked = {name: truth[name] for name in ("cls", "place", "position", "size", "hat")}
        assert example.prompt == prompt(**asked)
        assert truth["reference_place"] != asked["place"]
        assert example.subject == CLASSES[asked["cls"]]
        combination = torch.tensor([[asked[n]] for n in ("cls", "place", "position", "hat")])
        assert bool(held_out_combination(*combination)) == (split == "test")


def test_examples_depend_on_seed_split_and_index_only() -> None:
    first, second = _dataset("train", size=10)[7], _dataset("train", size=300)[7]
    assert first.key == second.key
    assert first.prompt == second.prompt
    assert first.extra == second.extra
    assert np.array_equal(np.asarray(first.references[0]), np.asarray(second.references[0]))
    for other in (_dataset("train", seed=1)[7], _dataset("tune")[7], _dataset("train")[8]):
        assert other.extra != first.extra
        assert other.key != first.key


@pytest.mark.parametrize("index", [-1, 10])
def test_indices_outside_are_refused(index: int) -> None:
    with pytest.raises(IndexError, match="outside this data set of 10 examples"):
        _dataset("train", size=10)[index]
