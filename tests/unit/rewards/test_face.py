"""Faces: on tiny graphs against OpenCV's own recogniser and ONNX's own runtime; who is whom, and what is refused."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx.reference
import pytest
import torch
from PIL import Image
from torch import Tensor

from customized_grpo.identity.hashes import FileHashes
from customized_grpo.identity.sections import identified
from customized_grpo.rewards.face import Face, paired_similarity
from customized_grpo.testing import check_reward
from customized_grpo.types import Example
from tiny_face import STRIDES, picture, save_detector, save_embedder
from tiny_rewards import check_batch

CPU = torch.device("cpu")
ANN, BOB, CEM, DOT = 1, 2, 9, 5  # the tiny embedder tells these apart
LEFT, RIGHT = (72, 92), (184, 100)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("faces")
    return {
        "model": str(save_embedder(folder / "embedder.onnx")),
        "detector": str(save_detector(folder / "detector.onnx")),
    }


def build(files: dict[str, str], **options: Any) -> Face:
    section = {"type": "face", "axis": "identity", "normalization": "sface", **files, **options}
    return Face(Face.Config.model_validate(section), device=CPU)


def of(*references: Image.Image, subject: str = "woman") -> Example:
    return Example(key="row-1", prompt="a portrait", references=references, subject=subject)


def stacked(pictures: Sequence[Image.Image]) -> Tensor:
    return torch.from_numpy(np.stack([np.asarray(one) for one in pictures]))


def bgr(image: Image.Image) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(image)[:, :, ::-1])


def alone(person: int, side: int = 72, at: tuple[int, int] = (104, 92)) -> Image.Image:
    return picture((person, *at, side))


def portraits(count: int) -> Tensor:
    return stacked([alone(10 + n, side=60 + 4 * n, at=(96 + 8 * n % 40, 88)) for n in range(count)])


def faces_by_opencv(detector: str, image: Image.Image) -> np.ndarray:
    finder = cv2.FaceDetectorYN.create(detector, "", image.size, 0.9)
    found: np.ndarray = finder.detect(bgr(image))[1]
    return found


def test_with_sfaces_constants_it_is_opencvs_own_recognizer(files: dict[str, str]) -> None:
    recognizer = cv2.FaceRecognizerSF.create(files["model"], "")

    def feature(image: Image.Image) -> np.ndarray:
        (face,) = faces_by_opencv(files["detector"], image)
        return recognizer.feature(recognizer.alignCrop(bgr(image), face)).copy()

    def match(a: np.ndarray, b: np.ndarray) -> float:
        return recognizer.match(a.copy(), b.copy(), cv2.FaceRecognizerSF_FR_COSINE)  # it normalises what it is given

    one, images = of(alone(ANN), alone(ANN, side=90)), portraits(4)
    wanted = [feature(image) for image in one.references]
    given = [feature(Image.fromarray(image)) for image in images.numpy()]
    expected = [100.0 * np.mean([match(image, reference) for reference in wanted]) for image in given]
    reward = build(files)
    scores = reward(one, images)
    torch.testing.assert_close(scores, torch.tensor(expected, dtype=torch.float32), rtol=0, atol=1e-3)
    assert scores.std() > 5.0
    assert float(reward(one, stacked([one.references[0]]))[0]) > 95.0
    check_reward(reward, one, images)
    check_batch(build(files), one, portraits(12))


ARCFACE = ((38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041))
"""Where InsightFace puts eyes, nose and corners of the mouth in 112 x 112 pixels."""


def by_insightface(image: Image.Image, face: np.ndarray) -> np.ndarray:
    """InsightFace's way: the similarity transform of least squares to its template, and RGB from -1 to 1."""
    landmarks = face[4:14].reshape(5, 2).astype(np.float64)
    equations = [((x, -y, 1, 0), (y, x, 0, 1)) for x, y in landmarks]
    a, b, left, top = np.linalg.lstsq(np.concatenate(equations), np.array(ARCFACE).reshape(-1))[0]
    aligned = cv2.warpAffine(bgr(image), np.array([[a, -b, left], [b, a, top]]), (112, 112))
    rgb: np.ndarray = (aligned[:, :, ::-1].transpose(2, 0, 1)[None].astype(np.float32) - 127.5) / 127.5
    return rgb


def test_with_arcfaces_constants_it_is_insightfaces_way_through_another_runtime(
    files: dict[str, str], tmp_path: Path
) -> None:
    arcface = {**files, "model": str(save_embedder(tmp_path / "arcface.onnx", span=2.0))}
    runtime = onnx.reference.ReferenceEvaluator(arcface["model"])

    def feature(image: Image.Image) -> np.ndarray:
        (face,) = faces_by_opencv(files["detector"], image)
        (row,) = runtime.run(None, {"data": by_insightface(image, face)})[0]
        unit: np.ndarray = row / np.linalg.norm(row)
        return unit

    one, images = of(alone(ANN)), portraits(4)
    expected = [100.0 * feature(Image.fromarray(image)) @ feature(one.references[0]) for image in images.numpy()]
    scores = build(arcface, normalization="arcface")(one, images)
    torch.testing.assert_close(scores, torch.tensor(np.array(expected)).float(), rtol=0, atol=0.5)
    assert scores.std() > 5.0
    with pytest.raises(ValueError, match=r"NaN or infinite .* of a reference; .* another normalization than sface"):
        build(arcface, normalization="sface")(one, images)


def test_each_person_has_one_face_wherever_it_is(files: dict[str, str]) -> None:
    """Right, swapped, a stranger, one face twice."""
    one = of(alone(ANN), alone(BOB), subject="woman and man")
    right, swapped, stranger, twice = build(files)(
        one,
        stacked(
            [picture((a, *LEFT, 72), (b, *RIGHT, 72)) for a, b in ((ANN, BOB), (BOB, ANN), (ANN, CEM), (ANN, ANN))]
        ),
    ).tolist()
    assert right > 95.0
    assert swapped == pytest.approx(right, abs=2.0)
    assert stranger < right - 5.0
    assert twice < right - 5.0


def test_missing_and_surplus_faces_cost_what_the_recipe_says(files: dict[str, str]) -> None:
    two = of(alone(ANN), alone(BOB), subject="woman and man")
    images = stacked([picture((ANN, *LEFT, 72)), picture((ANN, *LEFT, 72), (BOB, *RIGHT, 72), (CEM, 128, 24, 36))])
    missing, surplus = build(files, missing=0)(two, images).tolist()
    both = build(files)(two, stacked([picture((ANN, *LEFT, 72), (BOB, *RIGHT, 72))]))[0]
    assert surplus == pytest.approx(float(both), abs=1e-3)
    assert missing == pytest.approx(float(both) / 2, abs=2.0)
    penalised = build(files, missing=7, surplus=5)(two, images).tolist()
    assert penalised == pytest.approx([missing - 3.5, surplus - 2.5], abs=1e-3)


def test_of_one_person_the_largest_face_counts(files: dict[str, str]) -> None:
    """As in InsightFace's metrics; the best of many faces would pay for a crowd."""
    one = of(alone(ANN))
    small, large = picture((ANN, *LEFT, 90), (BOB, *RIGHT, 50)), picture((ANN, *LEFT, 50), (BOB, *RIGHT, 90))
    first, second = build(files)(one, stacked([small, large])).tolist()
    assert first > 95.0
    assert second == pytest.approx(float(build(files)(one, stacked([alone(BOB, side=90, at=RIGHT)]))[0]), abs=1e-3)
    assert second < first - 5.0
    assert build(files, surplus=4)(one, stacked([small]))[0] == pytest.approx(first - 4.0, abs=1e-3)


def test_of_a_reference_the_largest_face_is_the_person(files: dict[str, str]) -> None:
    crowded, image = picture((BOB, *RIGHT, 40), (ANN, *LEFT, 90)), stacked([alone(CEM)])
    plain = build(files)(of(picture((ANN, *LEFT, 90))), image)
    assert torch.equal(build(files)(of(crowded), image), plain)


@pytest.mark.parametrize(
    ("similarity", "score"),
    [
        ([[50.0]], 50.0),
        ([[50.0, 90.0]], 49.0),
        ([[-40.0]], -40.0),
        ([[10.0, 60.0], [70.0, 65.0]], 65.0),
        ([[60.0], [20.0]], (60.0 - 8.0) / 2),
        ([[60.0, 10.0, 0.0, 0.0], [20.0, 30.0, 99.0, 0.0]], (90.0 - 2.0) / 2),
    ],
)
def test_the_best_pairs_of_the_largest_faces_are_counted(similarity: list[list[float]], score: float) -> None:
    assert paired_similarity(torch.tensor(similarity), missing=8.0, surplus=1.0) == pytest.approx(score)


def test_an_image_without_a_face_is_unscored_or_the_lowest(files: dict[str, str]) -> None:
    one, images = of(alone(ANN)), stacked([alone(ANN), picture()])
    reward = build(files)
    scores = reward(one, images)
    assert scores.isnan().tolist() == [False, True]
    assert "no face in it (not_found: skip)" in reward.reason
    assert build(files, not_found="lowest")(one, images).tolist() == [float(scores[0]), -100.0]


def test_an_example_without_a_face_is_an_error_or_a_skip(files: dict[str, str]) -> None:
    one, images = of(picture(), picture()), stacked([alone(ANN)] * 3)
    with pytest.raises(ValueError, match=r"'row-1'.* no face in its 2 references.*missing_face: skip in a new run"):
        build(files)(one, images)
    reward = build(files, missing_face="skip")
    assert reward(one, images).isnan().all()
    assert "missing_face: skip" in reward.reason
    with pytest.raises(ValueError, match="no reference to compare with"):
        reward(of(), images)
    assert reward._config.needs() == {"reference"}


def test_references_without_a_face_are_left_out_and_said(
    files: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    """A view from behind, and a bag beside a person: neither has a face to compare with."""
    image, face, bag = stacked([alone(ANN, side=90)]), alone(ANN), picture(size=(64, 64))
    wanted = build(files)(of(face), image)
    for subject in ("woman", "woman and bag"):
        caplog.clear()
        reward = build(files)
        assert torch.equal(reward(of(face, bag, subject=subject), image), wanted)
        assert torch.equal(reward(of(face, bag, subject=subject), image), wanted)
        assert [record.getMessage() for record in caplog.records] == [
            "1 of the 2 references of example 'row-1' show no face and are not compared (said once)"
        ]


def test_several_views_are_one_person(files: dict[str, str]) -> None:
    views, image = (alone(ANN), alone(ANN, side=100), alone(DOT)), stacked([alone(ANN, side=84)])
    each = [build(files)(of(view), image)[0] for view in views]
    torch.testing.assert_close(build(files)(of(*views), image)[0], torch.stack(each).mean(), rtol=0, atol=1e-4)


def test_a_large_picture_is_searched_small_and_cut_as_it_is(files: dict[str, str]) -> None:
    """A face of 300 pixels is beyond what YuNet was trained on; here a block is lost at 128 and wrong above 256."""
    one, small = of(alone(ANN)), alone(ANN, side=90)
    large = small.resize((small.width * 4, small.height * 4), Image.Resampling.NEAREST)
    found = build(files, longest_sides=[256])(one, stacked([large]))
    assert float(found[0]) == pytest.approx(float(build(files)(one, stacked([small]))[0]), abs=3.0)
    assert torch.equal(build(files, longest_sides=[128, 256])(one, stacked([large])), found)
    with pytest.raises(ValueError, match="no face in its 1 references"):
        build(files, longest_sides=[128])(one, stacked([large]))
    assert build(files, longest_sides=[1024])(one, stacked([large]))[0] < found[0] - 5.0


def test_detectors_of_any_input_size_are_read(files: dict[str, str], tmp_path: Path) -> None:
    free = {**files, "detector": str(save_detector(tmp_path / "may.onnx", fixed=False))}
    one, images = of(alone(ANN)), portraits(3)
    assert torch.equal(build(free)(one, images), build(files)(one, images))


def test_a_face_below_the_threshold_is_none(files: dict[str, str]) -> None:
    (face,) = faces_by_opencv(files["detector"], alone(ANN))
    one, images = of(alone(ANN)), stacked([alone(ANN)])
    assert not build(files, threshold=float(face[14]) - 1e-4)(one, images).isnan().any()
    with pytest.raises(ValueError, match="no face in its 1 references"):
        build(files, threshold=float(face[14]) + 1e-4)(one, images)


def _page(path: Path) -> Path:
    path.write_text("<html>")
    return path


def _pointer(path: Path) -> Path:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    return path


REFUSED = {
    "a hub id": ("model", lambda _: Path("org/sface"), r"model 'org/sface': give an existing \.onnx file"),
    "pickled": ("detector", lambda path: _page(path.with_suffix(".pth")), r"detector '.*pth': give an existing"),
    "no graph": ("model", _page, r"model .* is not an embedder.*choose-rewards"),
    "no graph for the detector": ("detector", _page, "detector .* is not a YuNet"),
    "a pointer": ("detector", _pointer, "git lfs pull"),
    "swapped files": ("detector", save_embedder, "detector .* is not a YuNet"),
    "an older YuNet": ("detector", lambda path: save_detector(path, strides=STRIDES[:2]), "YuNet of March 2023"),
    "a detector": ("model", save_detector, r"embedder makes finite ones of shape \(1, D\)"),
    "faces of 96 pixels": ("model", lambda path: save_embedder(path, side=96), "faces of 112 x 112 pixels"),
    "not finite": ("model", lambda path: save_embedder(path, scale=np.inf), "makes NaN or infinite numbers"),
}


@pytest.mark.parametrize(("key", "make", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_files_that_are_no_such_graph_are_refused(
    files: dict[str, str], tmp_path: Path, key: str, make: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build({**files, key: str(make(tmp_path / "given.onnx"))})


def test_its_package_is_asked_for_where_it_is_missing(files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ValueError, match=r"pip install 'customized-grpo\[face\]'"):
        build(files)


def test_what_the_embedder_reads_must_be_said(files: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="normalization"):
        Face.Config.model_validate({"type": "face", "axis": "identity", **files})


def test_another_file_under_the_same_path_is_another_reward(tmp_path: Path) -> None:
    def identity(folder: Path) -> Any:
        section = {"type": "face", "normalization": "sface"}
        section |= {key: str(folder / f"{key}.onnx") for key in ("model", "detector")}
        return identified(Face.Config.model_validate(section).model_dump(), FileHashes())

    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        save_embedder(folder / "model.onnx")
        save_detector(folder / "detector.onnx")
    before = identity(tmp_path / "a")
    assert identity(tmp_path / "b") == before
    save_embedder(tmp_path / "a" / "model.onnx", seed=1)
    save_detector(tmp_path / "b" / "detector.onnx", fixed=False)
    assert identity(tmp_path / "a") != before
    assert identity(tmp_path / "b") != before
