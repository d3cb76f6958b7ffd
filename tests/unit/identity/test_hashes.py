"""Hashes of files: remembered by size, times and inode, and never beyond what the clock can tell apart."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from customized_grpo.identity import hashes as module
from customized_grpo.identity.hashes import FileHashes, file_hash, meanwhile, short_hash


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read."""
    found: list[str] = []

    def read(path: Path) -> str:
        found.append(path.name)
        return file_hash(path)

    monkeypatch.setattr(module, "file_hash", read)
    return found


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every file had lain there for a while."""
    monkeypatch.setattr(module, "_GRAIN_NS", -(10**12))


def files(folder: Path) -> Path:
    (folder / "sub").mkdir(parents=True)
    for name in ("a", "sub/b"):
        (folder / name).write_text(name)
    return folder


def rewritten(file: Path) -> None:
    file.write_text("x" * file.stat().st_size)


def rewritten_at_its_old_time(file: Path) -> None:
    before = file.stat()
    rewritten(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def replaced_by_a_rename(file: Path) -> None:
    other = file.with_name("other")
    other.write_text("y" * file.stat().st_size)
    os.utime(other, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    other.replace(file)


def replaced_by_a_link(file: Path) -> None:
    other = file.parent.parent / f"{file.name}-elsewhere"
    other.write_text("z" * file.stat().st_size)
    file.unlink()
    file.symlink_to(other)


@pytest.mark.parametrize("change", [rewritten, rewritten_at_its_old_time, replaced_by_a_rename, replaced_by_a_link])
def test_what_changed_is_read_again_and_nothing_else(
    tmp_path: Path, change: Callable[[Path], None], reads: list[str], settled: None
) -> None:
    folder = files(tmp_path / "data")
    hashes = FileHashes(tmp_path / "store.json")
    first = hashes.of(folder, ["a", "sub/b"])
    assert first == {name: file_hash(folder / name) for name in ("a", "sub/b")}
    hashes.save()
    change(folder / "a")
    reads.clear()
    again = FileHashes(tmp_path / "store.json").of(folder, ["a", "sub/b"])
    assert reads == ["a"]
    assert again == first | {"a": file_hash(folder / "a")}
    assert again != first


def test_a_moved_folder_is_not_read_again(tmp_path: Path, reads: list[str], settled: None) -> None:
    folder = files(tmp_path / "data")
    hashes = FileHashes(tmp_path / "store.json")
    first = hashes.of(folder, ["a", "sub/b"])
    hashes.save()
    reads.clear()
    moved = folder.rename(tmp_path / "moved")
    assert FileHashes(tmp_path / "store.json").of(moved, ["a", "sub/b"]) == first
    assert reads == []


def test_what_was_just_written_is_not_remembered(tmp_path: Path, reads: list[str]) -> None:
    """A second write within the clock's grain may leave size and time as they were."""
    folder, hashes = files(tmp_path / "data"), FileHashes(tmp_path / "store.json")
    hashes.of(folder, ["a"])
    hashes.save()
    assert not (tmp_path / "store.json").exists()
    hashes.of(folder, ["a"])
    assert reads == ["a", "a"]


def test_a_file_that_isn_t_there_has_no_hash(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert FileHashes().of(tmp_path, ["none", "folder", "x\0"]) == {"none": "", "folder": "", "x\0": ""}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": 1}', "\xff"])
def test_a_damaged_memory_is_made_anew(tmp_path: Path, content: str, settled: None) -> None:
    folder, store = files(tmp_path / "data"), tmp_path / "store.json"
    store.write_text(content, encoding="latin-1")
    hashes = FileHashes(store)
    assert hashes.of(folder, ["a"]) == {"a": file_hash(folder / "a")}
    hashes.save()
    assert FileHashes(store).of(folder, ["a"]) == hashes.of(folder, ["a"])


def test_hidden_files_are_no_part_of_a_folder(tmp_path: Path) -> None:
    folder = files(tmp_path / "data")
    (folder / ".git").mkdir()
    (folder / ".git" / "x").write_text("")
    (folder / "sub" / ".y").write_text("")
    assert list(FileHashes().of_folder(folder)) == ["a", "sub/b"]
    assert list(FileHashes().of_folder(folder, lambda part: part.parts[0] != "sub")) == ["a"]


def test_what_fails_meanwhile_fails_where_it_is_needed() -> None:
    done: list[int] = []
    with meanwhile(lambda: 1 / 0, lambda: done.append(1)):
        time.sleep(0)
    assert done == [1]
    with pytest.raises(ValueError, match="own"), meanwhile(lambda: None):
        raise ValueError("own")


def test_a_short_hash_is_of_pixels_and_not_of_objects() -> None:
    def image(colour: str) -> Image.Image:
        return Image.new("RGB", (2, 2), colour)

    assert short_hash([image("red")]) == short_hash([image("red")])
    assert short_hash([image("red")]) != short_hash([image("blue")])
    assert short_hash({"b": 1, "a": Path("x")}) == short_hash({"a": Path("x"), "b": 1})
    assert len(short_hash(None)) == 16
