"""Copying: the published formula by hand and by its bounds, and the metric on DINOv2's own class."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from transformers import BitImageProcessorPil, Dinov2Model

from customized_grpo.conditioning.outlines import outlines_of
from customized_grpo.conditioning.precheck import check_examples
from customized_grpo.data.manifest import ManifestDataset
from customized_grpo.evaluation.copies import Copy, copy_share
from customized_grpo.evaluation.metrics import build_metrics, score
from customized_grpo.evaluation.protocols import PROTOCOLS
from customized_grpo.policies.flux import UNO
from customized_grpo.recipe.config import Evaluate
from customized_grpo.types import Example
from golden import save_golden_dinov2
from tiny_rewards import pictures

CPU = torch.device("cpu")


def at(*degrees: float) -> torch.Tensor:
    angles = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def test_by_hand() -> None:
    """Of angles 0 (the reference) and 40 (another photo), and of 40 and 20."""
    reference, others = at(0.0)[0], at(40.0, 20.0)
    images = at(0.0, 10.0, 40.0, -40.0)
    each = [[1.0, (30 - 10) / 40, -1.0, (80 - 40) / 40], [1.0, (10 - 10) / 20, (20 - 40) / 20, (60 - 40) / 20]]
    expected = torch.tensor(each).mean(dim=0)
    torch.testing.assert_close(copy_share(7.0 * images, 3.0 * reference, others), expected)
    torch.testing.assert_close(copy_share(images, reference, others[:1]), torch.tensor(each[0]))


def test_another_file_of_the_reference_is_no_other_photo() -> None:
    images, reference = at(5.0, 30.0), at(0.0)[0]
    again = at(0.01, 40.0)
    assert torch.equal(copy_share(images, reference, again), copy_share(images, reference, again[1:]))
    assert copy_share(images, reference, again[:1]).isnan().all()


vectors = arrays(np.float64, (3, 6), elements=st.floats(-1, 1).map(lambda value: value + 0.1))


@settings(deadline=None)
@given(vectors)
def test_it_is_between_copy_and_truth(given_: np.ndarray) -> None:
    image, reference, other = torch.from_numpy(given_)
    share = copy_share(image[None], reference, other[None])
    turned = copy_share(image[None], other, reference[None])
    if share.isnan().any():
        assert float(torch.nn.functional.cosine_similarity(reference, other, dim=0)) > 0.999
        return
    assert -1 - 1e-6 <= float(share) <= 1 + 1e-6
    assert float(turned) == pytest.approx(-float(share), abs=1e-5)
    assert float(copy_share(reference[None], reference, other[None])) == pytest.approx(1.0, abs=1e-5)
    assert float(copy_share(other[None], reference, other[None])) == pytest.approx(-1.0, abs=1e-5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_golden_dinov2(tmp_path_factory.mktemp("dinov2"))


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path, pixels in zip(paths, pictures(3, seed=11, height=64, width=70), strict=True):
        Image.fromarray(pixels.numpy()).save(path)
    return paths


def opened(path: Path) -> Image.Image:
    return Image.open(path).convert("RGB")


def build(folder: Path, **options: Any) -> Copy:
    return Copy(Copy.Config.model_validate({"type": "copy", "model": str(folder), **options}), device=CPU)


def drawn(photos: list[Path]) -> Example:
    """The input is the second photo."""
    return Example(
        key="a", prompt="p", references=(opened(photos[1]),), extra={"views": tuple(photos), "subject_id": "x"}
    )


def test_it_is_the_formula_on_the_models_own_features(folder: Path, photos: list[Path]) -> None:
    model, processor = Dinov2Model.from_pretrained(folder).eval(), BitImageProcessorPil.from_pretrained(folder)

    def feature(picture: Image.Image) -> np.ndarray:
        with torch.no_grad():
            last = model(**processor(images=[picture], return_tensors="pt")).last_hidden_state[0, 0].double()
        found: np.ndarray = (last / last.norm()).numpy()
        return found

    def angle(a: np.ndarray, b: np.ndarray) -> float:
        return math.acos(float(a @ b))

    images = pictures(4, height=64, width=64)
    reference, others = feature(opened(photos[1])), [feature(opened(photos[0])), feature(opened(photos[2]))]
    given = [feature(Image.fromarray(image.numpy())) for image in images]
    expected = [
        np.mean([(angle(one, other) - angle(one, reference)) / angle(other, reference) for other in others])
        for one in given
    ]
    found = build(folder, batch_size=3)(drawn(photos), images)["copy"]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32), rtol=0, atol=1e-3)
    assert found.std() > 1e-2
    alone = torch.cat([build(folder)(drawn(photos), image[None])["copy"] for image in images])
    torch.testing.assert_close(found, alone, rtol=0, atol=1e-4)


def test_a_pasted_reference_is_one_and_another_photo_is_less(folder: Path, photos: list[Path]) -> None:
    images = torch.stack([torch.from_numpy(np.asarray(opened(path)).copy()) for path in photos])
    first, pasted, last = build(folder)(drawn(photos), images)["copy"].tolist()
    assert pasted == pytest.approx(1.0, abs=1e-6)
    assert max(first, last) < 0.5
    only = Example(key="a", prompt="p", references=(opened(photos[1]),), extra={"views": tuple(photos[:2])})
    assert float(build(folder)(only, images[:1])["copy"][0]) == pytest.approx(-1.0, abs=1e-6)


def test_every_protocol_and_the_evaluation_give_the_same_column(folder: Path, photos: list[Path]) -> None:
    section = {"data": {"type": "mini"}, "metrics": {"pasted": {"type": "copy", "model": str(folder)}}}
    metrics = build_metrics(Evaluate.model_validate(section).metrics, CPU)
    example, images = drawn(photos), pictures(2, height=64, width=64)
    columns = [
        score(metrics, protocol.judged(example), images).values
        for protocol in PROTOCOLS.values()
        if protocol.num_subjects in (None, 1)
    ]
    assert len(columns) >= 2
    assert all(one == columns[0] for one in columns)
    assert list(columns[0]) == ["copy"]


def test_without_other_photos_it_is_not_measurable(folder: Path, photos: list[Path]) -> None:
    alone = Example(key="a", prompt="p", references=(opened(photos[1]),), extra={"views": (photos[1],)})
    assert build(folder)(alone, pictures(2))["copy"].isnan().all()


def test_rows_that_it_cannot_measure_are_refused_before_a_run(folder: Path, photos: list[Path]) -> None:
    rows = [
        '{"id": "a", "prompt": "p", "references": ["0.png"], "subject": "dog", "views": ["1.png"]}',
        '{"id": "b", "prompt": "p", "references": ["0.png"], "subject": "dog"}',
        '{"id": "c", "prompt": "p", "references": ["0.png", "1.png"], "subject": "dog and cat", "views": ["2.png"]}',
    ]
    path = photos[0].parent / "rows.jsonl"
    path.write_text("\n".join(rows))
    data = ManifestDataset(ManifestDataset.Config(type="manifest", path=str(path)))
    measures = {"pasted": Copy.Config.model_validate({"type": "copy", "model": str(folder)})}
    found = check_examples(outlines_of(data), UNO.Config.model_validate({"type": "uno", "model": "mini"}), measures)
    assert [(one.place, one.reason) for one in found.misfits] == [
        (
            f"{path}:2",
            "has no 'views', and pasted compares with other photos of it; give some in the manifest",
        ),
        (f"{path}:3", "has several subjects, and 'views' don't say whose they are; pasted measures one subject"),
    ]


def test_what_nothing_reads_is_refused() -> None:
    for key in ("axis", "weight", "segment"):
        with pytest.raises(ValueError, match=key):
            Copy.Config.model_validate({"type": "copy", key: 1})
