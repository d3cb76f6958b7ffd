"""Numbers that a reply states as its score: a whole number of the scale, written in any way that has one meaning."""

import re
from decimal import Decimal, InvalidOperation
from typing import Any, Final, final

from customized_grpo.rewards.judge.rubrics import BEST, WORST
from customized_grpo.rewards.judge.unscorable import Unscorable, shown

_GRADES: Final = r"(?:very\s+)?(?:poor|bad|fair|good|excellent|perfect)\b"
_LIMIT: Final = 120
_STATED: Final = re.compile(
    rf"^[\s*_`:=]*(?:is\s+)?(?:{_GRADES})?[\s*_`(\[<$\"']*(?:\\boxed\s*{{\s*)?"
    rf"(?P<number>[+-]?\d+(?:\.\d*)?)[\s*_`)\]>}}$\"']*"
    rf"(?:\(?\s*(?:/|out\s+of|of)\s*{BEST}(?:\.0*)?[\s*_`)]*)?(?:[-–—,(]?\s*{_GRADES}[\s*_`)]*)?[\s*_`)\].,;!\"']*$",
    re.IGNORECASE,
)
"""A number alone, after or before a grade, or out of the best: "3", "3.0", "[3]", "Excellent (4)", "3/4", "3 out of 4".
Nothing else may stand around it: "not 3" and "less than 3" are not a 3."""
PLAIN: Final = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {
    0x3000: " ",
    0x2212: "-",
    0xFE63: "-",
    0xFEFF: " ",
}
"""Full-width forms, the minus sign and the byte order mark as ASCII, each one character for one."""


def stated(text: str) -> tuple[int, int] | None:
    """The score that a text states and nothing else, with the position of its first digit; None: not readable so.

    Raises:
        Unscorable: a number that is not of the scale.
    """
    match = _STATED.match(text) if len(text) <= _LIMIT else None
    if match is None:
        return None
    return on_scale(match["number"], text.strip(" :=*_`")), match.start("number") + (match["number"][0] in "+-")


def on_scale(number: str, text: str) -> int:
    """A number as a score.

    Raises:
        Unscorable: not whole, or out of range.
    """
    try:
        value = Decimal(number)
        score = next((score for score in range(WORST, BEST + 1) if value == score), None)
    except (InvalidOperation, ValueError):
        raise Unscorable(f"the score is not a whole number: {shown(text)}") from None
    if score is not None:
        return score
    if value.is_finite() and not WORST <= value <= BEST:
        raise Unscorable(f"the score {shown(number)[1:-1]} is outside {WORST} to {BEST}: {shown(text)}")
    raise Unscorable(f"the score is not a whole number: {shown(text)}")


def of_member(value: Any, text: str) -> int:
    """The score in a member of a JSON object, of which numbers are given as ``Decimal``'s text in a ``Number``.

    Raises:
        Unscorable: no number, not whole, or out of range.
    """
    if isinstance(value, Number):
        return on_scale(value, text)
    if isinstance(value, str) and (found := stated(value.translate(PLAIN))) is not None:
        return found[0]
    raise Unscorable(f"the score is not a whole number: {shown(text)}")


@final
class Number(str):
    """A number of JSON as it is written, to be told from a string."""

    __slots__ = ()
