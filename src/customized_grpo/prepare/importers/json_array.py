"""Streaming of a large JSON array: loading a file of 848 MB at once would take gigabytes."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from customized_grpo.prepare.importers.base import SourceError
from customized_grpo.text import check, open_text, parse_json

_BLANK: Final = " \t\r\n"
_FIND_END: Final = json.JSONDecoder().raw_decode


def json_objects(path: Path, *, chunk: int = 1 << 20) -> Iterator[dict[str, Any] | ValueError]:
    """Yield the objects of a JSON file that is an array of objects, or the reason why an item is none.

    Raises:
        TextError: the file as a whole is no text.
        SourceError: no such file, not a JSON array, or no JSON from some place on; earlier items have been yielded.
    """
    try:
        with open_text(path) as text:
            yield from _items(path, text, chunk)
    except OSError as error:
        raise SourceError(f"{path}: can't be read ({error.strerror})") from error


def _items(path: Path, text: io.TextIOWrapper, chunk: int) -> Iterator[dict[str, Any] | ValueError]:
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
            _, end = _FIND_END(buffer, at)
        except json.JSONDecodeError as error:
            more = text.read(chunk)
            if not more:
                raise SourceError(f"{path}: item {number + 1}: is not JSON ({error.msg})") from error
            buffer, at = buffer[at:] + more, 0
            continue
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, or a hundred thousand brackets
            raise SourceError(f"{path}: item {number + 1}: can't be read ({error})") from error
        number += 1
        yield _object(buffer[at:end], path)
        at = end


def _object(text: str, path: Path) -> dict[str, Any] | ValueError:
    try:
        check(text, path)
        item = parse_json(text)
    except ValueError as error:
        return error
    return item if isinstance(item, dict) else ValueError(f"is not an object but {type(item).__name__}")
