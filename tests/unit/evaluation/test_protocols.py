"""What a protocol's name promises, the baselines that stand beside, and that a photo is encoded once."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from customized_grpo.data import dreambench
from customized_grpo.data.dreambench import DreamBench
from customized_grpo.evaluation.baselines import RealPhotos, identity_metrics, reference_copy
from customized_grpo.evaluation.metrics import build_metrics, score
from customized_grpo.evaluation.protocols import PROTOCOLS, find_protocol, group_of
from customized_grpo.evaluation.settings import settings_of
from customized_grpo.evaluation.summary import build_summary, column_means, groups_of
from customized_grpo.evaluation.tables import markdown, notes
from customized_grpo.recipe.config import Evaluate, EvaluateRecipe
from customized_grpo.rewards.clip import ClipI, ClipT
from customized_grpo.rewards.dino import Dino
from customized_grpo.rewards.vision import VisionEncoder
from customized_grpo.types import Example
from dreambench_evaluation import evaluation
from dreambench_folder import SHARED, make_dreambench
from tiny_rewards import save_clip, save_dino

CPU = torch.device("cpu")
ALL, INPUT = "dreambench/uno-all-references", "dreambench/input-reference"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("protocols")
    save_dino(folder / "dino")
    save_clip(folder / "clip")
    return make_dreambench(folder)


def load(root: Path, **options: Any) -> DreamBench:
    return DreamBench(DreamBench.Config(type="dreambench", path=str(root), **options))


def specs(root: Path) -> dict[str, Any]:
    return Evaluate.model_validate(
        {
            "data": {"type": "dreambench", "path": str(root)},
            "metrics": {
                "dino": {"type": "dino", "axis": "identity", "model": str(root / "dino")},
                "clip_i": {"type": "clip_i", "axis": "identity", "model": str(root / "clip")},
                "clip_t": {"type": "clip_t", "axis": "prompt", "model": str(root / "clip")},
            },
        }
    ).metrics


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image))[None]


def test_one_protocol_compares_with_every_photo_and_the_other_with_the_input(root: Path) -> None:
    example = load(root)[0]
    everything = find_protocol(ALL).judged(example)
    assert len(everything.references) == 5
    assert everything.references[0] == example.references[0], "the input stands first"
    photos = {Image.open(path).convert("RGB").tobytes() for path in example.extra["views"]}
    assert {photo.tobytes() for photo in everything.references} == photos
    assert find_protocol(INPUT).judged(example).references == example.references
    assert everything.prompt == example.prompt


def test_all_references_is_the_mean_over_pairs_of_the_public_evaluation(root: Path) -> None:
    """Features normalised, their product, its mean, as UNO's script has it; text clipped at 0 there with w = 1."""
    example, built = load(root)[0], build_metrics(specs(root), CPU)
    image = torch.randint(0, 256, (1, 40, 40, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    found = score(built, find_protocol(ALL).judged(example), image).values
    photos = [Image.open(path).convert("RGB") for path in example.extra["views"]]
    dino, clip_i, clip_t = built["dino"], built["clip_i"], built["clip_t"]
    assert isinstance(dino, Dino) and isinstance(clip_i, ClipI) and isinstance(clip_t, ClipT)  # noqa: PT018
    drawn = [Image.fromarray(image[0].numpy())]
    for name, encode in (("dino", dino._encoder.cls), ("clip_i", clip_i._clip.encode)):
        a, b = (encode(images).double().numpy() for images in (drawn, photos))
        a, b = (one / np.sqrt(np.sum(one**2, axis=1, keepdims=True)) for one in (a, b))
        assert found[name][0] == pytest.approx(100 * np.mean(a @ b.T), abs=1e-3)
    text, picture = clip_t._text(example.prompt).double()[0], clip_t._clip.encode(drawn).double()[0]
    cosine = float(text @ picture / (text.norm() * picture.norm()))
    assert found["clip_t"][0] == pytest.approx(100 * cosine, abs=1e-3)


def test_a_photo_is_encoded_once_for_all_prompts(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[int] = []
    encode = VisionEncoder.cls

    def counted(self: VisionEncoder, images: Any) -> torch.Tensor:
        encoded.append(len(images))
        return encode(self, images)

    monkeypatch.setattr(VisionEncoder, "cls", counted)
    metric = build_metrics({"dino": specs(root)["dino"]}, CPU)
    dataset, protocol = load(root), find_protocol(ALL)
    image = torch.zeros(1, 40, 40, 3, dtype=torch.uint8)
    for index in range(len(dataset)):
        score(metric, protocol.judged(dataset[index]), image)
    assert sum(encoded) == len(dataset) + 25, "a drawn image a prompt, and each of 25 photos once"


@pytest.mark.parametrize(("name", "photos", "others"), [(ALL, 25, 4), (INPUT, 20, 1)])
def test_real_photos_are_judged_against_others_of_their_subject(
    root: Path, name: str, photos: int, others: int
) -> None:
    dataset = load(root)
    oracle = RealPhotos(dataset, len(dataset), find_protocol(name))
    assert len(oracle) == photos
    for index in range(len(oracle)):
        example = oracle[index]
        drawn = Image.fromarray(oracle.draw(index, example)[0].numpy())
        assert len(example.references) == others
        assert drawn not in example.references, "a photo against itself is no evidence"
    assert oracle[0].key.startswith("backpack-photo-0")
    assert len({oracle[index].key for index in range(len(oracle))}) == photos


@pytest.mark.parametrize("name", [ALL, INPUT])
def test_a_photo_that_cannot_be_read_costs_itself_alone(root: Path, tmp_path: Path, name: str) -> None:
    """It stopped the evaluation."""
    broken, gone = tmp_path / "broken.jpg", tmp_path / "gone.jpg"
    broken.write_bytes(b"")
    whole = load(root)[0]
    views = (broken, *whole.extra["views"][:3], gone)
    dataset = [replace(whole, extra={**whole.extra, "views": views})]
    oracle, untouched = (
        RealPhotos(data, 1, find_protocol(name))
        for data in (dataset, [replace(whole, extra={**whole.extra, "views": views[1:4]})])
    )
    assert len(oracle) == len(untouched) > 1
    for index in range(len(oracle)):
        mine, its = oracle[index], untouched[index]
        assert (mine.key, mine.references) == (its.key, its.references)
        assert torch.equal(oracle.draw(index, mine), untouched.draw(index, its))
    seen = find_protocol(name).judged(dataset[0]).references
    assert len(seen) == (3 if name == ALL else 1)
    lost = replace(whole, extra={**whole.extra, "views": (broken,)})
    assert not len(RealPhotos([lost], 1, find_protocol(name)))
    if name == ALL:
        with pytest.raises(ValueError, match="none of its 'views' can be read"):
            find_protocol(name).judged(lost)


def test_real_photos_are_of_the_subjects_evaluated_and_of_one_subject(root: Path) -> None:
    dataset = load(root)
    assert len(RealPhotos(dataset, 20, find_protocol(ALL))) == 5
    pairs = load(root, prompts="multi")
    assert len(RealPhotos(pairs, len(pairs), find_protocol("dreambench-multi/uno-all-references"))) == 0


def test_it_is_said_why_there_are_no_real_photos(root: Path) -> None:
    def absent(data: Any, name: str = ALL) -> str:
        return RealPhotos(data, len(data), find_protocol(name)).absent

    assert absent(load(root)) == absent(load(root), INPUT) == ""
    assert "no photo shows their subjects together" in absent(load(root, prompts="multi"))
    without = [replace(load(root)[0], extra={"subject_id": "backpack"})]
    assert "no example has two photos of its subject" in absent(without)
    reason = {"real_photos": absent(without)}
    summary = build_summary("heldout", {"base": [row("a", "a", 1.0)]}, {}, reason)
    assert summary["absent"] == reason
    assert f"There is no row real_photos: {reason['real_photos']}." in notes(summary)
    assert "There is no row" in markdown(summary)
    assert not [one for one in notes(build_summary("heldout", {})) if "no row" in one]


def test_real_photos_get_the_identity_metrics_alone(root: Path) -> None:
    sections = specs(root)
    assert list(identity_metrics(build_metrics(sections, CPU), sections)) == ["dino", "clip_i"]


@pytest.mark.skipif(not SHARED.is_dir(), reason="DreamBench is not at ../shared/data/dreambench")
def test_baselines_of_the_real_photos(root: Path) -> None:
    """A copy of the input is exactly itself; other photos of the subject are less like it."""
    dataset = load(SHARED, subjects=("backpack_dog", "cat"), per_subject=1)
    metric = build_metrics({"dino": specs(root)["dino"]}, CPU)
    protocol = find_protocol(INPUT)
    for index in range(2):
        copy = score(metric, protocol.judged(dataset[index]), reference_copy(dataset[index], 512, 512))
        assert copy.values["dino"] == pytest.approx([100.0], abs=1e-3)
    oracle = RealPhotos(dataset, 2, protocol)
    values = [score(metric, oracle[i], oracle.draw(i, oracle[i])).values["dino"][0] for i in range(len(oracle))]
    assert max(values) < 99.99


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (ALL, {"extra": {"subject_id": "x"}}, "no 'views'"),
        (INPUT, {"extra": {}}, "averages over subjects.*no 'subject_id'"),
        (ALL, {"references": (Image.new("RGB", (4, 4)),) * 2}, r"for prompts of 1 subject\(s\).* has 2"),
    ],
)
def test_data_that_lack_what_a_protocol_needs_are_refused(
    root: Path, name: str, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        find_protocol(name).judged(replace(load(root)[0], **change))


def test_a_name_of_ones_own_is_plain_and_a_typo_is_refused() -> None:
    plain = find_protocol("heldout")
    assert (plain.references, plain.unit, plain.published) == ("input", "example", ())
    example = Example(key="a", prompt="b", references=(Image.new("RGB", (2, 2)),))
    assert plain.judged(example) is example
    with pytest.raises(ValueError, match="did you mean 'dreambench/uno-all-references'"):
        find_protocol("dreambench/uno-all-reference")


def row(key: str, group: str, value: float | None, **more: Any) -> dict[str, Any]:
    return {"key": key, "prompt": key, "group": group, "index": 0, "image": 0, "values": {"m": value}} | more


def test_macro_average_is_over_subjects_whatever_their_number_of_prompts() -> None:
    rows = [row("a1", "a", 0.0), row("a2", "a", 1.0), row("a3", "a", 2.0), row("b1", "b", 5.0)]
    assert column_means(rows, "m", "subject") == {"a": 1.0, "b": 5.0}
    summary = build_summary(INPUT, {"base": rows, "tuned": [r | {"values": {"m": r["values"]["m"] + 1}} for r in rows]})
    metric = summary["rows"][0]["metrics"]["m"]
    assert (metric["mean"], metric["n"]) == (3.0, 2)
    assert build_summary("heldout", {"base": rows})["rows"][0]["metrics"]["m"]["mean"] == 2.0
    difference = summary["differences"][0]["metrics"]["m"]
    assert (difference["mean"], difference["n"], difference["win_rate"]) == (1.0, 2, 1.0)
    assert groups_of(rows)["a2"] == "a"


def test_runs_of_a_judge_are_summarised_and_failed_items_excluded() -> None:
    rows = [
        row("a", "a", 2.0, runs={"m": [1.0, 3.0]}),
        row("b", "b", 4.0, runs={"m": [4.0, None]}),
    ]
    metric = build_summary("heldout", {"base": rows})["rows"][0]["metrics"]["m"]
    assert metric["mean"] == 3.0
    assert metric["runs"] == [2.5, 3.0]
    assert metric["std"] == pytest.approx(math.sqrt(0.125))
    assert metric["excluded"] == 0.25


def test_published_numbers_stand_beside_their_own_protocol_and_what_departs_is_said() -> None:
    protocol = PROTOCOLS[ALL]
    settings = dict(protocol.canonical) | {"metrics": {"dino_vits16": "facebook/dino-vits16"}}
    assert protocol.departures(settings) == []
    rows = [row("a", "a", 1.0) | {"values": {"dino_vits16": 70.0}}]
    summary = build_summary(ALL, {"base": rows}, settings)
    published = {one["name"]: one["metrics"] for one in summary["published"]}
    assert published["UNO"] == {"dino_vits16": 76.0}
    assert published["Real photos (oracle)"] == {"dino_vits16": 77.4}
    other = build_summary(INPUT, {"base": rows}, settings)["published"]
    assert "UNO" not in {one["name"] for one in other}, "UNO's table is of another protocol"
    assert build_summary("dreambench-multi/uno-all-references", {"base": rows}, settings)["published"] == []
    assert build_summary("heldout", {"base": rows}, settings)["published"] == []
    wrong = settings | {"examples": 64, "metrics": {"dino_vits16": "mini"}}
    assert protocol.departures(wrong) == [
        "examples is 64, not 750",
        "dino_vits16 is measured by mini, not facebook/dino-vits16",
    ]


@pytest.mark.parametrize(
    ("change", "departures"),
    [
        ({}, []),
        ({"axis": "prompt", "weight": 2.0, "batch_size": 7}, []),
        ({"dtype": "bfloat16"}, ["dino_vits16 has dtype bfloat16"]),
        (
            {"segment": "reference", "missing_mask": "skip"},
            ["dino_vits16 has segment reference", "dino_vits16 has missing_mask skip"],
        ),
        ({"type": "clip_i", "model": "facebook/dino-vits16"}, ["dino_vits16 is not of type dino"]),
    ],
)
def test_options_of_a_metric_are_a_departure(root: Path, change: dict[str, Any], departures: list[str]) -> None:
    metric = {"type": "dino", "axis": "identity", "model": "facebook/dino-vits16"} | change
    found = PROTOCOLS[ALL].departures(settings_of_metrics(root, {"dino_vits16": metric}))
    assert [one for one in found if one.startswith("dino")] == departures


def settings_of_metrics(root: Path, metrics: dict[str, Any], **data: Any) -> dict[str, Any]:
    recipe = EvaluateRecipe.model_validate(evaluation(root, root, root))
    section = {"data": {"type": "dreambench", "path": str(root)} | data, "metrics": metrics}
    return settings_of(recipe.policy, recipe.sampling, Evaluate.model_validate(section), 750)


def test_other_photos_and_other_data_are_a_departure(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = {"dino": {"type": "dino", "model": "x"}}
    for name in PROTOCOLS:
        said = PROTOCOLS[name].departures(settings_of_metrics(root, metrics))
        scaled = [one for one in said if one.startswith("photos is other files (158 of 158), not original")]
        assert len(scaled) == name.startswith(("dreambench/", "dreambench-multi/"))
    with monkeypatch.context() as patch:
        patch.setattr(dreambench, "_has_size", lambda file, size: True)
        said = PROTOCOLS[ALL].departures(settings_of_metrics(root, metrics))
        assert not [one for one in said if one.startswith(("photos", "data"))]
    mini = Evaluate.model_validate({"data": {"type": "mini"}, "metrics": metrics})
    recipe = EvaluateRecipe.model_validate(evaluation(root, root, root))
    said = PROTOCOLS[ALL].departures(settings_of(recipe.policy, recipe.sampling, mini, 750))
    assert "data is mini, not dreambench" in said


def test_the_size_in_bytes_tells_a_photo_from_a_scaled_one(root: Path) -> None:
    facts = dreambench.facts()["files"]
    name = "dataset/backpack/00.jpg"
    size, _ = facts[name]
    photo = root / name
    before = photo.read_bytes()
    try:
        photo.write_bytes(before + bytes(size - len(before)))
        assert dreambench.photos(str(root)) == "other files (157 of 158)"
        assert dreambench.photos(str(root / "dataset")) == "other files (157 of 158)"
    finally:
        photo.write_bytes(before)


@pytest.mark.parametrize(
    ("subject_id", "group"),
    [
        ("rex", "rex"), (0, "0"), (["a", "b"], "a+b"), (None, "dog"), ("", "dog"), ("nan", "dog"), ("None", "dog"),
        ([], "dog"), ([None], "dog"), (float("nan"), "dog"),
    ],
)  # fmt: skip
def test_no_id_is_no_individual(subject_id: Any, group: str) -> None:
    """The individual 0 was none, and 'None', which earlier imports wrote for null, was one."""
    example = Example(key="k", prompt="p", references=(), subject="dog", extra={"subject_id": subject_id})
    assert group_of(example) == group
