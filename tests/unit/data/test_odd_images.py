"""Forty kinds of broken and odd files: what is loaded is upright, and none costs the rest of a set.

What the loader makes of each is docs/image-files.md, which ``tests/test_pages.py`` compares.
"""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from customized_grpo.data.images import image_size, load_image
from customized_grpo.data.manifest import ManifestDataset
from customized_grpo.prepare.check import check_manifest
from customized_grpo.prepare.importers.folders import ImageFolder
from customized_grpo.prepare.importers.writer import Options, import_data
from customized_grpo.prepare.inspection import Look, look
from odd_images import BLUE, KINDS, RED, outcome, write_all
from source import SOURCE

UPRIGHT = [
    "Phone photo, turned by EXIF", "JPEG with a broken EXIF block", "CMYK JPEG", "JPEG with a foreign colour profile",
    "Progressive JPEG", "MPO of a phone with two pictures", "Animated GIF", "Animated WebP", "TIFF of two pages",
    "AVIF", "PNG called .jpg", "Colour PNG of 16 bits", "PNG with a ComfyUI workflow of 3 MB",
    "PNG with texts of 80 MB after the pixels", "PNG with a colour profile of 2 MB",
    "PNG with a damaged colour profile",
    "PNG whose EXIF block has a wrong checksum", "PNG turned by EXIF after its pixels", "PNG turned by XMP",
    "PNG without its end", "JPEG with a colour profile of 3 MB", "JPEG with other data behind it", "AVIF called .jpg",
    "HEIC photo of a phone, turned by EXIF", "HEIC photo called .jpg",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("odd")
    write_all(path)
    return path


def test_the_right_way_up_in_the_right_colours(folder: Path) -> None:
    for kind in (kind for kind in KINDS if kind.title in UPRIGHT):
        image = load_image(folder / kind.name)
        assert (image.mode, image.info) == ("RGB", {}), kind.title
        for y, colour in ((0, RED), (image.height - 1, BLUE)):
            found = image.getpixel((0, y))
            assert sum(abs(a - b) for a, b in zip(found, colour, strict=True)) < 160, kind.title


def test_a_head_tells_the_size_that_loading_gives(folder: Path) -> None:
    for kind in KINDS:
        word, _ = outcome(folder, kind)
        if word == "loaded":
            assert image_size(folder / kind.name) == load_image(folder / kind.name).size, kind.title
        head = look(Look(folder / kind.name, decode=False))
        whole = look(Look(folder / kind.name))
        assert whole.problem == ("" if word == "loaded" else word.strip("`")), kind.title
        in_the_pixels = whole.problem in ("damaged", "32-bit")
        assert head.problem == whole.problem or (in_the_pixels and not head.problem), kind.title


@pytest.mark.parametrize("images", ["link", "copy"])
def test_a_set_of_all_kinds_keeps_every_good_row(folder: Path, tmp_path: Path, images: str) -> None:
    lines = [json.dumps({"file_name": kind.name, "caption": f"a {kind.title}"}) for kind in KINDS]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    report = import_data(
        ImageFolder(type="imagefolder"),
        str(folder),
        tmp_path / "out",
        Options(images=images),  # type: ignore[arg-type]
    )
    good = [kind for kind in KINDS if outcome(folder, kind)[0] == "loaded"]
    assert (report.rows, report.rejected) == (len(good), len(KINDS) - len(good))
    manifest = tmp_path / "out" / "manifest.jsonl"
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    assert [row["prompt"] for row in rows] == [f"a {kind.title}" for kind in good]
    left_out = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert [f"`{one['problem']}`" for one in left_out] == [
        outcome(folder, kind)[0] for kind in KINDS if kind not in good
    ]
    data = ManifestDataset(ManifestDataset.Config(type="manifest", path=str(manifest)))
    for index, kind in enumerate(good):
        assert data[index].references[0].tobytes() == load_image(folder / kind.name).tobytes()
    check, _, _ = check_manifest(manifest)
    assert check.ok
    if images == "copy":
        for file in (tmp_path / "out" / "images").rglob("*.png"):
            assert b"SecretCamera" not in file.read_bytes()
            with Image.open(file) as opened:
                assert not opened.getexif()
                assert set(opened.info) <= {"transparency"}
        assert not (tmp_path / "out" / "source").exists()


def test_a_manifest_by_hand_is_checked_to_the_end(folder: Path) -> None:
    lines = [
        json.dumps({"id": f"k{at}", "prompt": "a thing", "references": [kind.name]}) for at, kind in enumerate(KINDS)
    ]
    (folder / "all.jsonl").write_text("\n".join([*lines, "{"]))
    check, rows, seen = check_manifest(folder / "all.jsonl")
    bad = [kind for kind in KINDS if outcome(folder, kind)[0] != "loaded"]
    assert [(one.path, f"`{one.problem}`") for one in check.broken] == [
        (kind.name, outcome(folder, kind)[0]) for kind in bad
    ]
    assert len(check.bad_lines) == 1
    assert len(check.usable) == len(KINDS) - len(bad)
    assert not check.ok
    assert len(rows) == len(seen) == len(KINDS)


def test_images_have_one_door() -> None:
    openers = [path.name for path in SOURCE.rglob("*.py") if re.search(r"\bImage\.open\(", path.read_text("utf-8"))]
    assert openers == ["images.py"]
