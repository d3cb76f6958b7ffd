"""The wait that a server asks for, wherever it says so: in headers, in an error's details, in its words.

Sources: RFC 9110 (``Retry-After``), ``google.rpc.RetryInfo`` (``retryDelay``), Hugging Face's ``estimated_time``,
OpenAI's, Azure's, Groq's, OpenRouter's and Anthropic's pages on rate limits. The longest of several is the one to keep
to.
"""

import math
import re
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

_UNITS: Final = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0} | {
    **{"毫": 1e-3, "ミ": 1e-3, "秒": 1.0, "分": 60.0, "小": 3600.0, "时": 3600.0, "時": 3600.0, "天": 86400.0}
}
_AMOUNT: Final = re.compile(
    r"(?P<number>\d+(?:\.\d+)?|(?:an?|one)(?=\s))\s*(?P<unit>(?:ms|milliseconds?|msecs?|d(?:ays?)?|h(?:ours?|rs?)?"
    r"|m(?:in(?:ute)?s?)?|s(?:ec(?:ond)?s?)?)(?![a-z])|毫秒|ミリ秒|秒[钟鐘]?|分[钟鐘]?|小?[时時][间間]?|天)[\s,]*(?:and\s+)?",
    re.IGNORECASE,
)
_AMOUNTS: Final = r"(?:\d{1,9}(?:\.\d{1,9})?\s?[毫ミリ小]{0,2}[秒分时時天][钟鐘间間]?\s?){1,4}"
_SAID: Final = re.compile(
    r"\b(?:(?:(?:retry|again|available|reset\w*|wait(?:ing)?)\s+(?:after|in|for)|request\s+after)"
    r"(?:\s+(?:about|approximately|around|at\s+least))?|wait|retry[ _-]?after:?)\s+(?=\d|an?\s|one\s)"
    rf"|(?:等待|等候|稍等)\s*(?=\d)|(?<![\d.])(?={_AMOUNTS}(?:之|以)?[后後]に?[\s,\uff0c、]?[请請]?(?:再|重|もう))",
    re.IGNORECASE,
)
"""Words before an amount, or nothing before one that Chinese or Japanese words follow: "2 秒后重试"."""
_SAID_DATE: Final = re.compile(
    r"\b(?:retry|again|available|reset\w*|wait|until|after)(?:\s+(?:at|on|after|until|is)){0,2}:?\s+"
    r"(?P<date>\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:?\d\d)?)",
    re.IGNORECASE,
)
_NAMES: Final = (
    *("retrydelay", "retryafter", "retryafterseconds", "retryafterms", "retryin", "estimatedtime"),
    *("resetsinseconds", "resetsat", "resetat"),
)
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
    number = float(match["number"]) if match["number"][0].isdigit() else 1.0
    return number * _UNITS["ms" if unit.startswith(("ms", "milli")) else unit[0]]


def _until(text: str) -> float | None:
    """Seconds until a date of HTTP or of ISO 8601, in UTC if it names no zone."""
    for read in (parsedate_to_datetime, datetime.fromisoformat):
        try:
            date = read(text)
            return max(0.0, (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - time.time())
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
        yield from (wait for said in _SAID_DATE.finditer(body) if (wait := _until(said["date"])) is not None)
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
    elif not isinstance(value, bool) and (wait := _reset(str(value))) is not None:
        yield wait * (1e-3 if name.endswith("ms") else 1.0)
