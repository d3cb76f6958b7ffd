"""DreamBench's lists: against the public lists where the data are, and the rules of their making on a small copy."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from customized_grpo.data.base import Dataset
from customized_grpo.data.dreambench import (
    _REFERENCE,
    DreamBench,
    Prompt,
    Templates,
    multi_list,
    read_templates,
    single_list,
)
from dreambench_folder import CHOSEN, CLASSES, SHARED, make_dreambench, prompts_and_classes

real = pytest.mark.skipif(not SHARED.is_dir(), reason="DreamBench is not at ../shared/data/dreambench")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dreambench(tmp_path_factory.mktemp("dreambench"))


def load(path: Path, **options: Any) -> DreamBench:
    return DreamBench(DreamBench.Config(type="dreambench", path=str(path), **options))


@real
@pytest.mark.parametrize(("name", "key"), [("single", "image"), ("multi", "images")])
def test_the_lists_are_the_public_ones(name: str, key: str) -> None:
    """750 prompts each, in UNO's order, with UNO's references."""
    public = [json.loads(line) for line in (SHARED / f"eval_{name}.jsonl").read_text().splitlines()]
    templates = read_templates((SHARED / "dataset" / "prompts_and_classes.txt").read_text())
    ours = {"single": single_list, "multi": multi_list}[name](templates)
    assert len(public) == len({one.id for one in ours}) == 750
    assert [one.prompt for one in ours] == [row["prompt"] for row in public]
    references = [[row[key]] if isinstance(row[key], str) else row[key] for row in public]
    assert [[f"dataset/{path}" for path in one.references] for one in ours] == references
    classes = [[row["class_name"]] if "class_name" in row else row["class_names"] for row in public]
    assert [list(one.classes) for one in ours] == classes


def digest(prompts: Sequence[Prompt]) -> str:
    lines = [[one.id, one.prompt, one.subjects, one.classes, one.references] for one in prompts]
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest()


def templates_of_all() -> Templates:
    """30 subjects with 25 prompts in words of our own, for the public ones are in the data set alone."""
    subjects = sorted(_REFERENCE)
    classes = {name: name.rstrip("0123456789").replace("_", " ") for name in subjects}
    scenes = [f"a {{}} in place {number}" for number in range(10)]
    attributes = [f"a {word} {{}}" for word in ("red", "old", "big", "wet", "new")]
    return Templates(
        classes,
        *([*scenes, *(f"a {{}} {more} {n}" for n in range(10)), *attributes] for more in ("floating", "wearing hat")),
    )


@pytest.mark.parametrize(
    ("make", "sha256"),
    [
        (single_list, "51321e6d6f53f89388e831b3420260a67b83054a6140f019e231e1889220e22c"),
        (multi_list, "23413aaadc7f42778318b2d31b1cf8c22ad7d9b361dc6f1d04274998943cef45"),
    ],
)
def test_order_references_pairs_and_wording_of_both_lists_are_pinned(
    make: Callable[[Templates], list[Prompt]], sha256: str
) -> None:
    """Held to the public lists above, where these are; here wherever the tests run."""
    prompts = make(templates_of_all())
    assert len(prompts) == 750
    assert digest(prompts) == sha256


@real
@pytest.mark.parametrize(
    ("make", "sha256"),
    [
        (single_list, "2ca497a1c926019e349f2aceec35cde17915d3f7bcc7a7c58dc966975214cebd"),
        (multi_list, "700347bac6b5fdaf069745dc26fbd61dc2fc3ba3cad1dd0586feb8e67d10de6d"),
    ],
)
def test_the_public_lists_are_pinned(make: Callable[[Templates], list[Prompt]], sha256: str) -> None:
    text = (SHARED / "dataset" / "prompts_and_classes.txt").read_text(encoding="utf-8")
    assert digest(make(read_templates(text))) == sha256


@real
def test_every_photo_of_the_real_folder_is_named() -> None:
    examples = load(SHARED)
    assert len(examples) == 750
    photos = {path for i in range(0, 750, 25) for path in examples[i].extra["views"]}
    assert len(photos) == 158


def test_an_example_says_what_an_evaluation_needs(folder: Path) -> None:
    examples: Dataset = load(folder)
    assert len(examples) == 5 * 20
    one = examples[20]
    assert (one.key, one.subject, one.prompt) == ("can-00", "can", "a can in place 0")
    assert one.extra["subject_id"] == "can"
    photos = one.extra["views"]
    assert [Path(path).name for path in photos] == ["00.jpg", "01.jpg", "02.jpg", "03.jpg", "04.jpg"]
    assert one.references[0].size == (40, 40)
    with pytest.raises(IndexError):
        examples[100]


def test_objects_and_live_subjects_have_their_own_prompts() -> None:
    lists = single_list(read_templates(prompts_and_classes()))
    texts = {subject: [one.prompt for one in lists if one.subjects == (subject,)] for subject in CLASSES}
    assert texts["can"][10] == "a can floating on 0"
    assert texts["cat"][10] == "a cat wearing hat 0"
    assert texts["cat"][15] == "a red cat"
    assert {one.references[0] for one in lists} == {f"{name}/{stem}.jpg" for name, stem in CHOSEN.items()}


@pytest.mark.parametrize(
    ("subjects", "texts"),
    [
        (
            ("berry_bowl", "can"),
            ("a bowl and a can in place 0", "a bowl and a can floating on 0", "a red bowl and a red can"),
        ),
        (
            ("cat", "dog"),
            (
                "a cat and a dog in place 0",
                "a cat wearing hat 0, next to it is a dog",
                "a red cat, next to it is a dog",
            ),
        ),
        (
            ("cat", "backpack"),
            (
                "a cat and a backpack in place 0",
                "a cat wearing hat 0, next to it is a backpack",
                "a red cat, next to it is a backpack",
            ),
        ),
    ],
)
def test_two_subjects_share_a_scene_and_an_attribute_goes_to_whom_it_fits(
    subjects: tuple[str, str], texts: tuple[str, ...]
) -> None:
    found = [one.prompt for one in multi_list(read_templates(prompts_and_classes())) if one.subjects == subjects]
    assert tuple(found[i] for i in (0, 10, 15)) == texts


def test_both_references_of_a_pair_are_given(folder: Path) -> None:
    examples = load(folder, prompts="multi")
    one = next(examples[i] for i in range(len(examples)) if examples[i].extra["subject_id"] == "berry_bowl+can")
    assert len(one.references) == 2
    assert len(one.extra["views"]) == 10
    assert one.subject == "bowl and can"


def test_a_slice_takes_every_subject_and_spreads_over_its_prompts(folder: Path) -> None:
    keys = [one.key for one in (load(folder, per_subject=4)[i] for i in range(20))]
    assert keys[:4] == ["backpack-00", "backpack-05", "backpack-10", "backpack-15"]
    assert {key.rpartition("-")[0] for key in keys} == set(CLASSES)
    assert len(load(folder, per_subject=99)) == 100


def test_the_folder_itself_or_its_dataset(folder: Path) -> None:
    assert load(folder)[0].prompt == load(folder / "dataset")[0].prompt


def test_a_copy_that_lacks_subjects_is_refused_until_they_are_left_out(tmp_path: Path) -> None:
    folder = make_dreambench(tmp_path)
    for photo in (folder / "dataset" / "dog").iterdir():
        photo.unlink()
    with pytest.raises(ValueError, match=r"dog/02\.jpg: no such file; fetch the whole of DreamBench"):
        load(folder)
    assert len(load(folder, subjects=("can", "cat"))) == 40
    assert len(load(folder, subjects=("can", "berry_bowl", "cat"), prompts="multi")) == 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subjects": ("backpak",)}, r"given 'backpak'; did you mean 'backpack'\? allowed: backpack, can"),
        (
            {"path": "/nowhere"},
            r"/nowhere: no prompts_and_classes\.txt in it .* data download dreambench",
        ),
    ],
)
def test_bad_settings_are_named(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DreamBench(DreamBench.Config(**({"type": "dreambench", "path": str(folder)} | options)))


@pytest.mark.parametrize("text", ["", "subject_name,class\n\n", prompts_and_classes().replace("Live", "", 1)[:900]])
def test_a_damaged_prompts_file_is_refused(tmp_path: Path, text: str) -> None:
    folder = make_dreambench(tmp_path)
    (folder / "dataset" / "prompts_and_classes.txt").write_text(text)
    with pytest.raises(ValueError, match=r"prompts_and_classes\.txt: it holds \d+ classes and \d prompt lists"):
        load(folder)
