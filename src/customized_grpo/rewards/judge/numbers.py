"""Numbers that a reply states as its score: a whole number of the scale, written in any way that has one meaning."""

import re
from dataclasses import replace
from decimal import Decimal, InvalidOperation
from functools import cache
from typing import Any, Final, final

from customized_grpo.rewards.judge.scale import DREAMBENCH, Scale
from customized_grpo.rewards.judge.unscorable import Unscorable, shown

_GRADES: Final = r"(?:very\s+)?(?:poor|bad|fair|good|excellent|perfect)\b"
_DECIMAL: Final = r"[+-]?\d+(?:\.\d*|,\d\d?)?"
"""A number, with a point or a comma for its decimals; three digits behind a comma would be thousands."""
_LIMIT: Final = 120
_STATED: Final = re.compile(
    rf"^(?:\s*[–—]\s+|[\s*_`:=|\"']*)(?:is\s+)?(?:{_GRADES})?[\s*_`(\[<$\"']*(?:\\boxed\s*{{\s*)?"
    rf"(?P<number>{_DECIMAL})(?:\s*(?:points?\b|分))?[\s*_`(\])>}}$\"'|]*(?:[-–—,(]?\s*{_GRADES}[\s*_`)]*)?[\s*_`)\].,;!\"'|]*$",
    re.IGNORECASE,
)
"""A number alone, or after or before a grade: "3", "3.0", "[3]", "3 points", "Excellent (4)". Nothing else may
stand around it: "not 3" and "less than 3" are not a 3."""
_NUMBER: Final = re.compile(r"(?<![A-Za-z_\d.,])\d+(?:[.,]\d+)?(?![A-Za-z_])")
_PLAIN: Final = (
    {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
    | dict.fromkeys((0x2212, 0xFE63), "-")
    | dict.fromkeys((0x3000, 0xFEFF, 0x00AD, 0x200B, 0x200C, 0x200D, 0x200E, 0x200F, 0x2060), " ")
)


def plain(text: str) -> str:
    """Full-width forms and the minus sign as ASCII, what has no width as blanks, each one character for one."""
    return text.translate(_PLAIN)


@cache
def _said(scale: Scale) -> re.Pattern[str]:
    """The scale and its best, which are no scores: "0 to 4", "(score range: 0-4)", "on a scale of 0 to 4", "/4"."""
    return re.compile(
        r"\(?(?:(?:(?:\bscores?\s+|\b(?:on\s+)?(?:an?|the)\s+)?\b(?:scale|range)s?\b\W{0,6}(?:(?:is|of|from)\s+)*)?"
        rf"(?<![\w.,/+-]){scale.worst}\s*(?:-|\u2013|to)|(?:/|\bout\s+of|\bof))\s*{scale.best}(?:\.0*)?(?!\d|[.,/]\d|\s*%)\)?",
        re.IGNORECASE,
    )


def without_scale(text: str, scale: Scale = DREAMBENCH) -> str:
    """The text with blanks for what says the scale; lines and positions stay."""
    return _said(scale).sub(lambda said: re.sub(r"[^\n]", " ", said[0]), text)


def stated(text: str, scale: Scale = DREAMBENCH) -> tuple[int, int] | None:
    """The score that a text states and nothing else, with the position of its first digit; None: not readable so.

    Where an answer is a list of scores, one number alone is none.

    Raises:
        Unscorable: a number that is not of the scale.
    """
    match = _STATED.match(without_scale(plain(text), scale)) if len(text) <= _LIMIT and scale.scores == 1 else None
    if match is None:
        return None
    return on_scale(match["number"], text.strip(" :=*_`"), scale), match.start("number") + (match["number"][0] in "+-")


def others(text: str, score: int) -> bool:
    """True if a text holds a number that is not this score."""
    return any(Decimal(number[0].replace(",", ".")) != score for number in _NUMBER.finditer(text))


def on_scale(number: str, text: str, scale: Scale = DREAMBENCH) -> int:
    """A number as a score.

    Raises:
        Unscorable: not whole, or out of range.
    """
    try:
        value = Decimal(number.replace(",", "."))
        score = next((score for score in scale.values() if value == score), None)
    except (InvalidOperation, ValueError):
        raise Unscorable(f"the score is not a whole number: {shown(text)}") from None
    if score is not None:
        return score
    if value.is_finite() and not scale.worst <= value <= scale.best:
        raise Unscorable(f"the score {shown(number)[1:-1]} is outside {scale.worst} to {scale.best}: {shown(text)}")
    raise Unscorable(f"the score is not a whole number: {shown(text)}")


def of_token(token: str, scale: Scale = DREAMBENCH) -> int | None:
    """The score that a token is, however it is spelled: "3", " 3", "+3", "3.0"; None: it is none."""
    word = plain(token).strip(" \t\r\n\"'")
    try:
        return on_scale(word, token, scale) if re.fullmatch(_DECIMAL, word) else None
    except Unscorable:
        return None


def of_member(value: Any, text: str, scale: Scale = DREAMBENCH) -> int:
    """The score in a member of a JSON object, of which numbers are given as ``Decimal``'s text in a ``Number``.

    Raises:
        Unscorable: no number, not whole, out of range, or another number of scores than the rubric asks for.
    """
    if scale.scores > 1:
        values = value if isinstance(value, list) else [value]
        if len(values) != scale.scores:
            raise Unscorable(f"the answer gives {len(values)} of {scale.scores} scores: {shown(text)}")
        return [_of_one(one, text, scale) for one in values][scale.take - 1]
    return _of_one(value, text, scale)


def _of_one(value: Any, text: str, scale: Scale) -> int:
    if isinstance(value, Number):
        return on_scale(value, text, scale)
    if isinstance(value, str) and (found := stated(value, replace(scale, scores=1, take=1))) is not None:
        return found[0]
    raise Unscorable(f"the score is not a whole number: {shown(text)}")


@final
class Number(str):
    """A number of JSON as it is written, to be told from a string."""

    __slots__ = ()
