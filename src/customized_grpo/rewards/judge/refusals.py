"""Meaning of an endpoint's refusal: ask again, give up one image, or stop the run.

Endpoints differ in where they say it - status, code, type, ``details`` of Google, ``metadata`` of OpenRouter, words -
so all of these are looked at. An error in the body of a 200 is one too.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, final

from customized_grpo.web.waits import asked_wait

_PASSING: Final = (408, 409, 425, 429, 498)
"""Statuses that pass by, beside 500 and above; 498 is Groq's for a lack of capacity."""
_CODES: Final = ("code", "type", "status", "reason", "quotaid", "limit_source", "error_code")
_MODERATED: Final = re.compile(r"content_?filter|content_?policy|moderat|data_?inspection|sensitive|responsibleai")
"""In a code: the refusal concerns only this picture or text."""
_UNSAFE_WORDS: Final = re.compile(
    r"safety system|content (?:management )?policy|inappropriate content|unsafe content|敏感内容|不安全"
)
_EMPTY_CODE: Final = re.compile(
    r"insufficient_?(?:\w+_)?(?:quota|balance|credits?)|billing|arrearage|exceeded_current_quota|freetieronly"
    r"|payment_required|credits?_(?:exhausted|depleted)"
)
_EMPTY_WORDS: Final = re.compile(
    r"insufficient (?:account )?(?:balance|credits?|funds)|credit balance is too low|out of credits|余额不足|欠费"
    r"|free (?:allocated )?quota (?:has been )?(?:exceeded|exhausted)"
)
_THROTTLED: Final = re.compile(r"throttling|increase your quota limit|error-code#token-limit")
"""DashScope's limits for a minute, which it calls ``insufficient_quota`` too (can1357/oh-my-pi#8476)."""
_DAILY: Final = re.compile(
    r"per[-_ ]?day\b|perday|\b[rt]pd\b|_daily\b|daily (?:\w+ ){0,3}(?:limit|quota|allowance|cap|usage)"
    r"|今日|每日"
)
_MINUTELY: Final = re.compile(r"per[-_ ]?min|\b[rt]pm\b")
Kind = Literal["again", "image", "stop"]


@final
@dataclass(frozen=True, slots=True)
class Refusal:
    """What follows from a refusal.

    Attributes:
        message: for people, with the endpoint's words.
        wait_s: seconds that the endpoint asks to wait first; None: it doesn't say.
    """

    kind: Kind
    message: str
    wait_s: float | None = None


def refusal(status: int, headers: Mapping[str, str], body: Any) -> Refusal:
    """The meaning of a refusal.

    Args:
        status: of HTTP; 0 for an error without one in the body of a 200.
        body: of the answer, as read from JSON, or its text.
    """
    codes, words = " ".join(_codes(body)).lower(), said(body)
    message, low = f"{f'HTTP {status}' if status else 'an error with HTTP 200'}: {words}", words.lower()
    moderated = _MODERATED.search(codes) or _flagged(body) or (status == 400 and _UNSAFE_WORDS.search(low))
    if status < 500 and moderated:
        return Refusal("image", f"refused by the endpoint's content filter: {message}")
    throttled = _THROTTLED.search(f"{codes} {low}")
    if _EMPTY_WORDS.search(low) or (_EMPTY_CODE.search(codes) and not throttled):
        return Refusal("stop", f"the judge's account is empty: {message}")
    if status in (0, 429) and _is_daily(codes, low):
        return Refusal(
            "stop",
            f"the judge's quota for the day is used up: {message.rstrip('.')}; go on with run.resume=latest when it is "
            "renewed (answers in the cache are kept), or with another key; another model takes a new run",
        )
    if status in _PASSING or status >= 500:
        if headers.get("x-should-retry", "").lower() == "false":
            return Refusal("image", f"{message}, and not to be asked again")
        return Refusal("again", message, asked_wait(headers, body))
    if not status:
        return Refusal("image", message)
    return Refusal("stop", f"the judge refuses, and would refuse again: {message}")


def error_in(body: Mapping[str, Any]) -> tuple[int, Any] | None:
    """Status and error of a body that came with status 200: of the whole answer, or of its first choice."""
    choices = body.get("choices")
    first = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], Mapping) else {}
    beside = first.get("error") if first.get("finish_reason") != "stop" else None
    error = next((one for one in (body.get("error"), beside) if _says(one)), None)
    if error is None and not first and body.get("message") and body.get("code"):  # as DashScope and vLLM word it
        error = body
    if error is None:
        return None
    code = error.get("code") if isinstance(error, Mapping) else None
    status = int(str(code)) if re.fullmatch(r"[1-5]\d\d", str(code)) else 0
    return status, error


def _says(error: Any) -> bool:
    """True if a member ``error`` tells of one: some gateways send an empty one beside every answer."""
    return any(error.get(name) for name in ("message", "code", "type")) if isinstance(error, Mapping) else bool(error)


def said(body: Any) -> str:
    """The endpoint's words, and those of the provider behind a router."""
    if isinstance(body, list) and body:  # Gemini wraps its error in a list
        body = body[0]
    if isinstance(body, str):
        return " ".join(
            re.sub(r"<(?:style|script)\b.*?</(?:style|script)>|<[^>]*>", " ", body, flags=re.DOTALL).split()
        )
    if not isinstance(body, Mapping):
        return str(body)
    inner = body.get("error") or body
    if not isinstance(inner, Mapping):
        return str(inner)
    words = str(inner.get("message") or body.get("message") or dict(body))
    metadata = inner.get("metadata")
    raw = metadata.get("raw") if isinstance(metadata, Mapping) else None
    return f"{words}: {raw}" if raw else words


def _codes(body: Any) -> Iterator[str]:
    """Values of all members that hold codes, wherever they stand."""
    if isinstance(body, Mapping):
        for name, value in body.items():
            if str(name).lower() in _CODES and isinstance(value, str | int):
                yield str(value)
            yield from _codes(value)
    elif isinstance(body, list):
        for one in body:
            yield from _codes(one)


def _flagged(body: Any) -> bool:
    """True if a router's own moderation refused what was shown."""
    error = body.get("error") if isinstance(body, Mapping) else None
    metadata = error.get("metadata") if isinstance(error, Mapping) else None
    return isinstance(metadata, Mapping) and "flagged_input" in metadata


def _is_daily(codes: str, words: str) -> bool:
    return bool(_DAILY.search(codes) or (_DAILY.search(words) and not _MINUTELY.search(words)))
