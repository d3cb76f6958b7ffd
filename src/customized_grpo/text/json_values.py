"""JSON without its traps: what two readers would read in two ways is refused."""

import json
from typing import Any, Final


def parse_json(text: str) -> Any:
    """One JSON value that means the same to every reader.

    Raises:
        ValueError: not JSON, nested too deeply, or with a key twice, a number that is not finite, or half of a
            surrogate pair.
    """
    try:
        value = _DECODER.decode(text)
        # What can't be written as JSON again: NaN, Infinity, 1e999, and lone surrogates such as "\ud83d".
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        raise ValueError(f"is not JSON ({error.msg}, {where})") from error
    except RecursionError as error:
        raise ValueError("is nested too deeply; JSON of a data set has a few levels") from error
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise ValueError(f"holds {half}, half of a surrogate pair (a sign that was cut in two); remove it") from error
    except ValueError as error:
        raise ValueError(_json_problem(error)) from error
    return value


def _json_problem(error: ValueError) -> str:
    if "JSON compliant" in str(error):
        return "holds NaN or an infinite number, which JSON has not; use null"
    return "holds a number of thousands of digits; write it as text" if "digits" in str(error) else str(error)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} is there twice; keep one")
    return found


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_unique)
