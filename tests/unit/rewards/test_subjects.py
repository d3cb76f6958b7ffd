"""Several subjects in one picture: by known boxes, and by GroundingDINO's own classes on random weights."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BertTokenizer,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
    GroundingDinoProcessor,
)

from customized_grpo.rewards.dino import Dino
from customized_grpo.rewards.segmenter import Detector, views_of_subjects
from customized_grpo.rewards.subjects import Subjects
from customized_grpo.testing import check_reward
from customized_grpo.types import Example
from golden import save_golden_dinov2
from tiny_rewards import check_batch, pictures

CPU = torch.device("cpu")
SIDE = 24
GREY = 128
A, B, C = (pictures(3, seed=7, height=SIDE, width=SIDE)[at].numpy() for at in range(3))
"""Three animals, each a pattern of its own; a picture's places are grey where there is none."""
WHITE = (255, 255, 255)


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_golden_dinov2(tmp_path_factory.mktemp("dinov2"))


@pytest.fixture
def build(dino: Path, segmenter_folders: tuple[Path, Path]) -> Callable[..., Subjects]:
    def made(**options: Any) -> Subjects:
        folders = {"model": str(dino), "detector": str(segmenter_folders[0])}
        section = {"type": "subjects", "axis": "identity", "padding": 0.0, **folders, **options}
        return Subjects(Subjects.Config.model_validate(section), device=CPU)

    return made


def picture(*animals: np.ndarray | None) -> torch.Tensor:
    """One image (1, 28, n * 28, 3) with an animal in each place."""
    canvas = np.full((SIDE + 4, len(animals) * (SIDE + 4), 3), GREY, dtype=np.uint8)
    for at, animal in enumerate(animals):
        if animal is not None:
            canvas[2:-2, at * (SIDE + 4) + 2 : (at + 1) * (SIDE + 4) - 2] = animal
    return torch.from_numpy(canvas)[None]


def knows(*named: tuple[np.ndarray, str]) -> Callable[..., Any]:
    """A detector that knows these animals by their words, twice each: a box, and a less sure one a pixel beside it."""

    def found(self: Detector, image: Image.Image, word: str) -> tuple[torch.Tensor, torch.Tensor]:
        pixels, boxes = np.asarray(image), []
        for left in range(2, image.width, SIDE + 4):
            here = pixels[2:-2, left : left + SIDE]
            if any(np.array_equal(here, animal) and word in words.split() for animal, words in named):
                boxes += [(left, 2, left + SIDE, 2 + SIDE), (left + 1, 2, left + 1 + SIDE, 2 + SIDE)]
        return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), torch.tensor([0.9, 0.5] * (len(boxes) // 2))

    return found


def dogs(*animals: np.ndarray, subject: str = "dog and dog") -> Example:
    references = tuple(Image.fromarray(animal) for animal in animals)
    return Example(key="two", prompt="a dog and a dog", references=references, subject=subject)


@pytest.fixture
def alike(dino: Path) -> Callable[[np.ndarray, np.ndarray], float]:
    """Similarity of two animals alone, by the reward ``dino``."""
    reward = Dino(Dino.Config.model_validate({"type": "dino", "model": str(dino)}), device=CPU)

    def between(one: np.ndarray, other: np.ndarray) -> float:
        return float(reward(dogs(one, subject="dog"), torch.from_numpy(other)[None])[0])

    return between


def score(reward: Subjects, one: Example, image: torch.Tensor) -> float:
    return float(reward(one, image)[0])


def test_two_dogs_and_two_references_in_one_picture(
    build: Callable[..., Subjects],
    alike: Callable[[np.ndarray, np.ndarray], float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Detector, "__call__", knows((A, "dog"), (B, "dog"), (C, "dog")))
    reward, both = build(missing=20.0, surplus=5.0), dogs(A, B)
    assert score(reward, both, picture(A, B)) == pytest.approx(100.0, abs=1e-3)
    assert score(reward, both, picture(B, None, A)) == pytest.approx(100.0, abs=1e-3), "places don't matter"
    assert score(reward, dogs(B, A), picture(A, B)) == pytest.approx(100.0, abs=1e-3)
    assert score(reward, both, picture(A, A)) == pytest.approx((100.0 + alike(A, B)) / 2, abs=1e-3), "one dog twice"
    crossed = max(alike(A, B) + alike(B, C), alike(A, C) + alike(B, B))
    assert score(reward, both, picture(C, B)) == pytest.approx(crossed / 2, abs=1e-3), "one dog exchanged"
    assert score(reward, both, picture(A, None)) == pytest.approx((100.0 - 20.0) / 2, abs=1e-3), "one is missing"
    assert score(reward, both, picture(None, None)) == pytest.approx(-20.0), "both are"
    assert score(reward, both, picture(C, A, B)) == pytest.approx((200.0 - 5.0) / 2, abs=1e-3), "one too many"
    assert score(reward, both, picture(B, A, B, A)) == pytest.approx((200.0 - 10.0) / 2, abs=1e-3)
    free = build(missing=0.0, surplus=0.0)
    assert score(free, both, picture(C, A, B)) == pytest.approx(100.0, abs=1e-3)
    assert score(free, both, picture(A, None)) == pytest.approx(50.0, abs=1e-3), "it adds nothing to the mean"


def test_a_word_is_no_other_words_subject(
    build: Callable[..., Subjects],
    alike: Callable[[np.ndarray, np.ndarray], float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Detector, "__call__", knows((A, "dog"), (B, "cat"), (C, "cat")))
    reward, pets = build(), dogs(A, B, subject="dog and cat")
    assert score(reward, pets, picture(B, A)) == pytest.approx(100.0, abs=1e-3)
    swapped = dogs(A, B, subject="cat and dog")
    expected = (alike(A, B) + alike(B, A)) / 2
    assert score(reward, swapped, picture(A, B)) == pytest.approx(expected, abs=1e-3), "a dog that looks like the cat"
    assert score(reward, pets, picture(B, C)) == pytest.approx((100.0 - 10.0 - 10.0) / 2, abs=1e-3), "two cats, no dog"


def test_one_animal_of_two_words_is_one_subject(
    build: Callable[..., Subjects], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Detector, "__call__", knows((A, "dog pet"), (B, "pet")))
    reward, pets = build(), dogs(A, B, subject="dog and pet")
    assert score(reward, pets, picture(A, B)) == pytest.approx(100.0, abs=1e-3)
    assert score(reward, pets, picture(A)) == pytest.approx((100.0 - 10.0) / 2, abs=1e-3), "it isn't its own pet"


def test_boxes_that_overlap_less_are_two_subjects(
    build: Callable[..., Subjects], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second box of each animal, a pixel beside the first, covers 23 of 25 columns."""
    monkeypatch.setattr(Detector, "__call__", knows((A, "dog")))
    one = dogs(A, subject="dog")
    assert score(build(overlap=0.9), one, picture(A)) == pytest.approx(100.0, abs=1e-3)
    assert score(build(overlap=0.95), one, picture(A)) == pytest.approx(90.0, abs=1e-3)


def test_pictures_of_one_subject_are_views(
    build: Callable[..., Subjects],
    alike: Callable[[np.ndarray, np.ndarray], float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Detector, "__call__", knows((A, "dog"), (B, "dog")))
    same = dogs(A, B, subject="dog")
    assert score(build(), same, picture(A)) == pytest.approx((100.0 + alike(A, B)) / 2, abs=1e-3)
    listed = replace(same, extra={"subjects": ["dog", "dog"]})
    assert score(build(), listed, picture(A)) == pytest.approx(45.0, abs=1e-3)


@pytest.mark.parametrize(
    ("subject", "extra", "count", "expected"),
    [
        ("dog", {}, 2, [("dog", [0, 1])]),
        ("dog and dog", {}, 2, [("dog", [0]), ("dog", [1])]),
        ("pets", {"subjects": ["dog", "dog", "cat"]}, 3, [("dog", [0]), ("dog", [1]), ("cat", [2])]),
        ("salt and pepper", {}, 1, [("salt and pepper", [0])]),
        ("", {}, 1, [("", [0])]),
    ],
)
def test_views_of_subjects(
    subject: str, extra: dict[str, Any], count: int, expected: list[tuple[str, list[int]]]
) -> None:
    assert views_of_subjects(subject, extra, count) == expected


def by_the_processor(folder: Path, image: Image.Image, word: str, threshold: float) -> torch.Tensor:
    """All boxes of a word, as transformers' own processor makes them; no two overlap above one half."""
    find = GroundingDinoProcessor(
        GroundingDinoImageProcessorPil.from_pretrained(folder), BertTokenizer.from_pretrained(folder)
    )
    inputs = find(images=image, text=[[word]], return_tensors="pt")
    with torch.no_grad():
        output = GroundingDinoForObjectDetection.from_pretrained(folder).eval()(**inputs)
    (found,) = find.post_process_grounded_object_detection(
        output, inputs["input_ids"], threshold=threshold, target_sizes=[(image.height, image.width)]
    )
    order = found["scores"].argsort(descending=True)
    limits = torch.tensor([image.width, image.height] * 2)
    return torch.minimum(found["boxes"][order].clamp(min=0), limits)


IMAGES = pictures(4, seed=5, height=80, width=100)


@pytest.mark.parametrize("threshold", [0.3, 0.5])
def test_all_boxes_are_found_that_the_library_finds(segmenter_folders: tuple[Path, Path], threshold: float) -> None:
    detector = Detector(str(segmenter_folders[0]), None, threshold, device=CPU)
    numbers = []
    for pixels in IMAGES:
        image = Image.fromarray(pixels.numpy())
        boxes, confidence = detector(image, " Dog. ")
        torch.testing.assert_close(boxes, by_the_processor(segmenter_folders[0], image, "dog", threshold))
        assert bool((confidence >= threshold).all())
        assert bool((confidence.diff() <= 0).all())
        numbers.append(len(boxes))
    assert max(numbers) > 1


def apart(boxes: torch.Tensor, overlap: float) -> list[torch.Tensor]:
    """Boxes of which none covers a surer one, by counting the points of a grid in both."""
    y, x = torch.meshgrid(torch.arange(0.05, 80, 0.1), torch.arange(0.05, 100, 0.1), indexing="ij")
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []
    for box in boxes:
        inside = (x >= box[0]) & (x < box[2]) & (y >= box[1]) & (y < box[3])
        if all(float((inside & other).sum() / (inside | other).sum()) <= overlap for _, other in kept):
            kept.append((box, inside))
    return [box for box, _ in kept]


def test_by_the_librarys_own_boxes_and_all_ways_to_pair(
    build: Callable[..., Subjects], dino: Path, segmenter_folders: tuple[Path, Path]
) -> None:
    """The whole reward again: transformers' boxes, crops by numpy, the reward ``dino``, and every permutation."""
    reward = build(threshold=0.3, overlap=0.4, missing=11.0, surplus=3.0)
    two = dogs(*(image.numpy() for image in pictures(2, seed=9, height=40, width=40)))
    whole = Dino(Dino.Config.model_validate({"type": "dino", "model": str(dino)}), device=CPU)
    expected, numbers = [], []
    for pixels in IMAGES:
        image = Image.fromarray(pixels.numpy())
        boxes = apart(by_the_processor(segmenter_folders[0], image, "dog", 0.3), 0.4)
        rows = [[100.0 * one for one in _similarities(whole, reference, image, boxes)] for reference in two.references]
        expected.append(_best(np.array(rows), 11.0, 3.0))
        numbers.append(len(boxes))
    assert max(numbers) > 2, "some have subjects to choose from"
    torch.testing.assert_close(reward(two, IMAGES), torch.tensor(expected, dtype=torch.float32), rtol=0, atol=1e-2)


def _similarities(
    whole: Dino, reference: Image.Image, image: Image.Image, boxes: Sequence[torch.Tensor]
) -> list[float]:
    found = []
    for box in boxes:
        left, top, right, bottom = box.tolist()
        inner = image.crop((int(np.floor(left)), int(np.floor(top)), int(np.ceil(right)), int(np.ceil(bottom))))
        side = max(inner.size)
        square = Image.new("RGB", (side, side), WHITE)
        square.paste(inner, ((side - inner.width) // 2, (side - inner.height) // 2))
        one = Example(key="k", prompt="p", references=(reference,))
        found.append(float(whole(one, torch.from_numpy(np.asarray(square).copy())[None])[0]) / 100.0)
    return found


def _best(similarity: np.ndarray, missing: float, surplus: float) -> float:
    wanted, found = similarity.shape
    totals = []
    for order in permutations(range(found + wanted), wanted):
        pairs = [(row, column) for row, column in enumerate(order) if column < found]
        totals.append(
            sum(similarity[pair] for pair in pairs) - missing * (wanted - len(pairs)) - surplus * (found - len(pairs))
        )
    return float(max(totals)) / wanted


def masked(*animals: np.ndarray) -> Example:
    mask = np.zeros((SIDE, SIDE), dtype=np.uint8)
    mask[4:20, 2:17] = 255
    return replace(dogs(*animals), masks=(Image.fromarray(mask),) * len(animals))


def test_found_subjects_are_cut_out_by_sam(
    build: Callable[..., Subjects],
    dino: Path,
    segmenter_folders: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of one reference and one box it is ``dino`` with ``segment: both``."""
    detector, sam = map(str, segmenter_folders)
    all_boxes = Detector.__call__
    monkeypatch.setattr(Detector, "__call__", lambda *given: tuple(part[:1] for part in all_boxes(*given)))
    shared = {"segment": "both", "background": [0, 9, 0], "padding": 0.2, "model": str(dino)}
    both = {**shared, "crop": True, "segmenter": {"detector": detector, "sam": sam, "threshold": 0.05}}
    one = replace(masked(A), subject="dog")
    expected = Dino(Dino.Config.model_validate({"type": "dino", **both}), device=CPU)(one, IMAGES)
    scores = build(**shared, threshold=0.05, sam=sam)(one, IMAGES)
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-3)
    boxed = build(**{**shared, "segment": "reference"}, threshold=0.05)(one, IMAGES)
    assert not torch.allclose(boxed, expected, atol=0.1)


@pytest.mark.parametrize("options", [{}, {"segment": "reference"}, {"segment": "both"}])
def test_it_conforms(
    build: Callable[..., Subjects], segmenter_folders: tuple[Path, Path], options: dict[str, Any]
) -> None:
    sam = {"sam": str(segmenter_folders[1])} if options.get("segment") == "both" else {}
    reward = build(threshold=0.3, padding=0.1, batch_size=3, **options, **sam)
    check_reward(reward, masked(A, B), IMAGES)
    check_batch(build(threshold=0.3, batch_size=12, **options, **sam), masked(A, B), pictures(12, seed=5, height=60))


def test_a_missing_mask_is_an_error_or_a_skip(build: Callable[..., Subjects]) -> None:
    half = replace(masked(A, B), masks=(masked(A).masks[0], None))
    with pytest.raises(ValueError, match=r"'two' has 1 usable masks for 2 references.*data masks"):
        build(segment="reference")(half, picture(A, B))
    reward = build(segment="reference", missing_mask="skip")
    assert reward(half, picture(A, B)).isnan().all()
    assert "missing_mask: skip" in reward.reason
    assert build(segment="none")(half, picture(A, B)).isfinite().all(), "nothing is cut"


def test_boxes_make_a_reference_of_each_subject(
    build: Callable[..., Subjects], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Detector, "__call__", knows((A, "dog"), (B, "dog")))
    together = Image.fromarray(picture(A, B)[0].numpy())
    boxes = {"boxes": [[[2, 2, 2 + SIDE, 2 + SIDE], [6 + SIDE, 2, 6 + 2 * SIDE, 2 + SIDE]]]}
    one = Example(key="pair", prompt="p", references=(together,), subject="dog and dog", extra=boxes)
    assert score(build(boxes=True), one, picture(B, A)) == pytest.approx(100.0, abs=1e-3)


def test_it_needs_a_word_for_each(build: Callable[..., Subjects]) -> None:
    with pytest.raises(ValueError, match=r"'two'.*class word.*'subject'"):
        build()(dogs(A, B, subject=""), picture(A, B))
    assert build().__class__.Config(type="subjects").needs() == {"reference", "subject"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"segment": "both"}, "sam: given None with segment: both"),
        ({"sam": "facebook/sam-vit-base"}, "with segment: none.*need none"),
        ({"sam_revision": "main"}, "sam_revision: has no effect"),
        ({"missing_mask": "skip"}, "missing_mask: has no effect.*segment"),
        ({"overlap": 1.0}, "overlap"),
        ({"missing": -1.0}, "missing"),
        ({"surplus": -1.0}, "surplus"),
        ({"crop": True}, "crop"),
    ],
)
def test_what_would_do_nothing_is_refused(
    build: Callable[..., Subjects], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build(**options)
