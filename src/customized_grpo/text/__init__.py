"""Text from outside - tables, captions, manifests, recipes -, read in the one way in which it can be read, or refused.

UTF-8 is read with or without a byte-order mark, UTF-16 and UTF-32 with one. Anything else is an error with line and
byte: a wrong guess would turn every caption into mojibake without a word. Where a format goes by lines, a bad line is
one error among good lines.
"""

import codecs
import csv
import io
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Final, final

from customized_grpo.text.encodings import convert, what_to_do, wide
from customized_grpo.text.json_values import parse_json as parse_json

_MARKS: Final = {  # UTF-32 first: its little-endian mark begins with that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_HEADS: Final = {
    b"PK\x03\x04": "is a ZIP archive or an Excel table; unpack it, or save it as CSV in UTF-8",
    b"\x1f\x8b": "is compressed by gzip; unpack it by gunzip",
    b"PAR1": "is a Parquet table; import its folder by 'data import hub'",
    b"\x89PNG": "is a PNG picture",
    b"\xff\xd8\xff": "is a JPEG picture",
    b"%PDF": "is a PDF document",
}
"""Files that are often given in place of text, by their first bytes."""
_FIELD_LIMIT: Final = 2**31 - 1
"""Characters of a CSV field; Python's own limit of 131,072 is less than a field with an embedding or a workflow."""
_HEAD: Final = 4096
"""Bytes at the beginning that show what a file is."""
_SAMPLE: Final = 1 << 20
"""Bytes of a file that are looked at to tell its encoding."""


@final
class TextError(ValueError):
    """Text that can't be read; ``str()`` says why and what to do.

    Attributes:
        line: number of the line, from 1.
    """

    def __init__(self, reason: str, line: int) -> None:
        super().__init__(reason)
        self.line = line


def is_lfs_pointer(head: bytes) -> bool:
    """True for the few lines that Git LFS leaves in place of a file that was not fetched."""
    return head.startswith(b"version https://git-lfs.github.com/spec")


def is_html(head: bytes) -> bool:
    """True for a web page, often that of a failed download."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return start.startswith((b"<!doctype html", b"<html", b"<head", b"<body"))


def decode(content: bytes) -> str:
    """Text without its byte-order mark.

    Raises:
        TextError: it is neither UTF-8 nor UTF-16 or UTF-32 with a mark, or no text at all.
    """
    _check_head(content)
    marked = _marked(content)
    try:
        text = content.decode(marked or "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        name = marked.upper() if marked else "UTF-8"
        cure = "the file is damaged or cut off" if marked else what_to_do(content)
        raise TextError(f"is not {name} text (byte {_at(error)} of the file); {cure}", line) from error
    if "\0" in text:
        raise TextError(_nul(content), text[: text.index("\0")].count("\n") + 1)
    return text


def read_text(path: Path) -> str:
    """A whole file, its ends of line unchanged.

    Raises:
        TextError: see ``decode``; the message names the file and the line.
        OSError: it can't be opened.
    """
    try:
        return decode(path.read_bytes())
    except TextError as error:
        raise TextError(f"{path}:{error.line}: {error}", error.line) from error


def lines_of(text: str) -> list[str]:
    r"""Lines as editors number them: only \n, \r\n and \r end one.

    ``str.splitlines`` also splits at U+2028, U+0085 and form feeds, which may stand inside a caption.
    """
    return text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n").split("\n")


def open_text(path: Path, *, newline: str | None = None) -> io.TextIOWrapper:
    """A text stream in which a byte that is no UTF-8 becomes a lone surrogate, for ``check`` to find in its place.

    Raises:
        TextError: the file as a whole is no text; the message names the file.
        OSError: it can't be opened.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
    try:
        _check_head(head)
    except TextError as error:
        raise TextError(f"{path}: {error}", 1) from error
    if _marked(head):
        return io.TextIOWrapper(io.BytesIO(read_text(path).encode()), encoding="utf-8", newline=newline)
    return path.open(encoding="utf-8-sig", errors="surrogateescape", newline=newline)


def check(text: str, path: Path, line: int = 1) -> None:
    """Refuse a part of ``open_text(path)`` that is no text.

    Raises:
        TextError: it isn't UTF-8, or holds a NUL byte; the message names neither file nor line.
    """
    try:
        text.encode("utf-8", "surrogateescape").decode()
    except UnicodeDecodeError as error:
        raise TextError(f"is not UTF-8 text (byte {_at(error)} of the line); {_cure(path)}", line) from error
    if "\0" in text:
        raise TextError(_nul(_sample(path)), line)


def read_lines(path: Path) -> Iterator[tuple[int, str | TextError]]:
    """The lines of a file by number, without their ends; a line that is no text is an error among the others.

    Raises:
        TextError: the file as a whole is no text; the message names the file.
        OSError: it can't be opened.
    """
    with open_text(path) as text:
        for number, line in enumerate(text, start=1):
            plain = line.removesuffix("\n").removeprefix("\ufeff")  # a mark also where files were joined
            try:
                check(plain, path, number)
            except TextError as error:
                yield number, error
            else:
                yield number, plain


def read_table(path: Path, delimiter: str = ",") -> Iterator[tuple[int, dict[str, str] | TextError]]:
    """The records of a CSV table with a header, each by the line at which it begins; blank lines are left out.

    A record that can't be read - no UTF-8, more or fewer cells than columns, a quotation mark that is never closed - is
    an error among the others.

    Raises:
        TextError: the file as a whole can't be read, or its header names a column twice; the message names the file.
        OSError: it can't be opened.
    """
    csv.field_size_limit(_FIELD_LIMIT)
    with open_text(path, newline="") as text:
        lines = list(text)
    header: list[str] = []
    start = 0
    while start < len(lines):
        number = start + 1
        reader = csv.reader(lines[start:], delimiter=delimiter, strict=True)
        try:
            cells = next(reader)
            start += reader.line_num
            check("\n".join(cells), path, number)
        except TextError as error:
            yield number, error
        except csv.Error as error:
            # An open quotation mark swallows all that follows: only its own line is given up.
            start += 1
            yield number, TextError(f"is not a row of a table ({error}); close or double its quotation marks", number)
        else:
            if not header:
                header = _header(cells, path, number)
            elif len(cells) == len(header):
                yield number, dict(zip(header, cells, strict=True))
            elif cells:
                reason = f"has {len(cells)} cells for {len(header)} columns; put a text with commas in quotation marks"
                yield number, TextError(reason, number)


def _header(cells: list[str], path: Path, line: int) -> list[str]:
    names = [cell.strip() for cell in cells]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise TextError(f"{path}:{line}: the column {twice[0]!r} is there twice; rename one", line)
    return names


def _marked(content: bytes) -> str | None:
    return next((encoding for mark, encoding in _MARKS.items() if content.startswith(mark)), None)


def _check_head(head: bytes) -> None:
    if is_lfs_pointer(head):
        raise TextError("is a Git LFS pointer, not the file itself; run 'git lfs pull' where it came from", 1)
    if is_html(head):
        raise TextError("is an HTML page (a failed download?); download it again", 1)
    for start, reason in _HEADS.items():
        if head.startswith(start):
            raise TextError(f"{reason}; text in UTF-8 is needed", 1)
    if not _marked(head) and (encoding := wide(head)):
        raise TextError(f"is not UTF-8 text; {convert(encoding)}", 1)


def _at(error: UnicodeDecodeError) -> str:
    return f"0x{error.object[error.start]:02x} at offset {error.start}"


def _sample(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(_SAMPLE)
    return content if len(content) < _SAMPLE else content[: content.rfind(b"\n") + 1]


def _cure(path: Path) -> str:
    state = path.stat()
    return _cure_of(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=4)
def _cure_of(path: Path, size: int, time: int) -> str:
    return what_to_do(_sample(path))


def _nul(content: bytes) -> str:
    encoding = wide(content)
    return f"holds a NUL byte, which text doesn't; {convert(encoding) if encoding else 'remove it'}"
