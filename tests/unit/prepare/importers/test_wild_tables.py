"""Tables of the hub as people have them on disk: splits stay apart, several images are several references."""

import json
from pathlib import Path
from typing import Any

import pytest

from customized_grpo import registry
from customized_grpo.prepare.importers.base import SourceError
from customized_grpo.prepare.importers.report import Report
from customized_grpo.prepare.importers.writer import Options, import_data
from layouts import draw, read, rejected

datasets = pytest.importorskip("datasets", reason="the extra 'hub' is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries that datasets builds on


def run(source: Path, out: Path, **options: Any) -> Report:
    importer = registry.resolve("importers", "hub").model_validate({"type": "hub", **options})
    return import_data(importer, str(source), out, Options())


def image(folder: Path, colour: Any = "red") -> dict[str, Any]:
    return {"bytes": draw(folder / "made.png", colour).read_bytes(), "path": None}


def table(path: Path, *rows: dict[str, Any], made: Path | None = None) -> Path:
    import pyarrow
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    made = made or path.parents[1] / "made"
    whole = [{"image": image(made), "prompt": path.stem} | row for row in rows or ({},)]
    parquet.write_table(pyarrow.Table.from_pylist(whole), path)
    return path


def prompts(out: Path) -> list[str]:
    return [row["prompt"] for row in read(out)]


LAYOUTS = {
    "files": ("train.parquet", "test.parquet"),
    "shards": ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"),
    "folders": ("train/0.parquet", "eval/0.parquet"),
    "names": ("pets_train_0.parquet", "pets-testing.parquet"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_splits_of_parquet_files_are_not_mixed(tmp_path: Path, layout: str) -> None:
    for number, name in enumerate(LAYOUTS[layout]):
        table(tmp_path / "set" / name, {"prompt": f"a bag {number}"}, made=tmp_path)
    with pytest.raises(
        SourceError, match=r"has the splits t\w+ \(1 file: .*\), t\w+ \(1 file: .*which are not mixed; say"
    ):
        run(tmp_path / "set", tmp_path / "out")
    for number, split in enumerate(("train", "test")):
        report = run(tmp_path / "set", tmp_path / split, split=split)
        assert prompts(tmp_path / split) == [f"a bag {number}"]
        assert report.remarks[0].startswith(
            f"split {split}; not read: {'test' if split == 'train' else 'train'} (1 file"
        )
    assert run(tmp_path / "set", tmp_path / "all", split="all").rows == 2
    with pytest.raises(SourceError, match="there is no split 'validation'; there are: "):
        run(tmp_path / "set", tmp_path / "out", split="validation")


def test_files_of_no_split_are_asked_about(tmp_path: Path) -> None:
    table(tmp_path / "set/toy-train.parquet")
    table(tmp_path / "set/bags.parquet")
    with pytest.raises(SourceError, match=r"of no split \(1 file: bags\.parquet\), train|train .*of no split"):
        run(tmp_path / "set", tmp_path / "out")


def test_parts_without_splits_are_one(tmp_path: Path) -> None:
    table(tmp_path / "set/part-0.parquet")
    table(tmp_path / "set/more/part-1.PARQUET", made=tmp_path)
    table(tmp_path / "elsewhere/part-2.parquet")
    (tmp_path / "set/linked").symlink_to(tmp_path / "elsewhere")
    for name in ("._part-0.parquet", "@eaDir/part-0.parquet", ".cache/part-0.parquet"):
        (tmp_path / "set" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "set" / name).write_bytes(b"\0\5\x16\7")
    report = run(tmp_path / "set", tmp_path / "out")
    assert sorted(prompts(tmp_path / "out")) == ["part-0", "part-1", "part-2"]
    assert report.remarks == []


def test_a_readme_says_what_the_splits_are(tmp_path: Path) -> None:
    for name in "ab":
        table(tmp_path / f"set/{name}/1.parquet", {"prompt": name}, made=tmp_path)
    (tmp_path / "set/README.md").write_text(
        "---\nconfigs:\n- config_name: one\n  data_files:\n  - split: train\n    path: a/*.parquet\n"
        "  - split: holdout\n    path: b/*.parquet\n- config_name: two\n  data_files: b/*.parquet\n---\n"
    )
    with pytest.raises(SourceError, match="has the configurations one, two; say which: config=one"):
        run(tmp_path / "set", tmp_path / "out")
    with pytest.raises(SourceError, match="has the splits train, holdout, which are not mixed"):
        run(tmp_path / "set", tmp_path / "out", config="one")
    run(tmp_path / "set", tmp_path / "out", config="one", split="holdout")
    assert prompts(tmp_path / "out") == ["b"]
    report = run(tmp_path / "set", tmp_path / "two", config="two")
    assert prompts(tmp_path / "two") == ["b"]
    assert report.remarks == ["not read, because datasets finds them in no split: 1 file: a/1.parquet"]


@pytest.mark.parametrize("streaming", [True, False])
def test_an_imagefolder_with_splits(tmp_path: Path, streaming: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for split in ("train", "test"):
        draw(tmp_path / "set" / split / "a.png")
        line = json.dumps({"file_name": "a.png", "text": f"a bag of {split}"})
        (tmp_path / "set" / split / "metadata.jsonl").write_text(line + "\n")
    with pytest.raises(SourceError, match="has the splits train, test, which are not mixed"):
        run(tmp_path / "set", tmp_path / "out", prompt="text")
    report = run(tmp_path / "set", tmp_path / "out", prompt="text", split="test", streaming=streaming)
    assert prompts(tmp_path / "out") == ["a bag of test"]
    assert report.remarks == ["split test; not read: train"]


def test_a_picture_called_train_does_not_drop_the_others_in_silence(tmp_path: Path) -> None:
    """Reported as huggingface/datasets #5021."""
    for name in ("a_train.png", "b.png"):
        draw(tmp_path / "set" / name)
    lines = [json.dumps({"file_name": name, "text": "a bag"}) for name in ("a_train.png", "b.png")]
    (tmp_path / "set/metadata.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(
        SourceError, match=r"words such as 'train' in names for splits and leaves out 2 files: b\.png, meta"
    ):
        run(tmp_path / "set", tmp_path / "out", prompt="text")


def test_several_images_are_several_references(tmp_path: Path) -> None:
    one, two = image(tmp_path, "red"), image(tmp_path, "blue")
    table(tmp_path / "set/x.parquet", {"image": [one, two]})
    run(tmp_path / "set", tmp_path / "list")
    (row,) = read(tmp_path / "list")
    assert row["references"] == [f"images/row-000/row-000000-reference-{n}.png" for n in (0, 1)]
    typed = datasets.Dataset.from_list(
        [{"images": [str(tmp_path / "made.png")] * 2, "prompt": "a bag", "one": str(tmp_path / "made.png")}],
        datasets.Features(
            {"images": datasets.Sequence(datasets.Image()), "prompt": datasets.Value("string"), "one": datasets.Image()}
        ),
    )
    (tmp_path / "typed").mkdir()
    typed.to_parquet(str(tmp_path / "typed/x.parquet"))
    run(tmp_path / "typed", tmp_path / "sequence", reference="images", target="one")
    assert len(read(tmp_path / "sequence")[0]["references"]) == 2
    run(tmp_path / "typed", tmp_path / "columns", reference=["one", "images"])
    assert len(read(tmp_path / "columns")[0]["references"]) == 3
    for options, message in (
        ({"reference": "one", "target": "images"}, "images: holds 2 images; a row has one target"),
        ({"reference": "one", "mask": "images"}, "images: 2 masks for 1 references"),
        ({"reference": "image"}, "has no column 'image'; columns: images, prompt, one"),
    ):
        with pytest.raises(SourceError, match=message):
            run(tmp_path / "typed", tmp_path / "no", **options)


def test_no_id_is_no_individual(tmp_path: Path) -> None:
    ids = (None, float("nan"), 3.0, 4.5)
    table(tmp_path / "set/x.parquet", *({"who": who, "prompt": f"a bag {n}"} for n, who in enumerate(ids)))
    run(tmp_path / "set", tmp_path / "out", subject_id="who")
    assert [row.get("extra") for row in read(tmp_path / "out")] == [
        None,
        None,
        {"subject_id": "3"},
        {"subject_id": "4.5"},
    ]
    table(tmp_path / "text/x.parquet", *({"who": who} for who in ("None", "nan", "x")))
    run(tmp_path / "text", tmp_path / "two", subject_id="who")
    assert [row.get("extra") for row in read(tmp_path / "two")] == [None, None, {"subject_id": "x"}]


@pytest.mark.parametrize("nothing", [None, "", "nan", "None"])
def test_no_prompt_is_no_row(tmp_path: Path, nothing: Any) -> None:
    table(tmp_path / "set/x.parquet", {"prompt": nothing}, {"prompt": "a bag"})
    run(tmp_path / "set", tmp_path / "out")
    assert prompts(tmp_path / "out") == ["a bag"]
    assert "prompt: given" in rejected(tmp_path / "out")[0]["reason"]


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,b\n")
    with pytest.raises(SourceError, match="is no parquet file; give the folder"):
        run(tmp_path / "x.csv", tmp_path / "out")


def test_a_set_that_datasets_saved_is_read(tmp_path: Path) -> None:
    one = datasets.Dataset.from_list([{"image": image(tmp_path), "prompt": "a bag"}])
    one.save_to_disk(str(tmp_path / "one"))
    run(tmp_path / "one", tmp_path / "out")
    assert prompts(tmp_path / "out") == ["a bag"]
    with pytest.raises(SourceError, match="there is no split 'test'; there are: train"):
        run(tmp_path / "one", tmp_path / "out2", split="test")
    datasets.DatasetDict({"train": one, "test": one}).save_to_disk(str(tmp_path / "two"))
    with pytest.raises(SourceError, match=r"has the splits .*, which are not mixed"):
        run(tmp_path / "two", tmp_path / "out2")
    run(tmp_path / "two", tmp_path / "two_out", split="test")
    assert prompts(tmp_path / "two_out") == ["a bag"]


def test_what_is_read_is_said_where_it_is_no_training_split(tmp_path: Path) -> None:
    table(tmp_path / "set/test-0.parquet")
    assert run(tmp_path / "set", tmp_path / "out").remarks == ["split test"]


def test_a_path_in_place_of_an_image_is_named(tmp_path: Path) -> None:
    table(tmp_path / "set/x.parquet", {"image": "pictures/a.png"})
    with pytest.raises(
        SourceError, match=r"is text, not an image: 'pictures/a\.png'; 'imagefolder' reads tables of paths"
    ):
        run(tmp_path / "set", tmp_path / "out")


def test_what_a_system_or_an_import_put_into_a_set_is_none_of_it(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        draw(tmp_path / "set" / name)
    lines = [json.dumps({"file_name": name, "text": f"a bag {name}"}) for name in ("a.png", "b.png")]
    (tmp_path / "set/metadata.jsonl").write_text("\n".join(lines) + "\n")
    for name in ("@eaDir/a.png", "#recycle/a.png", "lost+found/a.png"):
        draw(tmp_path / "set" / name)
    for out in (tmp_path / "set/out", tmp_path / "again"):
        report = run(tmp_path / "set", out, prompt="text")
        assert (report.rows, report.rejected, report.remarks) == (2, 0, [])
