"""Safe unpacking of untrusted zip archives.

An archive is checked before anything is written, and refused as a whole if a member would leave the folder, is not a
plain file or is a duplicate, or if it would unpack to too many bytes. Declared sizes are enforced while reading:
zipfile gives no byte beyond the declared size, and checks the CRC.
"""

import stat
import unicodedata
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import copyfileobj
from typing import Final, final
from zlib import crc32
from zlib import error as ZlibError

from customized_grpo.atomic import replacing
from customized_grpo.paths import is_inside

MAX_MEMBERS: Final = 2_000_000
MAX_MEMBER_BYTES: Final = 1 << 30
MAX_TOTAL_BYTES: Final = 64 << 30
"""Limit on unpacked bytes; an archive of SynCD has about 1.8 GB, and images hardly compress."""
MAX_RATIO: Final = 200
"""Limit on the ratio of unpacked to packed bytes of members above 1 MB; text reaches about 20."""


@final
class ArchiveError(ValueError):
    """An archive was refused; the message names it, the member and the reason."""


def unpack(archive: Path, folder: Path, place: Callable[[str], str | None], *, max_bytes: int = MAX_TOTAL_BYTES) -> int:
    """Unpack a zip archive's files into ``folder``; existing files with the same content are kept and not counted.

    Args:
        place: maps a member's name to its path in ``folder``, or to None to leave it out.

    Raises:
        ArchiveError: the archive is damaged or not safe. If it isn't safe, nothing was written.
    """
    with _opened(archive) as file:
        written = 0
        for member in _safe_members(archive, file, max_bytes):
            name = place(member.filename)
            if name is None:
                continue
            assert is_inside(name), name
            path = folder / name
            if path.is_file() and path.stat().st_size == member.file_size and _crc(path) == member.CRC:
                continue
            with replacing(path) as aside, file.open(member) as source, aside.open("wb") as target:
                copyfileobj(source, target, 1 << 20)
            written += 1
        return written


def _safe_members(archive: Path, file: zipfile.ZipFile, max_bytes: int) -> list[zipfile.ZipInfo]:
    """Members that are files, in the archive's order."""

    def refuse(member: zipfile.ZipInfo, reason: str) -> ArchiveError:
        return ArchiveError(f"{archive}: member {member.orig_filename!r} {reason}; nothing was unpacked")

    members = file.infolist()
    if len(members) > MAX_MEMBERS:
        raise ArchiveError(f"{archive}: has {len(members):,} members; the limit is {MAX_MEMBERS:,}")
    seen: dict[str, str] = {}
    total = 0
    for member in members:
        # zipfile cuts a name at a zero byte: check the name as stored in the archive
        if not is_inside(member.orig_filename) or "\\" in member.orig_filename:
            raise refuse(member, "would be written outside the folder (absolute, '..', or a drive)")
        kind = stat.S_IFMT(member.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise refuse(member, "is a link or a device, not a plain file")
        if member.flag_bits & 0x1:
            raise refuse(member, "is encrypted")
        # They are one file on a file system that ignores case or Unicode form.
        key = unicodedata.normalize("NFC", member.filename.rstrip("/")).casefold()
        if key in seen:
            raise refuse(member, f"occurs twice (also as {seen[key]!r})")
        seen[key] = member.filename
        if member.file_size > MAX_MEMBER_BYTES:
            raise refuse(member, f"declares {member.file_size:,} bytes; the limit is {MAX_MEMBER_BYTES:,}")
        if member.file_size > 1 << 20 and member.file_size > MAX_RATIO * member.compress_size:
            raise refuse(member, f"unpacks to more than {MAX_RATIO} times its size (a zip bomb?)")
        total += member.file_size
    if total > max_bytes:
        raise ArchiveError(f"{archive}: unpacks to {total:,} bytes; the limit is {max_bytes:,}; nothing was unpacked")
    return [member for member in members if not member.is_dir()]


@contextmanager
def _opened(archive: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(archive) as file:
            yield file
    except (zipfile.BadZipFile, ZlibError, EOFError, NotImplementedError) as error:
        raise ArchiveError(f"{archive}: is not a complete zip archive ({error}); download it again") from error


def _crc(path: Path) -> int:
    total = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            total = crc32(chunk, total)
    return total
