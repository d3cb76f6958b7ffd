"""DINO on subjects that are cut out, and the penalty on copied backgrounds."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from customized_grpo.rewards.base import RewardFailure
from customized_grpo.rewards.cutout import cut_out
from customized_grpo.rewards.dino import Dino
from customized_grpo.rewards.segmenter import Segmenter, SegmenterConfig
from customized_grpo.scoring.scorer import Scorer
from customized_grpo.testing import check_reward
from customized_grpo.types import Example
from golden import save_golden_dino, save_golden_dinov2
from tiny_rewards import check_batch, example, pictures

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_golden_dinov2(tmp_path_factory.mktemp("dinov2"))


def build(folder: Path, **options: Any) -> Dino:
    section = {"type": "dino", "axis": "identity", "model": str(folder), **options}
    return Dino(Dino.Config.model_validate(section), device=CPU)


def oval(size: tuple[int, int]) -> Image.Image:
    x, y = np.meshgrid(np.linspace(-1, 1, size[0]), np.linspace(-1, 1, size[1]))
    return Image.fromarray(np.where(x**2 + (1.5 * y) ** 2 < 0.4, 255, 0).astype(np.uint8))


def masked(num_references: int = 2) -> Example:
    one = example(num_references)
    return replace(one, masks=tuple(oval(reference.size) for reference in one.references))


@pytest.mark.parametrize("crop", [False, True])
def test_the_reference_is_cut_out_and_the_image_is_not(folder: Path, crop: bool) -> None:
    one, images = masked(), pictures(3)
    cut = [
        cut_out(image, mask, background=(10, 20, 30), crop=crop, padding=0.1)
        for image, mask in zip(one.references, one.masks, strict=True)
        if mask is not None
    ]
    expected = build(folder)(replace(one, references=tuple(cut), masks=()), images)
    scores = build(folder, segment="reference", background=[10, 20, 30], crop=crop)(one, images)
    assert torch.equal(scores, expected)
    assert not torch.allclose(scores, build(folder)(one, images), atol=0.1)


def test_masks_do_not_matter_where_nothing_is_cut(folder: Path) -> None:
    assert torch.equal(build(folder)(masked(), pictures(3)), build(folder)(example(2), pictures(3)))


MISSING: Mapping[str, Example] = {
    "no masks": example(2),
    "one of two": replace(masked(), masks=(masked().masks[0], None)),
    "an empty one": replace(masked(), masks=(masked().masks[0], Image.new("L", masked().references[1].size))),
}


@pytest.mark.parametrize("one", MISSING.values(), ids=MISSING.keys())
@pytest.mark.parametrize("options", [{"segment": "reference"}, {"copy_penalty": 0.5}])
def test_a_missing_mask_is_an_error_or_a_skip(folder: Path, one: Example, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"'dog-1' has [01] usable masks for 2 references.*data masks"):
        build(folder, **options)(one, pictures(2))
    reward = build(folder, **options, missing_mask="skip")
    scores = reward(one, pictures(2))
    assert scores.isnan().all()
    assert scores.shape == (2,)
    with (
        Scorer({"dino": reward}, max_failed_share=0.0) as scorer,
        pytest.raises(RewardFailure, match=r"it has [01] usable masks for 2 references.*data masks"),
    ):
        scorer.submit(one, pictures(2)).result()


@pytest.mark.parametrize(
    ("masks", "message"),
    [((Image.new("L", (3, 3), 255),) * 2, r"a mask is \(3, 3\)"), ((None,), "has 1 masks for 2 references")],
)
def test_masks_of_other_pictures_are_refused(folder: Path, masks: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(folder, segment="reference", missing_mask="skip")(replace(masked(), masks=masks), pictures(2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": True}, "crop: has no effect"),
        ({"background": [0, 0, 0]}, "background: has no effect"),
        ({"segment": "reference", "padding": 0.3}, "padding: has no effect.*crop: true"),
        ({"missing_mask": "skip"}, "missing_mask: has no effect.*copy_penalty"),
        ({"segment": "both"}, "needs a segmenter"),
        ({"segment": "reference", "segmenter": {}}, "needs a segmenter"),
        ({"segment": "reference", "not_found": "lowest"}, "not_found: has no effect.*segment: both"),
        ({"segment": "image"}, "segment"),
        ({"segment": "reference", "background": [0, 0, 256]}, "background"),
        ({"segment": "reference", "background": [0, 0]}, "background"),
        ({"copy_penalty": -1.0}, "copy_penalty"),
    ],
)
def test_what_would_do_nothing_is_refused(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(folder, **options)


def scene(subject: int, place: int) -> Image.Image:
    """A disc in front of stripes; both have patterns of their own."""
    x, y = np.meshgrid(np.arange(64), np.arange(64))
    draw = np.random.default_rng(place)
    waves = [np.sin(x * draw.uniform(0.1, 1.2) + y * draw.uniform(0.1, 1.2) + at) for at in range(3)]
    picture = 128 + 120 * np.stack(waves, axis=2)
    colour = np.random.default_rng(100 + subject).integers(0, 255, 3)
    picture[(x - 32) ** 2 + (y - 32) ** 2 < 144] = colour
    return Image.fromarray(picture.astype(np.uint8))


@pytest.mark.parametrize("save", [save_golden_dinov2, save_golden_dino])
def test_the_penalty_is_largest_for_a_copied_background(tmp_path: Path, save: Any) -> None:
    folder = save(tmp_path)
    x, y = np.meshgrid(np.arange(64), np.arange(64))
    mask = Image.fromarray(np.where((x - 32) ** 2 + (y - 32) ** 2 < 144, 255, 0).astype(np.uint8))
    one = Example(key="a", prompt="p", references=(scene(0, 0),), masks=(mask,))
    # the reference itself, another subject in its place, and its subject in two other places
    drawn = [scene(0, 0), scene(1, 0), scene(0, 1), scene(0, 2)]
    images = torch.from_numpy(np.stack([np.asarray(image) for image in drawn]))
    plain, charged = build(folder)(one, images), build(folder, copy_penalty=0.5)(one, images)
    background = (plain - charged) / 0.5
    assert background[0] == pytest.approx(100.0, abs=1e-3)
    assert background[1] < 100.0
    assert background[1] > max(background[2:])
    assert bool((background.abs() <= 100.001).all())


def test_a_reference_without_background_adds_nothing(folder: Path) -> None:
    one = masked(1)
    full = replace(one, masks=(Image.new("L", one.references[0].size, 255),))
    assert torch.equal(build(folder, copy_penalty=2.0)(full, pictures(2)), build(folder)(one, pictures(2)))


@pytest.mark.parametrize(
    "options",
    [
        {"segment": "reference", "crop": True},
        {"copy_penalty": 0.3},
        {"segment": "reference", "copy_penalty": 1},
    ],
)
def test_it_conforms(folder: Path, options: dict[str, Any]) -> None:
    check_reward(build(folder, **options), masked(), pictures(4))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"segment": "reference"},
        {"segment": "reference", "crop": True},
        {"copy_penalty": 0.5},
        {"segment": "reference", "copy_penalty": 0.5},
    ],
)
def test_twelve_images_in_one_batch_are_twelve_alone(folder: Path, options: dict[str, Any]) -> None:
    check_batch(build(folder, batch_size=12, **options), masked(), pictures(12))


def test_twelve_cut_out_images_in_one_batch_are_twelve_alone(
    folder: Path, segmenter_folders: tuple[Path, Path]
) -> None:
    detector, sam = map(str, segmenter_folders)
    options = {"detector": detector, "sam": sam, "threshold": 0.05}
    reward = build(folder, batch_size=12, segment="both", segmenter=options)
    check_batch(reward, replace(masked(), subject="bag and dog"), pictures(12, height=60, width=60))


def test_both_cuts_each_subject_out_of_each_image(folder: Path, segmenter_folders: tuple[Path, Path]) -> None:
    detector, sam = map(str, segmenter_folders)
    options = {"detector": detector, "sam": sam, "threshold": 0.05}
    one, images = replace(masked(), subject="bag and dog"), pictures(3, height=60, width=60)
    reward = build(folder, segment="both", segmenter=options)
    segmenter = Segmenter(SegmenterConfig.model_validate(options), device=CPU)
    alone = build(folder)
    expected = torch.zeros(3)
    for reference, mask, word in zip(one.references, one.masks, ("bag", "dog"), strict=True):
        assert mask is not None
        cut = cut_out(reference, mask, background=(255, 255, 255), crop=False, padding=0.1)
        for at, image in enumerate(images):
            picture = Image.fromarray(image.numpy())
            found = segmenter(picture, word)
            assert found is not None
            seen = cut_out(picture, found, background=(255, 255, 255), crop=False, padding=0.1)
            pair = Example(key="b", prompt="p", references=(cut,))
            expected[at] += alone(pair, torch.from_numpy(np.asarray(seen).copy())[None])[0] / 2
    torch.testing.assert_close(reward(one, images), expected, rtol=0, atol=1e-4)
    check_reward(reward, one, images)


def test_an_image_without_the_subject_is_as_unlike_as_can_be_or_unscored(
    folder: Path, segmenter_folders: tuple[Path, Path]
) -> None:
    detector, sam = map(str, segmenter_folders)
    never = {"detector": detector, "sam": sam, "threshold": 0.999}
    one = replace(masked(), subject="dog")
    lowest = build(folder, segment="both", segmenter=never, not_found="lowest")
    assert lowest(one, pictures(2)).tolist() == [-100.0, -100.0]
    skipping = build(folder, segment="both", segmenter=never)
    assert skipping(one, pictures(2)).isnan().all()
    assert "finds no 'dog'" in skipping.reason


def test_one_subject_of_two_that_is_lost_costs_its_half(
    folder: Path, segmenter_folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    detector, sam = map(str, segmenter_folders)
    options = {"detector": detector, "sam": sam, "threshold": 0.05}
    one, images = replace(masked(), subject="bag and dog"), pictures(2, height=60, width=60)
    reward = build(folder, segment="both", segmenter=options, not_found="lowest")
    both = reward(one, images)
    find = Segmenter.__call__
    monkeypatch.setattr(
        Segmenter,
        "__call__",
        lambda self, image, subject: None if subject == "dog" else find(self, image, subject),
    )
    lost = reward(one, images)
    bag = replace(one, references=one.references[:1], masks=one.masks[:1], subject="bag")
    torch.testing.assert_close(lost, (reward(bag, images) - 100.0) / 2)
    assert bool((lost < both).all())


def test_both_needs_a_word_to_look_for(folder: Path, segmenter_folders: tuple[Path, Path]) -> None:
    detector, sam = map(str, segmenter_folders)
    with pytest.raises(ValueError, match="give the example a 'subject'"):
        build(folder, segment="both", segmenter={"detector": detector, "sam": sam})(masked(), pictures(1))


def test_one_box_is_not_two_dogs(folder: Path, segmenter_folders: tuple[Path, Path]) -> None:
    detector, sam = map(str, segmenter_folders)
    reward = build(folder, segment="both", segmenter={"detector": detector, "sam": sam, "threshold": 0.05})
    for two in ({"subject": "dog and dog"}, {"subject": "pets", "extra": {"subjects": ["dog", "dog"]}}):
        with pytest.raises(ValueError, match=r"'dog-1' has two subjects of the word 'dog'.*type: subjects"):
            reward(replace(masked(), **two), pictures(1))  # type: ignore[arg-type]
    assert reward(replace(masked(), subject="dog"), pictures(1)).isfinite().all(), "two views of one dog"


BOXES = {"boxes": [[[0, 0, 15, 20], [10, 5, 30, 36]], None]}


@pytest.mark.parametrize("options", [{}, {"segment": "reference", "crop": True}, {"copy_penalty": 0.5}])
def test_boxes_make_a_reference_of_each_subject(folder: Path, options: dict[str, Any]) -> None:
    one, images = masked(), pictures(3)
    cut: dict[str, tuple[Image.Image, ...]] = {
        name: (first.crop((0, 0, 15, 20)), first.crop((10, 5, 30, 36)), second)
        for name, (first, second) in {"references": one.references, "masks": one.masks}.items()  # type: ignore[dict-item, union-attr]
    }
    boxed = replace(one, extra=BOXES)
    scores = build(folder, boxes=True, **options)(boxed, images)
    assert torch.equal(scores, build(folder, **options)(replace(one, **cut), images))
    plain = build(folder, **options)(one, images)
    assert not torch.allclose(scores, plain, atol=1e-2)
    assert torch.equal(build(folder, **options)(boxed, images), plain), "nobody asked for them"
    assert torch.equal(build(folder, boxes=True, **options)(one, images), plain), "there are none"


@pytest.mark.parametrize(
    "boxes",
    [
        [None],
        "0 0 5 5",
        [[[0, 0, 31, 5]], None],
        [[[5, 0, 5, 5]], None],
        [[[0.0, 0, 5, 5]], None],
        [[0, 0, 5, 5], None],
    ],
)
def test_boxes_that_do_not_fit_are_refused(folder: Path, boxes: object) -> None:
    with pytest.raises(ValueError, match=r"example 'dog-1'.*give .*\[x0, y0, x1, y1\]"):
        build(folder, boxes=True)(replace(masked(), extra={"boxes": boxes}), pictures(2))
