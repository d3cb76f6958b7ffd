"""Files with one JSON value on each line (JSONL): manifests and tables."""

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from customized_grpo.text import TextError, parse_json, read_lines


def read_json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """The values of a file by line; a line that can't be read is a ``ValueError`` among them, blank ones are left out.

    Raises:
        TextError: the file as a whole is no JSONL; the message names the file.
        OSError: it can't be opened.
    """
    first = True
    for number, line in read_lines(path):
        if isinstance(line, str) and not line.strip():
            continue
        value = _value(line)
        if first and isinstance(line, str) and (what := _other_form(line.strip(), value)):
            each = "'.[]'" if what == "a JSON array" else "."
            does = f"jq -c {each} {shlex.quote(str(path))} > NEW.jsonl"
            raise TextError(f"{path}: is {what}; write one JSON object per line, as by: {does}", number)
        first = False
        yield number, value


def _value(line: str | TextError) -> Any:
    if isinstance(line, TextError):
        return line
    try:
        return parse_json(line)
    except ValueError as error:
        return error


def _other_form(line: str, value: Any) -> str:
    """What a file is whose first line is this one; empty for JSONL, also if this line of it is bad."""
    if line.startswith("["):
        rows = not isinstance(value, list) or any(isinstance(one, dict) for one in value)
        return "a JSON array" if rows else ""
    return "JSON over several lines" if line == "{" else ""
