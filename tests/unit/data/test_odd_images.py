"""Thirty kinds of broken and odd files: each has its documented outcome, and none costs the rest of a set."""

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
from odd_images import BLUE, KINDS, RED, outcome, page, write_all

PAGE = Path(__file__).parents[3] / "docs" / "image-files.md"
UPRIGHT = [
    "Phone photo, turned by EXIF", "JPEG with a broken EXIF block", "CMYK JPEG", "JPEG with a foreign colour profile",
    "Progressive JPEG", "MPO of a phone with two pictures", "Animated GIF", "Animated WebP", "TIFF of two pages",
    "AVIF", "PNG called .jpg", "Colour PNG of 16 bits",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("odd")
    write_all(path)
    return path


def table(text: str) -> list[tuple[str, str, str]]:
    """Rows; what Pillow itself says of damage may change with its version."""
    rows = re.findall(r"^\| (.+) \| (.+) \| (.*) \|$", text, re.MULTILINE)
    return [(title, word, "" if word == "`damaged`" else sentence) for title, word, sentence in rows]


def test_the_page_is_what_the_loader_does() -> None:
    assert len(KINDS) >= 20
    assert len({kind.name for kind in KINDS}) == len(KINDS)
    assert table(PAGE.read_text(encoding="utf-8")) == table(page()), (
        "write it anew: python tests/odd_images.py > docs/image-files.md"
    )


@pytest.mark.parametrize("title", UPRIGHT)
def test_the_right_way_up_in_the_right_colours(folder: Path, title: str) -> None:
    kind = next(kind for kind in KINDS if kind.title == title)
    image = load_image(folder / kind.name)
    assert image.mode == "RGB"
    assert image.info == {}
    for y, colour in ((0, RED), (image.height - 1, BLUE)):
        assert sum(abs(a - b) for a, b in zip(image.getpixel((0, y)), colour, strict=True)) < 160


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.title)
def test_a_head_tells_the_size_that_loading_gives(folder: Path, kind) -> None:  # type: ignore[no-untyped-def]
    word, _ = outcome(folder, kind)
    if word == "loaded":
        assert image_size(folder / kind.name) == load_image(folder / kind.name).size
    head = look(Look(folder / kind.name, decode=False))
    whole = look(Look(folder / kind.name))
    assert whole.problem == ("" if word == "loaded" else word.strip("`"))
    assert head.problem in (whole.problem, "")
    if whole.problem not in ("damaged", "32-bit"):  # those are in the pixels
        assert head.problem == whole.problem


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
        json.dumps({"id": f"k{at}", "prompt": "a thing", "references": [kind.name]})
        for at, kind in enumerate(KINDS)
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
