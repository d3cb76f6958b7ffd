"""The manifest data set: what it reads, and that every mistake is named with file and line."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from customized_grpo.data.manifest import ManifestDataset, ManifestError
from customized_grpo.data.rows import read_rows
from customized_grpo.prepare.check import check_manifest
from customized_grpo.prepare.split import split_manifest


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    (folder / "bag").mkdir(parents=True)
    Image.new("RGB", (8, 6), "red").save(folder / "bag/0.png")
    Image.new("RGB", (8, 6), "blue").save(folder / "bag/1.png")
    Image.new("L", (8, 6), 255).save(folder / "bag/mask.png")
    Image.new("L", (6, 6), 255).save(folder / "bag/small_mask.png")
    (folder / "bag/bad.png").write_bytes(b"<html>404</html>")
    Image.new("RGB", (8, 6)).save(tmp_path / "outside.png")
    return folder


def row(**changes: Any) -> dict[str, Any]:
    return {"id": "bag-0", "prompt": "a bag in the snow", "references": ["bag/0.png"]} | changes


def write(root: Path, *lines: Any) -> Path:
    path = root / "train.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def load(path: Path, **options: Any) -> ManifestDataset:
    return ManifestDataset(ManifestDataset.Config(type="manifest", path=str(path), **options))


def test_reads_every_field(root: Path) -> None:
    full = row(
        references=["bag/0.png", "bag/1.png"],
        subject="bag",
        masks=["bag/mask.png", None],
        extra={"source": "syncd", "n": 3},
        prompt="ein Rucksack für Mädchen",
    )
    data = load(write(root, full, "", row(id="bag-1")))
    assert len(data) == 2
    first, second = data[0], data[1]
    assert (first.key, first.prompt, first.subject) == ("bag-0", "ein Rucksack für Mädchen", "bag")
    assert [image.getpixel((0, 0)) for image in first.references] == [(255, 0, 0), (0, 0, 255)]
    assert first.masks[0] is not None
    assert first.masks[0].mode == "L"
    assert first.masks[1] is None
    assert first.extra == {"source": "syncd", "n": 3}
    assert (second.key, second.masks, second.extra, second.subject) == ("bag-1", (), {}, "")


@pytest.mark.parametrize("text", ["", "\n \n", "\ufeff"])
def test_an_empty_manifest_is_refused_by_all_that_read_one(root: Path, text: str) -> None:
    path = root / "train.jsonl"
    path.write_text(text, encoding="utf-8")
    for reads in (load, lambda path: list(read_rows(path)), check_manifest, partial(split_manifest, share=0.5)):
        with pytest.raises(ManifestError, match="the manifest is empty"):
            reads(path)


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize(("whole", "what"), [([row()], "a JSON array"), (row(), "JSON over several lines")])
def test_json_that_is_no_jsonl_is_one_error(root: Path, whole: Any, what: str, indent: int | None) -> None:
    path = root / "train.jsonl"
    path.write_text(json.dumps(whole, indent=indent))
    if indent is None and isinstance(whole, dict):
        assert len(load(path)) == 1
        return
    with pytest.raises(ManifestError, match=rf"train\.jsonl: is {what}; write one JSON object per line, as by: jq -c"):
        check_manifest(path)


@pytest.mark.parametrize("given", ["e\u0301/\u00e9.png", "\u00e9\\e\u0301.png", "\u00c9/e\u0301.PNG"])
def test_files_are_found_under_the_names_of_other_systems(root: Path, given: str) -> None:
    (root / "\u00e9").mkdir()
    Image.new("RGB", (8, 6), "red").save(root / "\u00e9/e\u0301.png")
    path = write(root, row(references=[given], views=["BAG/1.png"], masks=["bag/Mask.png"]))
    data = load(path)
    assert data.sources(0).references == ("\u00e9/e\u0301.png",)
    assert data.sources(0).views == ("bag/1.png",)
    assert data[0].masks[0] is not None
    assert check_manifest(path)[0].ok


def test_limit_and_range(root: Path) -> None:
    path = write(root, row(id="a"), row(id="b"), row(id="c"), "this line is never read")
    data = load(path, limit=2)
    assert [data[index].key for index in range(len(data))] == ["a", "b"]
    for index in (2, -1):
        with pytest.raises(IndexError, match="of 2"):
            data[index]


def test_a_byte_order_mark_and_windows_line_ends_are_fine(root: Path) -> None:
    path = root / "train.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(row()).encode() + b"\r\n\r\n")
    assert len(load(path)) == 1


def test_paths_are_relative_to_the_manifest(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(root, row())
    monkeypatch.chdir(root.parent)
    assert load(Path("data/train.jsonl"))[0].key == "bag-0"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", r"is not JSON \(.*column 2\)"),
        ("[1, 2]", r"is no JSON object but \[1, 2\]; a line has the keys id, prompt"),
        (
            row(refs=["bag/0.png"]),
            "unknown key 'refs'; allowed: id, prompt, references, subject, masks, target, target_mask, chosen, "
            "rejected, height, width, views, extra",
        ),
        ({"id": "a", "references": ["bag/0.png"]}, "the key 'prompt' is missing"),
        (row(prompt=" "), "prompt: is empty"),
        (row(prompt=3), "prompt: given 3; it must be a text"),
        (row(references=[]), r"references: given \[\]; it must be a list of one path"),
        (row(references="bag/0.png"), "references: given .*; it must be a list"),
        (row(id="../../etc/x"), "id: given '../../etc/x'; use at most 128 letters"),
        (row(id=""), "id: given ''"),
        (row(id="a/b"), "id: given 'a/b'"),
        (row(id="first"), "id 'first' is already that of line 1"),
        (row(masks=["bag/mask.png"] * 2), "2 masks for 1 references"),
        (row(prompt="\u200b\u00a0\ufeff"), "prompt: is empty"),
        (row(prompt=7), "prompt: given 7; it must be a text"),
        (row(references=["bag/7.png"]), r"no such file: .*bag/7\.png"),
        (row(references=["../outside.png"]), "'../outside.png' is not inside the manifest's folder"),
        (row(references=["bag/../../outside.png"]), "not inside"),
        (row(references=["bag\\..\\..\\outside.png"]), "not inside"),
        (row(references=["/etc/hostname"]), "not inside"),
        (row(references=["C:\\a.png"]), "not inside"),
        (row(references=["C:a.png"]), "not inside"),
        (row(references=[""]), "not inside"),
        (row(references=["bag/\x00.png"]), "not inside"),
        (row(masks=["../outside.png"]), "not inside"),
        (row(references=["https://x.org/a.png"]), "'https://x.org/a.png' is a URL; download the file"),
        (row(references=["data:image/png;base64,AA"]), "is a URL"),
        (row(extra=3), "extra: given 3; it must be an object"),
    ],
)
def test_mistakes_name_file_and_line(root: Path, line: Any, message: str) -> None:
    path = write(root, row(id="first"), "", line)
    with pytest.raises(ManifestError, match=rf"train\.jsonl:3: .*{message}"):
        load(path)


def test_text_that_is_not_utf8(root: Path) -> None:
    path = root / "train.jsonl"
    path.write_bytes(json.dumps(row()).encode() + b"\n" + b'{"id": "\xff"}\n')
    with pytest.raises(ManifestError, match=r"train\.jsonl:2: is not UTF-8"):
        load(path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_manifest_of_any_unicode_and_ends_of_line(root: Path, encoding: str, end: str) -> None:
    prompt = "一只狗\u2028\U0001f436"
    lines = [json.dumps(row(id=name, prompt=prompt), ensure_ascii=False) for name in ("a", "b")]
    (root / "train.jsonl").write_bytes(end.join(lines).encode(encoding))
    assert [(example.key, example.prompt) for example in load(root / "train.jsonl")] == [("a", prompt), ("b", prompt)]


def test_all_bad_lines_are_counted_and_the_others_can_be_kept(root: Path) -> None:
    path = root / "train.jsonl"
    bad = [b'{"id": "\xb9\xb7"}', b'{"id": NaN}', b"{", b'{"id": "\\ud83d"}', json.dumps(row(id="é")).encode()]
    path.write_bytes(b"\n".join([json.dumps(row(id="a")).encode(), *bad, json.dumps(row(id="z")).encode()]))
    with pytest.raises(ManifestError, match=r"(?s)^5 lines can't be read.*data check .*jsonl:2: .*:3: .*:4: .*\.\.\.$"):
        load(path)
    found = dict(read_rows(path))
    assert [number for number, one in found.items() if isinstance(one, ManifestError)] == [2, 3, 4, 5, 6]


def test_images_are_read_late_and_their_errors_name_the_line(root: Path) -> None:
    data = load(write(root, row(id="a"), row(id="b", references=["bag/0.png", "bag/bad.png"])))
    assert data[0].key == "a"
    with pytest.raises(ManifestError, match=r"train\.jsonl:2: .*bad\.png: is an HTML page"):
        data[1]


def test_a_mask_of_another_size_is_refused(root: Path) -> None:
    data = load(write(root, row(masks=["bag/small_mask.png"])))
    with pytest.raises(ManifestError, match=r":1: mask 'bag/small_mask\.png' is 6 x 6 but its image is 8 x 6"):
        data[0]


def test_no_manifest_and_an_empty_one(root: Path) -> None:
    with pytest.raises(ManifestError, match="no such manifest"):
        load(root / "none.jsonl")
    with pytest.raises(ManifestError, match="no such manifest"):
        load(root)
    with pytest.raises(ManifestError, match="manifest is empty"):
        load(write(root, "", ""))


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ValueError, match="shuffle"):
        ManifestDataset.Config.model_validate({"type": "manifest", "path": "a", "shuffle": True})


@pytest.mark.parametrize(
    "line",
    [
        '{"id": "a", "prompt": "a dog", "prompt": "a cat", "references": ["r.png"]}',
        '{"id": "a", "prompt": "a dog", "references": ["r.png"], "extra": {"prompt": 1, "prompt": 2}}',
    ],
)
def test_a_key_that_is_given_twice_is_refused(tmp_path: Path, line: str) -> None:
    """JSON leaves open which one counts; Python kept the last."""
    (tmp_path / "m.jsonl").write_text(line)
    ((_, found),) = read_rows(tmp_path / "m.jsonl")
    assert "m.jsonl:1: the key 'prompt' is there twice; keep one" in str(found)
