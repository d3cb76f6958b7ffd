"""The wait that a server asks for, wherever it says so: in headers, in an error's details, in its words.

Sources: RFC 9110 (``Retry-After``), ``google.rpc.RetryInfo`` (``retryDelay``), OpenAI's, Azure's, Groq's, OpenRouter's
and Anthropic's pages on rate limits. The longest of several is the one to keep to.
"""

import math
import re
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

_UNITS: Final = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_AMOUNT: Final = re.compile(
    r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>ms|milliseconds?|msecs?|d(?:ays?)?|h(?:ours?|rs?)?|m(?:in(?:ute)?s?)?"
    r"|s(?:ec(?:ond)?s?)?)(?![a-z])[\s,]*(?:and\s+)?",
    re.IGNORECASE,
)
_SAID: Final = re.compile(
    r"\b(?:(?:(?:retry|again|available|reset\w*|wait(?:ing)?)\s+(?:after|in|for)|request\s+after)"
    r"(?:\s+(?:about|at\s+least))?|wait|retry[ _-]?after:?)\s+(?=\d)",
    re.IGNORECASE,
)
_NAMES: Final = ("retrydelay", "retryafter", "retryafterseconds", "retryafterms")
_RESETS: Final = re.compile(
    r"(?P<front>(?:x-|anthropic-)?ratelimit-)(?:(?P<what>requests|tokens|[a-z-]+)-reset|reset(?:-(?P<of>[a-z-]+))?)"
)
_POLICY: Final = re.compile(r";\s*r=0\s*;.*?\bt=(\d+)")
"""``RateLimit: "api";r=0;t=83``, as the hub sends it: nothing is left, for 83 s."""
_EPOCH_S: Final = 1e9
_EPOCH_MS: Final = 1e12


def asked_wait(headers: Mapping[str, str], body: Any) -> float | None:
    """Seconds that the server asks to wait before the next request; None if it doesn't say.

    Args:
        headers: of the answer; names in any case.
        body: of the answer, as read from JSON, or its text.
    """
    named = {name.lower(): value.strip() for name, value in headers.items()}
    asked = [*_of_headers(named), *_of_body(body)] or [*_of_resets(named)]
    return max((wait for wait in asked if math.isfinite(wait)), default=None)


def duration(text: str) -> float | None:
    """Seconds of ``34``, ``34.07s``, ``1m30s``, ``859ms``, ``2 minutes``, or until a date; None for other texts."""
    text = text.strip()
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    seconds, at = 0.0, 0
    while match := _AMOUNT.match(text, at):
        seconds, at = seconds + _seconds(match), match.end()
    if at and not text[at:].strip(" ."):
        return seconds
    return _until(text)


def _seconds(match: re.Match[str]) -> float:
    unit = match["unit"].lower()
    return float(match["number"]) * _UNITS["ms" if unit.startswith(("ms", "milli")) else unit[0]]


def _until(text: str) -> float | None:
    """Seconds until a date of HTTP or of ISO 8601."""
    for read in (parsedate_to_datetime, datetime.fromisoformat):
        try:
            return max(0.0, read(text).timestamp() - time.time())
        except (ValueError, TypeError, OverflowError):
            continue
    return None


def _of_headers(headers: Mapping[str, str]) -> Iterator[float]:
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        if name in headers and (wait := duration(headers[name])) is not None:
            yield wait * unit


def _of_resets(headers: Mapping[str, str]) -> Iterator[float]:
    """When used-up quotas are whole again: what is left of the others says nothing about this refusal."""
    if match := _POLICY.search(headers.get("ratelimit", "")):
        yield float(match[1])
    for name, value in headers.items():
        if not (match := _RESETS.fullmatch(name)):
            continue
        what = match["what"] or match["of"]
        left = (f"{match['front']}remaining-{what}", f"{match['front']}{what}-remaining", f"{match['front']}remaining")
        if (wait := _reset(value)) is not None and any(headers.get(one) == "0" for one in left[0 if what else 2 :]):
            yield wait


def _reset(value: str) -> float | None:
    """Seconds, a duration, a date, or the seconds or milliseconds of a clock that counts from 1970."""
    wait = duration(value)
    if wait is not None and wait >= _EPOCH_S and re.fullmatch(r"[\d.]+", value):
        return max(0.0, (wait / 1e3 if wait >= _EPOCH_MS else wait) - time.time())
    return wait


def _of_body(body: Any) -> Iterator[float]:
    if isinstance(body, str):
        for said in _SAID.finditer(body):
            seconds, at = 0.0, said.end()
            while match := _AMOUNT.match(body, at):
                seconds, at = seconds + _seconds(match), match.end()
            if at > said.end():
                yield seconds
    elif isinstance(body, Mapping):
        for name, value in body.items():
            yield from _of_member(re.sub(r"[^a-z]", "", str(name).lower()), value)
        if headers := body.get("headers"):  # OpenRouter's error.metadata
            named = (
                {str(name).lower(): str(value).strip() for name, value in headers.items()}
                if isinstance(headers, Mapping)
                else {}
            )
            yield from _of_headers(named)
            yield from _of_resets(named)
    elif isinstance(body, list):
        for one in body:
            yield from _of_body(one)


def _of_member(name: str, value: Any) -> Iterator[float]:
    if name not in _NAMES:
        yield from _of_body(value)
    elif isinstance(value, Mapping):  # a Duration of protobuf
        seconds = (duration(str(value.get(part, 0))) or 0.0 for part in ("seconds", "nanos"))
        yield sum(number * unit for number, unit in zip(seconds, (1.0, 1e-9), strict=True))
    elif not isinstance(value, bool) and (wait := duration(str(value))) is not None:
        yield wait * (1e-3 if name.endswith("ms") else 1.0)
