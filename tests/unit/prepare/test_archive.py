"""Archives: what is unsafe is refused as a whole, before a byte of it is written."""

import io
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from customized_grpo.prepare import archive
from customized_grpo.prepare.archive import ArchiveError, unpack


def write(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members:
            file.writestr(name, content)
    return path


def linked(name: str, to: str) -> tuple[zipfile.ZipInfo, bytes]:
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info, to.encode()


def renamed(path: Path, old: bytes, new: bytes) -> Path:
    """A name that zipfile itself would not write."""
    assert len(old) == len(new)
    path.write_bytes(path.read_bytes().replace(old, new))
    return path


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def same(name: str) -> str:
    return name


UNSAFE: dict[str, Callable[[Path], Path]] = {
    "'..'": lambda at: write(at, ("a.png", b"1"), ("../evil.png", b"2")),
    "'..' inside": lambda at: write(at, ("a/b/../../../evil.png", b"2")),
    "absolute": lambda at: write(at, ("/etc/evil.png", b"2")),
    "backslashes": lambda at: write(at, ("a\\..\\..\\evil.png", b"2")),
    "a drive": lambda at: write(at, ("C:evil.png", b"2")),
    "a zero byte": lambda at: renamed(write(at, ("a.pngX/../b", b"2")), b"a.pngX/../b", b"a.png\0/../b"),
    "a link": lambda at: write(at, linked("a.png", "/etc/passwd"), ("b.png", b"1")),
}


@pytest.mark.parametrize("kind", UNSAFE)
def test_unsafe_members_refuse_the_archive(tmp_path: Path, kind: str) -> None:
    path = UNSAFE[kind](tmp_path / "x.zip")
    reason = "link or a device" if kind == "a link" else "outside the folder"
    with pytest.raises(ArchiveError, match=rf"x\.zip: member .* {reason}.*nothing was unpacked"):
        unpack(path, tmp_path / "out", same)
    assert not (tmp_path / "out").exists()
    assert files_in(tmp_path) == ["x.zip"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("twin", ["a.png", "A.PNG", "a\u0301.png"])
def test_names_that_stand_twice(tmp_path: Path, twin: str) -> None:
    first = "\u00e1.png" if twin.startswith("a\u0301") else "a.png"
    path = write(tmp_path / "x.zip", (first, b"1"), (twin, b"2"))
    with pytest.raises(ArchiveError, match="occurs twice"):
        unpack(path, tmp_path / "out", same)


def test_a_bomb_is_refused_by_what_it_declares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = write(tmp_path / "bomb.zip", ("a.png", bytes(3 << 20)))
    with pytest.raises(ArchiveError, match="more than 200 times its size"):
        unpack(bomb, tmp_path / "out", same)
    many = write(tmp_path / "many.zip", *((f"{n}.png", bytes(1000)) for n in range(11)))
    with pytest.raises(ArchiveError, match="unpacks to 11,000 bytes; the limit is 10,999"):
        unpack(many, tmp_path / "out", same, max_bytes=10_999)
    monkeypatch.setattr(archive, "MAX_MEMBER_BYTES", 999)
    with pytest.raises(ArchiveError, match="declares 1,000 bytes; the limit is 999"):
        unpack(many, tmp_path / "out", same)
    monkeypatch.setattr(archive, "MAX_MEMBERS", 10)
    with pytest.raises(ArchiveError, match="has 11 members; the limit is 10"):
        unpack(many, tmp_path / "out", same)
    assert not (tmp_path / "out").exists()


def test_a_bomb_that_lies_about_its_size_writes_no_more_than_it_declares(tmp_path: Path) -> None:
    path = write(tmp_path / "x.zip", ("a.png", bytes(500_000)))
    content = path.read_bytes().replace(struct.pack("<I", 500_000), struct.pack("<I", 5))
    path.write_bytes(content)
    with pytest.raises(ArchiveError, match="not a complete zip archive"):
        unpack(path, tmp_path / "out", same)
    assert files_in(tmp_path / "out") == []


def test_damage_and_encryption(tmp_path: Path) -> None:
    path = write(tmp_path / "x.zip", ("a.png", b"0123456789" * 100), ("b.png", b"1"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    with pytest.raises(ArchiveError, match="not a complete zip archive"):
        unpack(path, tmp_path / "out", same)
    damaged = bytearray(whole)
    damaged[40] ^= 0xFF
    path.write_bytes(bytes(damaged))
    with pytest.raises(ArchiveError, match="not a complete zip archive"):
        unpack(path, tmp_path / "out", same)
    assert files_in(tmp_path / "out") == []
    locked = bytearray(whole)
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        locked[whole.find(mark) + offset] |= 1
    path.write_bytes(bytes(locked))
    with pytest.raises(ArchiveError, match="is encrypted"):
        unpack(path, tmp_path / "out", same)


def test_unpacks_what_is_placed_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    members = [("wrap/", b""), ("wrap/1/0.png", b"zero"), ("wrap/1/1.png", b"one"), ("wrap/notes.txt", b"no")]
    path = write(tmp_path / "x.zip", *members)

    def place(name: str) -> str | None:
        return name.removeprefix("wrap/") if name.endswith(".png") else None

    assert unpack(path, tmp_path / "out", place) == 2
    assert files_in(tmp_path / "out") == ["1/0.png", "1/1.png"]
    (tmp_path / "out/1/1.png").write_bytes(b"xne")  # of the same size, other content
    assert unpack(path, tmp_path / "out", place) == 1
    assert (tmp_path / "out/1/1.png").read_bytes() == b"one"
    assert unpack(path, tmp_path / "out", place) == 0


def test_what_an_archive_holds_stays_as_it_is_with_its_exif(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0110] = "a camera"
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", exif=exif)
    content = (tmp_path / "a.jpg").read_bytes()
    unpack(write(tmp_path / "x.zip", ("a.jpg", content)), tmp_path / "out", same)
    assert (tmp_path / "out/a.jpg").read_bytes() == content
    with Image.open(tmp_path / "out/a.jpg") as image:
        assert image.getexif()[0x0110] == "a camera"


def test_a_file_that_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(io.BytesIO(b"<html>").getvalue())
    with pytest.raises(ArchiveError, match=r"x\.zip: is not a complete zip archive"):
        unpack(tmp_path / "x.zip", tmp_path / "out", same)
