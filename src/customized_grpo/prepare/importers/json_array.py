"""Streaming of a large JSON array: loading a file of 848 MB at once would take gigabytes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from customized_grpo.prepare.importers.base import SourceError

_BLANK = " \t\r\n"


def json_objects(path: Path, *, chunk: int = 1 << 20) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON file that is an array of objects.

    Raises:
        SourceError: no such file, not a JSON array, or an item is not an object; earlier items have been yielded.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from _items(path, file.read, chunk)
    except UnicodeDecodeError as error:
        raise SourceError(f"{path}: is not UTF-8 text ({error.reason})") from error
    except OSError as error:
        raise SourceError(f"{path}: can't be read ({error.strerror})") from error


def _items(path: Path, read: Any, chunk: int) -> Iterator[dict[str, Any]]:
    decode = json.JSONDecoder().raw_decode
    buffer, at, number, opened = "", 0, 0, False
    while True:
        while at < len(buffer) and buffer[at] in (_BLANK + "," if number else _BLANK):
            at += 1
        try:
            if at == len(buffer):
                raise json.JSONDecodeError("the file ends before its closing bracket", buffer, at)
            if not opened:
                if buffer[at] != "[":
                    raise SourceError(f"{path}: is not a JSON array; it must be a list of objects")
                opened, at = True, at + 1
                continue
            if buffer[at] == "]":
                return
            item, end = decode(buffer, at)
        except json.JSONDecodeError as error:
            more = read(chunk)
            if not more:
                raise SourceError(f"{path}: item {number + 1}: is not JSON ({error.msg})") from error
            buffer, at = buffer[at:] + more, 0
            continue
        number += 1
        if not isinstance(item, dict):
            raise SourceError(f"{path}: item {number} is not an object but {type(item).__name__}")
        yield item
        at = end
