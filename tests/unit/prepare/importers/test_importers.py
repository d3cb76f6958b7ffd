"""Importers: every layout becomes the rows that it means."""

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from customized_grpo import registry
from customized_grpo.data.manifest import ManifestDataset
from customized_grpo.prepare.importers.base import Draft, SourceError
from customized_grpo.prepare.importers.dreambench import DreamBench
from customized_grpo.prepare.importers.hub import Subjects200K, halves
from customized_grpo.prepare.importers.hub_tables import read as read_table
from customized_grpo.prepare.importers.json_array import json_objects
from customized_grpo.prepare.importers.report import Report
from customized_grpo.prepare.importers.writer import Options, import_data
from layouts import DREAMBENCH, draw, read, rejected, syncd

needs_dreambench = pytest.mark.skipif(not DREAMBENCH.is_dir(), reason="DreamBench is not at ../shared/data/dreambench")


def run(kind: str, source: Path, out: Path, **options: Any) -> Report:
    importer = registry.resolve("importers", kind).model_validate({"type": kind, **options})
    return import_data(importer, str(source), out, Options())


# --- SynCD


def test_syncd_uses_every_view_as_reference_and_as_target(tmp_path: Path) -> None:
    syncd(tmp_path / "syncd")
    report = run("syncd", tmp_path / "syncd", tmp_path / "out")
    rows = read(tmp_path / "out")
    assert (report.rows, report.rejected, report.images) == (12, 0, 6)
    assert [row["id"] for row in rows[:6]] == [f"syncd-17-{r}-{t}" for r, t in ("10", "20", "01", "21", "02", "12")]
    first = rows[0]
    assert first["prompt"] == "a bag 0 in place 0"
    assert first["references"] == ["source/17/1.png"]
    assert first["target"] == "source/17/0.png"
    assert first["masks"] == ["source/17/masks/1.jpg"]
    assert first["target_mask"] == "source/17/masks/0.jpg"
    assert first["subject"] == "a red bag"
    assert first["extra"] == {"subject_id": "syncd-17", "category": "rigid"}
    assert "masks" not in rows[6]
    draw(tmp_path / "syncd/17/1_seg.png", 255, mode="L")
    run("syncd", tmp_path / "syncd", tmp_path / "own")
    assert read(tmp_path / "own")[0]["masks"] == ["source/17/1_seg.png"]
    data = ManifestDataset(ManifestDataset.Config(type="manifest", path=str(tmp_path / "out/manifest.jsonl")))
    mask = data[0].masks[0]
    assert mask is not None
    assert mask.size == data[0].references[0].size == (32, 32)  # an attention map, scaled


@pytest.mark.parametrize(
    ("options", "ids"),
    [
        ({"pairs": "one"}, ["syncd-17-0-2", "syncd-18-0-2"]),
        ({"pairs": "one", "references": 2}, ["syncd-17-01-2", "syncd-18-01-2"]),
        ({"references": 2, "category": "rigid"}, ["syncd-17-12-0", "syncd-17-02-1", "syncd-17-01-2"]),
        ({"category": "rigid", "min_dino": 0.9, "max_dino": 0.98}, ["syncd-17-1-0", "syncd-17-0-1"]),
        ({"category": "rigid", "min_aesthetics": 6}, ["syncd-17-2-1", "syncd-17-1-2"]),
    ],
)
def test_syncd_options(tmp_path: Path, options: dict[str, Any], ids: list[str]) -> None:
    syncd(tmp_path / "syncd")
    (tmp_path / "syncd/metadata.json").rename(tmp_path / "syncd/metadata_with_scores.json")
    report = run("syncd", tmp_path / "syncd", tmp_path / "out", **options)
    assert [row["id"] for row in read(tmp_path / "out")] == ids
    if "category" in options:
        assert report.skipped["category is not rigid"] == 1


def test_syncd_scores_are_needed_and_looked_at(tmp_path: Path) -> None:
    entries = syncd(tmp_path / "syncd")
    with pytest.raises(SourceError, match="need scores, but there is no"):
        run("syncd", tmp_path / "syncd", tmp_path / "out", min_dino=0.5)
    entries[0]["dino_scores"] = [[1]]
    (tmp_path / "syncd/metadata_with_scores.json").write_text(json.dumps(entries))
    run("syncd", tmp_path / "syncd", tmp_path / "out", min_dino=0.5)
    assert "scores can't be read" in rejected(tmp_path / "out")[0]["reason"]


def archived(made: Path, source: Path) -> Path:
    """The same set as its download has it: an archive for each object, the second one wrapped in a folder."""
    source.mkdir()
    (source / "metadata.json").write_bytes((made / "metadata.json").read_bytes())
    for number, name in enumerate(("17", "18"), start=1):
        with zipfile.ZipFile(source / f"archive_{number}.zip", "w") as file:
            for path in sorted((made / name).rglob("*.*")):
                wrap = "archive_2/" if number == 2 else ""
                file.write(path, wrap + path.relative_to(made).as_posix())
            file.writestr("readme.txt", "not wanted")
    return source


def test_syncd_from_its_archives(tmp_path: Path) -> None:
    syncd(tmp_path / "made")
    source = archived(tmp_path / "made", tmp_path / "syncd")
    report = run("syncd", source, tmp_path / "out")
    assert (report.rows, report.images) == (12, 6)
    rows = read(tmp_path / "out")
    assert rows[0]["references"] == ["images/17/1.png"]
    assert rows[0]["masks"] == ["images/17/masks/1.jpg"]
    assert rows[6]["references"] == ["images/18/1.png"]
    assert not (tmp_path / "out/images/readme.txt").exists()


def test_syncd_with_an_unsafe_archive_writes_nothing(tmp_path: Path) -> None:
    syncd(tmp_path / "syncd")
    with zipfile.ZipFile(tmp_path / "syncd/archive_1.zip", "w") as file:
        file.writestr("17/0.png", b"1")
        file.writestr("../../evil.png", b"2")
    with pytest.raises(ValueError, match=r"archive_1\.zip: member '../../evil.png' would be written outside"):
        run("syncd", tmp_path / "syncd", tmp_path / "out")
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"filenames": ["17/0.png"], "prompts": ["one"]}, "has 1 views"),
        ({"prompts": ["one"]}, "3 filenames but 1 prompts"),
        ({"filenames": "17/0.png"}, "filenames: given '17/0.png'; it must be a list"),
        ({"filenames": None}, "filenames: given None; it must be a list"),
        ({"filenames": 5}, "filenames: given 5; it must be a list"),
        ({"filenames": ["17/0.png", None, "17/2.png"]}, "filenames: given ['17/0.png', None, '17/2.png']"),
        ({"filenames": [["17/0.png"], {}, "17/2.png"]}, "filenames: given [['17/0.png'], {}, '17/2.png']"),
        ({"prompts": ["a", None, "b"]}, "prompts: given"),
        ({"filenames": ["../../../etc/passwd", "17/1.png", "17/2.png"]}, "is outside"),
        ({"filenames": ["17/0.png", "17/1.png", "17/9.png"]}, "no such file"),
    ],
)
@pytest.mark.parametrize("form", ["folder", "archives"])
def test_a_bad_object_costs_itself_alone(tmp_path: Path, change: dict[str, Any], reason: str, form: str) -> None:
    source = tmp_path / "made"
    entries = syncd(source)
    entries[0] |= change
    (source / "metadata.json").write_text(json.dumps(entries))
    if form == "archives":
        source = archived(source, tmp_path / "syncd")
    report = run("syncd", source, tmp_path / "out")
    assert reason in rejected(tmp_path / "out")[0]["reason"]
    assert sum("syncd-18" in row["id"] for row in read(tmp_path / "out")) == 6
    assert report.rows + report.rejected >= 7


def cg_entry(number: int) -> dict[str, Any]:
    return {
        "id": str(3040 + number),
        "category": "rigid",
        "category_description": "a red bag.",
        "ref_img": "17/0.png",
        "img": "17/2.png",
        "ref_prompt": "a bag on a shelf.",
        "text": f"a bag {number} in the snow.",
        "txt_save_path": "./x.pt",
        "vec_save_path": "./y.pt",
    }


def test_the_list_of_customized_grpo(tmp_path: Path) -> None:
    syncd(tmp_path / "images")
    path = tmp_path / "train.json"
    path.write_text(json.dumps([cg_entry(0), cg_entry(1) | {"text": " "}, {"id": "x"}, cg_entry(0)]))
    report = run("syncd-json", path, tmp_path / "out", images=str(tmp_path / "images"), swap=True)
    rows = read(tmp_path / "out")
    assert [row["id"] for row in rows] == ["3040", "3040-swapped", "3040-2", "3040-swapped-2"]
    assert rows[0]["references"] == rows[1]["target"].split() == ["source/17/0.png"]
    assert (rows[0]["prompt"], rows[1]["prompt"]) == ("a bag 0 in the snow.", "a bag on a shelf.")
    assert rows[0]["masks"] == ["source/17/masks/0.jpg"]
    assert rows[0]["extra"]["subject_id"] == "syncd-17"
    assert report.rejected == 2
    assert "text: given ' '" in rejected(tmp_path / "out")[0]["reason"]
    assert "has no 'ref_img'" in rejected(tmp_path / "out")[1]["reason"]


# --- UNO


def test_uno_training_json(tmp_path: Path) -> None:
    for name in "abc":
        draw(tmp_path / f"{name}.png")
    entries = [
        {"prompt": "one", "image_path": "a.png"},
        {"prompt": "two", "image_paths": ["a.png", "b.png"], "image_tgt_path": "c.png"},
        {"prompt": "three", "image_paths": []},
    ]
    (tmp_path / "train.json").write_text(json.dumps(entries))
    run("uno", tmp_path / "train.json", tmp_path / "out")
    rows = read(tmp_path / "out")
    assert [(row["references"], row.get("target")) for row in rows] == [
        (["source/a.png"], None),
        (["source/a.png", "source/b.png"], "source/c.png"),
    ]
    assert "image_paths: given []" in rejected(tmp_path / "out")[0]["reason"]


def test_uno_1m_labels(tmp_path: Path) -> None:
    def label(score: Any) -> dict[str, Any]:
        return {
            "img_path1": "split1/Food_0_0_1_793x1024.png",
            "img_path2": "split1/Food_0_0_2_743x1024.png",
            "caption": {"img_path1": "stew on a plate", "img_path2": "stew on a table", "subject": ["stew"]},
            "vlm_filter_cot": {"score_final": score},
        }

    for path in (label(4)["img_path1"], label(4)["img_path2"]):
        draw(tmp_path / "images" / path)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/split10.json").write_text(json.dumps([label(3.5)]))
    (tmp_path / "labels/split2.json").write_text(json.dumps([label(4), label(3), label(131184.67), label(None)]))
    report = run("uno", tmp_path, tmp_path / "out", swap=True)
    rows = read(tmp_path / "out")
    assert [row["id"] for row in rows] == [
        "split2-000000", "split2-000000-swapped", "split10-000000", "split10-000000-swapped",
    ]  # fmt: skip
    assert rows[0]["prompt"] == "stew on a table"
    assert rows[0]["references"] == ["source/split1/Food_0_0_1_793x1024.png"]
    assert (rows[0]["subject"], rows[0]["extra"]) == ("stew", {"subject_id": "Food_0_0", "score": 4})
    assert report.skipped == {"below min_score": 1}
    assert report.rejected == 2
    assert "131184.67" in rejected(tmp_path / "out")[0]["reason"]


# --- folders


def test_dreambooth_folders(tmp_path: Path) -> None:
    for name in ("red_bag2/01.jpg", "red_bag2/00.jpg", "cat/a.png"):
        draw(tmp_path / "set" / name)
    (tmp_path / "set/empty").mkdir()
    (tmp_path / "set/classes.txt").write_text("cat,tabby cat\n")
    (tmp_path / "prompts.txt").write_text("a {} in the snow\n\na {} at night\n")
    report = run("dreambooth-folder", tmp_path / "set", tmp_path / "out", prompts=str(tmp_path / "prompts.txt"))
    rows = read(tmp_path / "out")
    assert [row["prompt"] for row in rows] == [
        "a tabby cat in the snow", "a tabby cat at night",
        "a red bag in the snow", "a red bag at night", "a red bag in the snow", "a red bag at night",
    ]  # fmt: skip
    assert rows[2]["references"] == ["source/red_bag2/00.jpg"]
    assert rows[2]["views"] == ["source/red_bag2/00.jpg", "source/red_bag2/01.jpg"]
    assert rows[2]["extra"] == {"subject_id": "red_bag2"}
    assert report.rejected == 1
    assert "masks" not in rows[2]
    draw(tmp_path / "set/red_bag2/00_seg.png", 255, mode="L")
    run("dreambooth-folder", tmp_path / "set", tmp_path / "out2", prompts=str(tmp_path / "prompts.txt"))
    masked = read(tmp_path / "out2")
    assert len(masked) == len(rows), "a mask is no picture of the subject"
    assert masked[2]["masks"] == ["source/red_bag2/00_seg.png"]
    assert masked[2]["views"] == rows[2]["views"]
    assert "masks" not in masked[4]
    one = run("dreambooth-folder", tmp_path / "set/red_bag2", tmp_path / "one", references="first")
    assert one.rows == 10
    (tmp_path / "prompts.txt").write_text("a bag\n")
    with pytest.raises(SourceError, match=r"needs \{\} in place of the class word"):
        run("dreambooth-folder", tmp_path / "set", tmp_path / "two", prompts=str(tmp_path / "prompts.txt"))


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_imagefolder(tmp_path: Path, form: str) -> None:
    for name in ("a.png", "sub/b.png"):
        draw(tmp_path / "set" / name)
    draw(tmp_path / "set/m.png", 255, mode="L")
    if form == "jsonl":
        text = (
            '{"file_name": "a.png", "text": "one", "word": "bag", "who": "x", "mask": "m.png"}\n[1]\nnonsense\n'
            '{"file_name": "sub/b.png", "text": "two", "word": "bag", "who": "x"}\n{"text": "three"}\n'
        )
    else:
        text = "file_name,text,word,who,mask\na.png,one,bag,x,m.png\nsub/b.png,two,bag,x,\n,three,,,\n"
    (tmp_path / f"set/metadata.{form}").write_text(text)
    options = {"subject": "word", "subject_id": "who", "mask": "mask"}
    report = run("imagefolder", tmp_path / "set", tmp_path / "out", **options)
    rows = read(tmp_path / "out")
    assert [(row["id"], row["prompt"]) for row in rows] == [("a", "one"), ("sub-b", "two")]
    assert rows[0]["masks"] == ["source/m.png"]
    assert rows[1]["references"] == ["source/sub/b.png"]
    assert rows[0]["extra"] == {"subject_id": "x"}
    assert "masks" not in rows[1]
    assert report.rejected == (3 if form == "jsonl" else 1)
    run("imagefolder", tmp_path / "set", tmp_path / "paired", pairs="subject", **options | {"mask": None})
    assert [(row["references"], row["target"]) for row in read(tmp_path / "paired")] == [
        (["source/sub/b.png"], "source/a.png"),
        (["source/a.png"], "source/sub/b.png"),
    ]
    draw(tmp_path / "set/sub/b_seg.png", 255, mode="L")
    run("imagefolder", tmp_path / "set", tmp_path / "beside", **options)
    assert [row["masks"] for row in read(tmp_path / "beside")] == [
        ["source/m.png"],
        ["source/sub/b_seg.png"],
    ]
    run("imagefolder", tmp_path / "set", tmp_path / "pairs", pairs="subject", **options)
    first, second = read(tmp_path / "pairs")
    assert first["masks"] == ["source/sub/b_seg.png"]
    assert (first["target_mask"], second["target_mask"]) == ("source/m.png", "source/sub/b_seg.png")
    assert "masks" not in second, "the line's mask is of the line's picture, which is the target here"


# --- DreamBench


@needs_dreambench
@pytest.mark.parametrize(("subjects", "listed"), [("single", "eval_single"), ("multi", "eval_multi")])
def test_dreambench_is_the_public_list(tmp_path: Path, subjects: str, listed: str) -> None:
    """Text, order and references of the 750 prompts; tests can't reach UNO's own file, of which these are copies."""
    public = [json.loads(line) for line in (DREAMBENCH / f"{listed}.jsonl").read_text().splitlines()]
    importer = DreamBench.model_validate({"type": "dreambench", "subjects": subjects})
    rows = list(importer(str(DREAMBENCH), tmp_path))
    assert len(rows) == len(public) == 750
    for row, entry in zip(rows, public, strict=True):
        assert isinstance(row, Draft)
        assert row.prompt == entry["prompt"]
        images = entry.get("images") or [entry["image"]]
        assert [path.relative_to(DREAMBENCH).as_posix() for path in row.references] == images
        words = entry.get("class_names") or [entry["class_name"]]
        assert row.subject == " and ".join(words)
        assert row.extra["kind"] == entry["type"]


def test_dreambench_that_is_something_else(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no prompts_and_classes\.txt"):
        run("dreambench", tmp_path, tmp_path / "out")
    (tmp_path / "prompts_and_classes.txt").write_text("backpack,backpack\nprompt_list = [\n]\n")
    with pytest.raises(SourceError, match=r"holds \d classes and 1 prompt lists"):
        run("dreambench", tmp_path, tmp_path / "out")


@pytest.mark.parametrize("zipped", [False, True])
def test_dreambench_plus(tmp_path: Path, zipped: bool) -> None:
    source = tmp_path / "data"
    for name, lines in (("object/00", 10), ("live_subject/animal/01", 10), ("style/02", 4)):
        draw((source / "images" / name).with_suffix(".jpg"))
        caption = (source / "captions" / name).with_suffix(".txt")
        caption.parent.mkdir(parents=True)
        caption.write_text("\n".join(["Lamp", *(f"a lamp {n}" for n in range(lines - 1))]) + "\n")
    if zipped:
        with zipfile.ZipFile(tmp_path / "data.zip", "w") as file:
            for path in sorted(source.rglob("*.*")):
                file.write(path, path.relative_to(tmp_path).as_posix())
        source = tmp_path / "data.zip"
    report = run("dreambench++", source, tmp_path / "out")
    rows = read(tmp_path / "out")
    assert (report.rows, report.rejected, report.images) == (18, 1, 2)
    assert [row["id"] for row in rows[8:10]] == ["live_subject-animal-01-8", "object-00-0"]
    assert rows[9]["references"] == [f"{'images' if zipped else 'source/images'}/object/00.jpg"]
    assert rows[9]["subject"] == "Lamp"
    assert [row["extra"]["style"] for row in rows[9:]] == [
        *["photorealistic"] * 4, *["stylized"] * 3, *["imaginative"] * 2,
    ]  # fmt: skip
    assert rows[0]["extra"]["category"] == "animal"


# --- tables of the hub


@pytest.mark.parametrize(
    ("size", "left", "right"),
    [
        ((1024, 512), (0, 0, 512, 512), (512, 0, 1024, 512)),
        ((1048, 528), (8, 8, 520, 520), (528, 8, 1040, 520)),
        ((1072, 544), (16, 16, 528, 528), (544, 16, 1056, 528)),
        ((2080, 1056), (16, 16, 1040, 1040), (1040, 16, 2064, 1040)),
        ((1040, 512), (0, 0, 512, 512), (528, 0, 1040, 512)),
    ],
)
def test_halves_of_subjects200k(size: tuple[int, int], left: tuple[int, ...], right: tuple[int, ...]) -> None:
    assert halves(size) == (left, right)


@pytest.mark.parametrize("size", [(512, 512), (1024, 513), (1023, 512), (700, 528), (1500, 528)])
def test_pictures_that_are_no_two_views(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"is {size[0]} x {size[1]}; two square views"):
        halves(size)


def record(**changes: Any) -> dict[str, Any]:
    import io

    picture = Image.new("RGB", (1048, 528), "white")
    picture.paste("red", (8, 8, 520, 520))
    picture.paste("blue", (528, 8, 1040, 520))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    scores = {"compositeStructure": 5, "objectConsistency": 5, "imageQuality": 5}
    description = {
        "item": "bag",
        "description_0": "red place",
        "description_1": "blue place",
        "description_valid": True,
    }
    return {
        "image": {"bytes": buffer.getvalue(), "path": None}, "collection": "collection_2",
        "quality_assessment": scores, "description": description,
    } | changes  # fmt: skip


def test_subjects200k(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    low = {"compositeStructure": 5, "objectConsistency": 4, "imageQuality": 5}
    records = [
        record(), record(quality_assessment=low), record(quality_assessment=None), record(description=None),
        record(image={"bytes": b"<html>", "path": None}), record(collection="collection_1"), record(image=None),
    ]  # fmt: skip
    monkeypatch.setattr(Subjects200K, "records", lambda self, source: records)
    report = run("subjects200k", Path("Yuanshi/Subjects200K"), tmp_path, collections=["collection_2"])
    rows = read(tmp_path)
    assert [(row["id"], row["prompt"]) for row in rows] == [
        ("s200k-000000-1", "blue place"),
        ("s200k-000000-0", "red place"),
    ]
    assert rows[0]["references"] == rows[1]["target"].split() == ["images/s200k-000/s200k-000000-0.png"]
    data = ManifestDataset(ManifestDataset.Config(type="manifest", path=str(tmp_path / "manifest.jsonl")))
    assert data[0].references[0].size == (512, 512)
    assert data[0].references[0].getpixel((0, 0)) == data[0].references[0].getpixel((511, 511)) == (255, 0, 0)
    assert report.skipped == {"below min_quality": 2, "of another collection": 1}
    reasons = [one["reason"] for one in rejected(tmp_path)]
    assert [reason.split(";")[0] for reason in reasons] == [
        "has no description", "is an HTML page (a failed download?), not an image", "is not an image but NoneType",
    ]  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # of the libraries that datasets builds on
@pytest.mark.parametrize("streaming", [True, False])
def test_parquet_files_by_datasets(tmp_path: Path, streaming: bool) -> None:
    pytest.importorskip("datasets", reason="the extra 'hub' is not installed")
    import pyarrow
    from pyarrow import parquet

    (tmp_path / "table").mkdir()
    image = {"bytes": draw(tmp_path / "a.png").read_bytes(), "path": None}
    rows = [{"image": image, "prompt": prompt, "who": "x"} for prompt in ("one", "")]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "table/part-0.parquet")
    report = run("hub", tmp_path / "table", tmp_path / "out", subject_id="who", streaming=streaming)
    (row,) = read(tmp_path / "out")
    assert (row["prompt"], row["extra"], report.rejected) == ("one", {"subject_id": "x"}, 1)
    parquet.write_table(pyarrow.Table.from_pylist([record()] * 2), tmp_path / "pairs.parquet")
    assert run("subjects200k", tmp_path / "pairs.parquet", tmp_path / "two", streaming=streaming).rows == 4


def test_a_hub_set_needs_the_library_or_a_real_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(SourceError, match=r"pip install 'customized-grpo\[hub\]'"):
        run("hub", Path("some/set"), tmp_path)


def test_a_hub_set_that_breaks_off_is_the_source_s_error() -> None:
    """Whatever of a dozen types the libraries beneath it raise while records are fetched."""

    def table() -> Iterator[dict[str, Any]]:
        yield {"prompt": "a"}
        raise ConnectionResetError("by peer")

    records = read_table("some/set", table())
    assert next(records) == {"prompt": "a"}
    with pytest.raises(SourceError, match=r"some/set: reading broke off after record 1: ConnectionResetError: by"):
        next(records)


# --- JSON


@pytest.mark.parametrize("chunk", [1, 2, 7, 1 << 20])
def test_a_large_array_is_read_in_pieces(tmp_path: Path, chunk: int) -> None:
    items = [{"a": "x]},[{é"}, {}, {"b": [1, {"c": None}]}]
    path = tmp_path / "a.json"
    for text in (
        json.dumps(items),
        json.dumps(items, indent=3, ensure_ascii=False),
        "\ufeff" + json.dumps(items),
    ):
        path.write_text(text, encoding="utf-8")
        assert list(json_objects(path, chunk=chunk)) == items
    path.write_text("[]")
    assert list(json_objects(path, chunk=chunk)) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1}', "is not a JSON array"),
        ("", "item 1: is not JSON"),
        ('[{"a": 1}, {"b": ', "item 2: is not JSON"),
        ('[{"a": 1}', "closing bracket"),
        ("[{'a': 1}]", "item 1: is not JSON"),
    ],
)
def test_json_that_is_something_else(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(SourceError, match=rf"a\.json: .*{message}"):
        list(json_objects(tmp_path / "a.json"))
    with pytest.raises(SourceError, match="can't be read"):
        list(json_objects(tmp_path / "none.json"))


def test_one_bad_item_never_loses_the_others(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    text = '[{"a": 1}, 3, {"a": NaN}, {"a": 1, "a": 2}, {"a": "\\ud83d"}, {"a": "\xe9"}, {"a": 2}]'
    path.write_bytes(text.encode("latin-1"))
    found = list(json_objects(path, chunk=5))
    assert [item for item in found if isinstance(item, dict)] == [{"a": 1}, {"a": 2}]
    reasons = [str(item) for item in found if isinstance(item, ValueError)]
    words = ("not an object but int", "NaN", "'a' is there twice", "half of a surrogate", "not UTF-8")
    assert len(reasons) == len(words)
    assert all(word in reason for word, reason in zip(words, reasons, strict=True))
    path.write_bytes('[{"a": "\u4e00"}]'.encode("utf-16"))
    assert list(json_objects(path)) == [{"a": "\u4e00"}]
