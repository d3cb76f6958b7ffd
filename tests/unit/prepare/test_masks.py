"""Masks of a manifest: every lack filled, nothing lost by a broken picture, and work that goes on where it stopped."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from customized_grpo.commands.data.masks import masks
from customized_grpo.data.manifest import ManifestDataset, ManifestError
from customized_grpo.prepare.masks import is_any_missing, make_masks
from tiny_rewards import pictures
from tiny_segmenter import save_detector, save_sam

SETTINGS = {"tool": "threshold", "at": 100}
Row = dict[str, Any]


class Bright:
    """What is brighter than 100 is the subject; counts its calls, and can't find a cat."""

    def __init__(self, stop_after: int = 10**9) -> None:
        self.calls: list[str] = []
        self._stop_after = stop_after

    def __call__(self, image: Image.Image, word: str) -> Image.Image | None:
        if len(self.calls) == self._stop_after:
            raise KeyboardInterrupt
        self.calls.append(word)
        if word == "cat":
            return None
        return image.convert("L").point(lambda value: 255 if value > 100 else 0)


@pytest.fixture
def save(tmp_path: Path) -> Callable[[list[Row]], Path]:
    for at, image in enumerate(pictures(4, height=20, width=30).numpy()):
        (tmp_path / "bag").mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / "bag" / f"{at}.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "bag" / "0.png").read_bytes()[:90])

    def write(rows: list[Row]) -> Path:
        manifest = tmp_path / "train.jsonl"
        manifest.write_text("".join(json.dumps({"prompt": "p", **row}) + "\n" for row in rows))
        return manifest

    return write


def rows_of(manifest: Path) -> list[Row]:
    return [json.loads(line) for line in manifest.read_text().splitlines()]


def test_what_is_missing_is_made_and_the_rest_stays(save: Callable[[list[Row]], Path]) -> None:
    manifest = save(
        [
            {
                "id": "a",
                "references": ["bag/0.png"],
                "subject": "bag",
                "extra": {"x": 1},
                "target": "bag/3.png",
            },
            {
                "id": "b",
                "references": ["bag/0.png", "bag/1.png"],
                "subject": "bag",
                "masks": [None, "bag/2.png"],
            },
            {"id": "c", "references": ["bag/0.png", "bag/2.png"], "subject": "bag and dog"},
        ]
    )
    tool = Bright()
    report = make_masks(manifest, tool, settings=SETTINGS)
    assert (report.made, report.kept, report.problems) == (2, 0, {})
    assert tool.calls == ["bag", "dog"], "a picture that comes back is segmented once"
    first, second, third = rows_of(report.manifest)
    assert first == {**rows_of(manifest)[0], "masks": ["masks/bag/0_seg.png"]}
    assert second["masks"] == ["masks/bag/0_seg.png", "bag/2.png"]
    assert third["masks"] == ["masks/bag/0_seg.png", "masks/bag/2_seg.png"]
    mask = Image.open(manifest.parent / "masks/bag/0_seg.png")
    assert mask.mode == "L"
    expected = np.asarray(Image.open(manifest.parent / "bag/0.png").convert("L")) > 100
    assert ((np.asarray(mask) == 255) == expected).all()


def test_the_new_manifest_is_a_data_set(save: Callable[[list[Row]], Path]) -> None:
    manifest = save([{"id": "a", "references": ["bag/0.png"], "subject": "bag"}])
    report = make_masks(manifest, Bright(), settings=SETTINGS, folder=None)
    (one,) = ManifestDataset(ManifestDataset.Config(type="manifest", path=str(report.manifest)))[0].masks
    assert one is not None
    assert one.size == (30, 20)
    assert (manifest.parent / "bag/0_seg.png").is_file()


def test_a_bad_picture_is_reported_and_the_rest_goes_on(save: Callable[[list[Row]], Path]) -> None:
    rows = [
        {"id": "a", "references": ["broken.png"], "subject": "bag"},
        {"id": "b", "references": ["none.png"], "subject": "bag"},
        {"id": "d", "references": ["bag/1.png"]},
        {"id": "e", "references": ["bag/2.png"], "subject": "cat"},
        {"id": "f", "references": ["bag/3.png"], "subject": "bag"},
    ]
    report = make_masks(save(rows), Bright(), settings=SETTINGS)
    reasons = list(report.problems.values())
    expected = ("truncated", "no such file", "no subject", "no 'cat' was found")
    for reason, part in zip(reasons, expected, strict=True):
        assert part in reason
    assert [row["masks"] for row in rows_of(report.manifest)] == [[None]] * 4 + [["masks/bag/3_seg.png"]]


def test_it_goes_on_where_it_was_stopped(save: Callable[[list[Row]], Path]) -> None:
    rows = [{"id": str(at), "references": [f"bag/{at}.png"], "subject": "bag"} for at in range(4)]
    manifest = save(rows)
    with pytest.raises(KeyboardInterrupt):
        make_masks(manifest, Bright(stop_after=2), settings=SETTINGS)
    assert not manifest.with_name("train-masks.jsonl").exists()
    # as if the machine had died while it wrote
    (manifest.parent / "masks/bag/1_seg.png").write_bytes(b"\x89PNG")
    tool = Bright()
    report = make_masks(manifest, tool, settings=SETTINGS)
    assert (report.made, report.kept, len(tool.calls)) == (3, 1, 3)
    once = report.manifest.read_bytes()
    assert make_masks(manifest, Bright(), settings=SETTINGS).kept == 4
    assert report.manifest.read_bytes() == once
    with pytest.raises(ValueError, match="made there with other settings"):
        make_masks(manifest, Bright(), settings={**SETTINGS, "at": 50})


def test_a_mask_of_another_picture_or_word_is_made_anew(save: Callable[[list[Row]], Path], tmp_path: Path) -> None:
    rows = [{"id": str(at), "references": [f"bag/{at}.png"], "subject": "bag"} for at in range(4)]
    manifest = save(rows)
    make_masks(manifest, Bright(), settings=SETTINGS)
    time = (tmp_path / "bag/1.png").stat().st_mtime_ns
    picture = Image.open(tmp_path / "bag/1.png").transpose(Image.Transpose.ROTATE_180)
    picture.save(tmp_path / "bag/1.png")
    os.utime(tmp_path / "bag/1.png", ns=(time, time))
    rows[2]["subject"] = "red bag"
    save(rows)
    assert is_any_missing(manifest, "masks")
    tool = Bright()
    report = make_masks(manifest, tool, settings=SETTINGS)
    assert (report.made, report.anew, report.kept, tool.calls) == (2, 2, 2, ["bag", "red bag"])
    expected = np.asarray(picture.convert("L")) > 100
    with Image.open(tmp_path / "masks/bag/1_seg.png") as mask:
        assert ((np.asarray(mask) == 255) == expected).all()
    assert not is_any_missing(manifest, "masks")
    assert make_masks(manifest, Bright(), settings=SETTINGS).kept == 4


def test_a_picture_saved_again_and_a_moved_folder_keep_their_masks(
    save: Callable[[list[Row]], Path], tmp_path: Path
) -> None:
    rows = [{"id": str(at), "references": [f"bag/{at}.png"], "subject": "bag"} for at in range(2)]
    make_masks(save(rows), Bright(), settings=SETTINGS)
    with Image.open(tmp_path / "bag/1.png") as picture:
        picture.load()
        picture.save(tmp_path / "bag/1.png", compress_level=0)  # other bytes, the same pixels
    moved = Path(shutil.copytree(tmp_path, tmp_path.parent / f"{tmp_path.name}-moved"))
    report = make_masks(moved / "train.jsonl", Bright(), settings=SETTINGS)
    assert (report.made, report.kept) == (0, 2)


@pytest.mark.parametrize("found", [True, False])
def test_what_was_corrected_by_hand_is_never_overwritten(
    save: Callable[[list[Row]], Path], tmp_path: Path, found: bool
) -> None:
    """Laid there before the first call, or made and then corrected."""
    manifest = save([{"id": "a", "references": ["bag/0.png"], "subject": "bag"}])
    mask = tmp_path / "bag/0_seg.png"
    if not found:
        make_masks(manifest, Bright(), settings=SETTINGS, folder=None)
    Image.new("L", (30, 20), 255).save(mask)
    assert make_masks(manifest, Bright(), settings=SETTINGS, folder=None).kept == 1
    by_hand = mask.read_bytes()
    with Image.open(tmp_path / "bag/1.png") as other:
        other.load()
    other.save(tmp_path / "bag/0.png")
    report = make_masks(manifest, Bright(), settings=SETTINGS, folder=None)
    (reason,) = report.problems.values()
    assert "bag/0_seg.png was laid or corrected by hand, and since then the picture or the word 'bag' has" in reason
    assert mask.read_bytes() == by_hand
    Image.new("L", (30, 20), 200).save(mask)  # corrected again
    later = (tmp_path / "bag/0.png").stat().st_mtime_ns + 1
    os.utime(mask, ns=(later, later))
    assert make_masks(manifest, Bright(), settings=SETTINGS, folder=None).kept == 1


def test_models_count_by_content(save: Callable[[list[Row]], Path]) -> None:
    manifest = save([{"id": "a", "references": ["bag/0.png"], "subject": "bag"}])

    def make(path: str, content: str | None) -> int:
        settings = {"sam": path, "at": 1, "content": {"sam": content and {"content": content}}}
        return make_masks(manifest, Bright(), settings=settings).kept

    assert make("here/sam", "1") == 0
    assert make("there/sam", "1") == 1
    assert make("there/sam", None) == 1
    with pytest.raises(ValueError, match="made there with other settings"):
        make("there/sam", "2")
    with pytest.raises(ValueError, match="made there with other settings"):
        make("elsewhere/sam", None)


def test_two_masks_never_share_a_file(save: Callable[[list[Row]], Path], tmp_path: Path) -> None:
    rows = [
        {"id": "a", "references": ["bag/0.png"], "subject": "bag"},
        {"id": "b", "references": ["bag/0.png"], "subject": "red dog"},
        {"id": "c", "references": ["bag/1.png", "bag/1.jpg"], "subject": "bag"},
    ]
    Image.new("RGB", (8, 8), "white").save(tmp_path / "bag/1.jpg")
    made = [row["masks"] for row in rows_of(make_masks(save(rows), Bright(), settings=SETTINGS).manifest)]
    assert made == [
        ["masks/bag/0_seg_bag.png"],
        ["masks/bag/0_seg_red-dog.png"],
        ["masks/bag/1.png_seg.png", "masks/bag/1.jpg_seg.png"],
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"folder": "../out"}, "inside the manifest's folder"), ({"folder": "/out"}, "inside the manifest's folder"),
     ({"target": "sub/new.jsonl"}, "must lie beside the old one"), ({"target": "train.jsonl"}, "another name")],
)  # fmt: skip
def test_other_places_are_refused(save: Callable[[list[Row]], Path], options: dict[str, str], message: str) -> None:
    manifest = save([{"id": "a", "references": ["bag/0.png"], "subject": "bag"}])
    given: dict[str, Any] = dict(options)
    if "target" in options:
        given["target"] = manifest.parent / options["target"]
    with pytest.raises(ValueError, match=message):
        make_masks(manifest, Bright(), settings=SETTINGS, **given)


@pytest.mark.parametrize(
    "line", ["{x", "[]", "{}", '{"references": [1]}', '{"references": ["a"], "masks": ["b", "c"]}']
)
def test_a_line_that_is_no_row_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "m.jsonl").write_text(f"\n{line}\n")
    with pytest.raises(ManifestError, match=r"m\.jsonl:2: "):
        make_masks(tmp_path / "m.jsonl", Bright(), settings=SETTINGS)


def test_the_command_makes_masks_by_grounding_dino_and_sam(save: Callable[[list[Row]], Path], tmp_path: Path) -> None:
    manifest = save(
        [
            {"id": "a", "references": ["bag/0.png"], "subject": "bag"},
            {"id": "b", "references": ["broken.png"], "subject": "bag"},
        ]
    )
    for name, make in (("detector", save_detector), ("sam", save_sam)):
        (tmp_path / name).mkdir()
        make(tmp_path / name)
    app = typer.Typer()
    app.command()(masks)
    models = ["--detector", str(tmp_path / "detector"), "--sam", str(tmp_path / "sam"), "--threshold", "0.05"]
    done = CliRunner().invoke(app, [str(manifest), *models, "--device", "cpu"])
    assert done.exit_code == 1, done.output
    assert "1 masks made, 0 kept, 1 missing" in done.output
    mask = np.asarray(Image.open(tmp_path / "masks/bag/0_seg.png"))
    assert set(np.unique(mask)) == {0, 255}
    assert json.loads((tmp_path / "train-masks.settings.json").read_text())["threshold"] == 0.05


def test_masks_that_are_all_there_need_no_models(save: Callable[[list[Row]], Path], tmp_path: Path) -> None:
    """The models named don't exist: loading them would be an error."""
    manifest = save(
        [
            {"id": "a", "references": ["bag/0.png", "bag/1.png"], "subject": "bag"},
            {"id": "b", "references": ["broken.png"], "subject": "bag"},
        ]
    )
    app = typer.Typer()
    app.command()(masks)
    command = [str(manifest), "--beside", "--detector", str(tmp_path / "none"), "--device", "cpu"]
    for name in ("0", "1"):
        assert isinstance(CliRunner().invoke(app, command).exception, ValueError), "one is still missing"
        Image.new("L", (30, 20), 255).save(tmp_path / f"bag/{name}_seg.png")
    done = CliRunner().invoke(app, command)
    assert "0 masks made, 2 kept, 1 missing" in done.output
    assert f"next: customized-grpo data check {tmp_path / 'train-masks.jsonl'} " in done.output
    manifest.rename(tmp_path / "manifest.jsonl")
    done = CliRunner().invoke(app, [str(tmp_path), *command[1:]])
    assert str(tmp_path / "manifest-masks.jsonl") in done.output, "the folder of manifest.jsonl will do"
    assert rows_of(tmp_path / "train-masks.jsonl")[0]["masks"] == ["bag/0_seg.png", "bag/1_seg.png"]
