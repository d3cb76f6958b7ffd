"""The writer of all importers: unique safe ids, relative paths, one look a file, and nothing lost."""

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from customized_grpo.data.manifest import ManifestDataset
from customized_grpo.data.rows import Row
from customized_grpo.prepare import inspection
from customized_grpo.prepare.importers.base import Draft, Importer, Item, Rejected, Skipped, SourceError
from customized_grpo.prepare.importers.ids import Ids
from customized_grpo.prepare.importers.writer import Options, import_data
from layouts import draw, read, rejected

ITEMS: list[Any] = []
ITEMS_OF: list[Iterator[Any]] = []
"""What comes after them."""


class Fixed(Importer):
    """Gives ``ITEMS``; paths in them are relative to the source."""

    def __call__(self, source: str, out: Path) -> Iterator[Item]:
        root = Path(source)
        for item in chain(ITEMS, *ITEMS_OF):
            yield draft(root, **item) if isinstance(item, dict) else item


def draft(root: Path, **fields: Any) -> Draft:
    def at(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(at, value))
        return value if value is None else root / value

    files = {
        key: at(fields.pop(key)) for key in ("references", "masks", "target", "target_mask", "views") if key in fields
    }
    return Draft(**{"id": "a", "prompt": "a bag", "references": (root / "a.png",)} | fields | files)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    ITEMS_OF.clear()
    folder = tmp_path / "source"
    for name, colour in (("a.png", "red"), ("sub/b.png", "blue"), ("t.png", "green")):
        draw(folder / name, colour)
    draw(folder / "m.png", 255, mode="L")
    draw(folder / "wide.png", 255, (32, 8), mode="L")
    (folder / "bad.png").write_bytes(b"<html>")
    return folder


def run(source: Path, out: Path, *items: Any, **options: Any):  # type: ignore[no-untyped-def]
    ITEMS[:] = items
    return import_data(Fixed(type="fixed"), str(source), out, Options(**options))


def test_every_field_and_no_empty_ones(source: Path, tmp_path: Path) -> None:
    full = {
        "references": ("a.png", "sub/b.png"), "masks": ("m.png", None), "target": "t.png", "target_mask": "m.png",
        "views": ("a.png",), "subject": "bag", "extra": {"n": 1}, "prompt": "ein Rucksack für Mädchen",
    }  # fmt: skip
    run(source, tmp_path / "out", full, {"id": "plain"})
    rows = read(tmp_path / "out")
    assert rows == [
        {
            "id": "a", "prompt": "ein Rucksack für Mädchen", "references": ["source/a.png", "source/sub/b.png"],
            "subject": "bag", "masks": ["source/m.png", None], "target": "source/t.png", "target_mask": "source/m.png",
            "views": ["source/a.png"], "extra": {"n": 1},
        },
        {"id": "plain", "prompt": "a bag", "references": ["source/a.png"]},
    ]  # fmt: skip
    data = ManifestDataset(ManifestDataset.Config(type="manifest", path=str(tmp_path / "out/manifest.jsonl")))
    assert data[0].extra == {"n": 1, "views": (tmp_path / "out/source/a.png",)}
    assert data[0].masks[1] is None
    assert len(data) == 2


def test_images_inside_the_output_folder_need_no_link(source: Path) -> None:
    run(source, source, {})
    assert read(source)[0]["references"] == ["a.png"]
    assert not (source / "source").exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_each_file_is_looked_at_once(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    looks: list[Path] = []
    plain = inspection.look
    if workers == 1:  # another process counts for itself
        monkeypatch.setattr(inspection, "look", lambda wanted: (looks.append(wanted.path), plain(wanted))[1])
    items = [
        {"references": ("a.png",), "masks": ("m.png",), "target": "t.png", "prompt": f"bag {n}"} for n in range(1100)
    ]
    report = run(source, tmp_path / "out", *items, workers=workers)
    assert (report.rows, report.images) == (1100, 2)
    assert [row["prompt"] for row in read(tmp_path / "out")] == [f"bag {n}" for n in range(1100)]
    if workers == 1:
        assert sorted(path.name for path in looks) == ["a.png", "m.png", "t.png"]


def test_what_cannot_be_used_is_written_down(source: Path, tmp_path: Path) -> None:
    report = run(
        source,
        tmp_path / "out",
        {"id": "good", "masks": ("m.png",)},
        {"id": "html", "references": ("bad.png",)},
        {"id": "gone", "references": ("a.png",), "target": "no.png"},
        {"id": "out", "references": ("../../etc/passwd",)},
        {"id": "zero", "references": ("a\0.png",)},
        {"id": "blank", "prompt": "  "},
        {"id": "half", "prompt": "a \ud800 bag"},
        {"id": "maskless", "masks": ("bad.png",)},
        {"id": "misfit", "masks": ("wide.png",)},
        Rejected("theirs", "because"),
        Skipped("too small"),
        Skipped("too small"),
        {"id": "odd", "extra": {"x": {1}}},
    )
    assert [row["id"] for row in read(tmp_path / "out")] == ["good", "maskless", "misfit"]
    assert ["masks" in row for row in read(tmp_path / "out")] == [True, False, False]
    lines = [(one["what"], one["id"], one["problem"]) for one in rejected(tmp_path / "out")]
    assert lines == [
        ("row", "html", "html"), ("row", "gone", "missing"), ("row", "out", "outside"), ("row", "zero", "outside"),
        ("row", "blank", "entry"), ("row", "half", "entry"), ("mask", "maskless", "mask"), ("mask", "misfit", "mask"),
        ("row", "theirs", "entry"), ("row", "odd", "entry"),
    ]  # fmt: skip
    assert (report.rows, report.rejected, report.masks_dropped, report.skipped) == (3, 8, 2, {"too small": 2})
    facts = json.loads((tmp_path / "out/import.json").read_text())
    assert facts["rejected"] == 8
    assert facts["importer"]["type"] == "fixed"
    assert sum(facts["problems"].values()) == 8


def test_noisy_prompts_can_be_dropped(source: Path, tmp_path: Path) -> None:
    items = ({"id": "a"}, {"id": "b", "prompt": "a -out bag"})
    report = run(source, tmp_path / "kept", *items)
    assert (report.rows, report.prompts.noisy, dict(report.prompts.problems)) == (2, 1, {"lost-word": 1})
    assert run(source, tmp_path / "dropped", *items, noisy="drop").rows == 1
    assert rejected(tmp_path / "dropped")[0]["reason"] == "prompt: lost-word: a -out bag"


def test_a_limit_takes_no_item_that_can_not_become_a_row(source: Path, tmp_path: Path) -> None:
    """An item of a streamed set is a download."""
    taken = []

    def endless() -> Iterator[Any]:
        for number in range(10_000):
            taken.append(number)
            yield Skipped("odd") if number % 2 else {"id": f"{number}"}

    ITEMS_OF[:] = [endless()]
    report = run(source, tmp_path / "out", limit=4)
    assert (report.rows, report.skipped) == (4, {"odd": 3})
    assert taken == list(range(7))


def test_a_source_that_breaks_off_says_what_came_before(source: Path, tmp_path: Path) -> None:
    def breaking() -> Iterator[Any]:
        yield {"id": "a"}
        yield Rejected("b", "no prompt")
        yield {"id": "c"}
        raise SourceError("the hub: ConnectionError: gone")

    ITEMS_OF[:] = [breaking()]
    with pytest.raises(SourceError, match=r"^the hub: .*: gone; 2 rows came before, '--limit 2' imports them$"):
        run(source, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.jsonl").exists(), "it is whole or absent"
    ITEMS_OF[:] = [breaking()]
    assert run(source, tmp_path / "out", limit=2).rows == 2
    assert [row["id"] for row in read(tmp_path / "out")] == ["a", "c"]


def test_a_limit_counts_rows(source: Path, tmp_path: Path) -> None:
    items = ({"references": ("bad.png",)}, *({"id": str(n)} for n in range(9)))
    assert run(source, tmp_path / "out", *items, limit=4).rows == 4
    assert [row["id"] for row in read(tmp_path / "out")] == ["0", "1", "2", "3"]


def test_a_manifest_is_not_replaced_unasked_and_never_halfway(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "out", {})
    before = (tmp_path / "out/manifest.jsonl").read_bytes()
    with pytest.raises(ValueError, match="is there already; give another folder with --out, or --overwrite"):
        run(source, tmp_path / "out", {})
    with pytest.raises(ValueError, match=r"none of 1 entries became a row.*first reason: .*bad\.png"):
        run(source, tmp_path / "out", {"references": ("bad.png",)}, overwrite=True)
    with pytest.raises(ValueError, match="2 masks for 1 references"):
        run(source, tmp_path / "out", {}, {"masks": ("m.png", "m.png")}, overwrite=True)
    assert (tmp_path / "out/manifest.jsonl").read_bytes() == before
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "import.json", "manifest.jsonl", "rejected.jsonl", "source",
    ]  # fmt: skip
    run(source, tmp_path / "out", {"id": "new"}, overwrite=True)
    assert read(tmp_path / "out")[0]["id"] == "new"


def test_what_is_in_the_way_of_the_link_is_kept(source: Path, tmp_path: Path) -> None:
    draw(tmp_path / "out/source/mine.png")
    with pytest.raises(ValueError, match="is in the way of a link"):
        run(source, tmp_path / "out", {})
    assert (tmp_path / "out/source/mine.png").is_file()


def test_copies_are_plain_and_apart(source: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "SecretCamera", 6
    Image.new("RGB", (8, 4), "red").save(source / "a.jpg", exif=exif)
    Image.new("RGB", (4, 4), "blue").save(source / "a.webp")
    items = (
        {"id": "jpg", "references": ("a.jpg",)},
        {"id": "webp", "references": ("a.webp",), "masks": ("m.png",)},
    )
    run(source, tmp_path / "out", *items, images="copy", decode=False)
    assert [row["references"] for row in read(tmp_path / "out")] == [
        ["images/a-jpg.png"],
        ["images/a-webp.png"],
    ]
    with Image.open(tmp_path / "out/images/a-jpg.png") as copied:
        assert (copied.size, copied.info) == ((4, 8), {})
    assert b"SecretCamera" not in (tmp_path / "out/images/a-jpg.png").read_bytes()


@settings(deadline=None)  # of a busy machine
@given(st.lists(st.text(max_size=6), min_size=1, max_size=12))
def test_ids_are_safe_and_unique(wishes: list[str]) -> None:
    taken = Ids()
    ids = [taken.free(wish) for wish in [*wishes, "a" * 200, "a" * 200, "a-2", "A", "a", "a-2"]]
    assert len({name.casefold() for name in ids}) == len(ids)
    for name in ids:
        Row(id=name, prompt="x", references=["a"])
