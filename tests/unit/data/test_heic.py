"""HEIC photos: read where ``pillow-heif`` is installed, named where it isn't, and no need of it in a manifest."""

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from customized_grpo.data.folders import images_in
from customized_grpo.data.images import ImageError, has_frames, image_size, load_image
from customized_grpo.data.manifest import ManifestDataset
from customized_grpo.prepare.importers.subjects import DreamBoothFolder
from customized_grpo.prepare.importers.writer import Options, import_data
from customized_grpo.studio.parts import read_references
from layouts import read, rejected
from odd_images import BLUE, RED, exif, heic, lying, picture


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    folder = tmp_path / "pets/dog"
    folder.mkdir(parents=True)
    (folder / "IMG_1.HEIC").write_bytes(heic(lying(), exif=exif(6).tobytes()))
    picture().save(folder / "b.png")
    return tmp_path / "pets"


def run(source: Path, out: Path) -> list[str]:
    return import_data(DreamBoothFolder(type="dreambooth-folder"), str(source), out, Options()).remarks


def test_a_photo_is_upright_without_its_metadata(pets: Path) -> None:
    path = pets / "dog/IMG_1.HEIC"
    image = load_image(path)
    assert (image.mode, image.size, image.info) == ("RGB", (32, 48), {})
    assert image_size(path) == (32, 48)
    assert not has_frames(path)
    for y, colour in ((0, RED), (47, BLUE)):
        assert sum(abs(a - b) for a, b in zip(image.getpixel((3, y)), colour, strict=True)) < 160
    assert images_in(pets / "dog") == [path, pets / "dog/b.png"]
    found, bad = read_references([str(path)])
    assert (len(found), bad) == (1, []), "an upload of the studio"


def test_a_broken_off_one_is_damaged_in_one_line(pets: Path) -> None:
    path = pets / "dog/IMG_1.HEIC"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ImageError, match="is damaged or truncated") as caught:
        load_image(path)
    assert "\n" not in str(caught.value)


def test_opening_one_registers_nothing_with_pillow(pets: Path) -> None:
    load_image(pets / "dog/IMG_1.HEIC")
    assert ".heic" not in Image.registered_extensions()


def test_without_the_library_a_photo_is_named_with_what_to_install(
    pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageError, match=r"pip install 'customized-grpo\[heic\]'") as caught:
        load_image(pets / "dog/IMG_1.HEIC")
    assert caught.value.problem == "heic"
    run(pets, tmp_path / "out")
    assert {row["references"][0] for row in read(tmp_path / "out")} == {"source/dog/b.png"}
    reasons = {line["reason"] for line in rejected(tmp_path / "out")}
    assert len(reasons) == 1
    assert "IMG_1.HEIC" in reasons.pop()


def test_a_manifest_of_them_is_read_without_the_library(
    pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remarks = run(pets, tmp_path / "out")
    assert any(f"HEIC photos: 1, written to {tmp_path / 'out/images'} as PNG" in remark for remark in remarks)
    before = load_image(pets / "dog/IMG_1.HEIC")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    data = ManifestDataset(ManifestDataset.Config(type="manifest", path=str(tmp_path / "out/manifest.jsonl")))
    assert data.sources(0).references == ("images/dog/IMG_1-HEIC.png",)
    assert data[0].references[0].tobytes() == before.tobytes()
    assert "b.png" in json.dumps(read(tmp_path / "out")[-1]["references"]), "others stay where they are"


def test_a_phone_that_exports_both_forms_gives_one_picture(pets: Path, tmp_path: Path) -> None:
    picture().save(pets / "dog/IMG_1.jpg", quality=95)
    run(pets, tmp_path / "out")
    references = {row["references"][0] for row in read(tmp_path / "out")}
    assert references == {"source/dog/IMG_1.jpg", "source/dog/b.png"}, "the one that every program reads"
