"""The verdict on two images, as a reply states it: the first is better, the second, or it is a tie.

A reply has one meaning or none, as for scores: JSON objects with a ``winner``, lines that name the winner and nothing
else, and a reply that is a verdict and nothing else; all must agree, and nothing behind them may take them back.
"""

import re
from typing import Any, Final

from customized_grpo.rewards.judge.answer import TAKEN_BACK, Answer, without_objects
from customized_grpo.rewards.judge.numbers import plain
from customized_grpo.rewards.judge.objects import Members, objects, whole
from customized_grpo.rewards.judge.thoughts import spoken
from customized_grpo.rewards.judge.unscorable import Unscorable, shown

FIRST, TIE, SECOND = 2, 1, 0
"""Points of the first image; the second one has the rest of two."""
_IMAGE: Final = r"(?:image|picture|option|candidate)"
_BETTER: Final = (
    r"(?:is\s+(?:(?:clearly|slightly|much|overall)\s+)?(?:the\s+)?(?:better|winner|best|preferred)(?:\s+one)?|wins)"
)
_WHICH: Final = re.compile(
    rf"(?:the\s+)?(?:(?:{_IMAGE}\s*)?(?:(?P<one>1|a|one)|(?P<two>2|b|two))|(?:(?P<first>1st|first)|(?P<second>2nd|second))"
    rf"(?:\s+{_IMAGE}|\s+one)?)(?P<better>\s+{_BETTER})?"
    r"|(?P<tie>0|(?:(?:it(?:'s|\s+is)|they\s+are)\s+)?(?:an?\s+)?(?:tie|tied|draw|equal|equally\s+good|neither|both|none"
    r"|the\s+same|same))",
    re.IGNORECASE,
)
_AROUND: Final = " \t*_`\"'[](){}<>#|-.,;:!=$"
_LABEL: Final = re.compile(
    rf"^[\s>*_#`\-<(\[|\"']*(?:(?:final|overall|my|the)\s+)*(?:winner|verdict|choice|answer|(?:better|best|preferred)"
    rf"(?:\s+(?:{_IMAGE}|one))?)\b\W*(?:is\b)?(?=\W)(?P<rest>.*)$",
    re.IGNORECASE,
)
_MEMBERS: Final = (
    r"(?:(?:final|overall)[\s_-]*)?(?:winner|(?P<other>better|best|preferred|preference|choice|verdict|answer))"
    r"(?:[\s_-]*image)?"
)


def _is_verdict(value: Any) -> bool:
    return isinstance(value, str) and _points(value) is not None


WINNER: Final = Members(_MEMBERS, _is_verdict)
"""The members of an object that name the winner."""


def read_verdict(text: str) -> Answer:
    """The points of the first image: 2 if it is the better one, 1 for a tie, 0 if the second one is.

    Raises:
        Unscorable: no verdict, contradicting ones, one that is taken back, or thoughts that never end.
    """
    alone = whole(text, WINNER)
    outside = text if alone is not None and alone.values else spoken(text)
    found = list(objects(outside, WINNER))
    points = [_in_object(value, text) for one in found for value in one.values]
    words, behind, unread = without_objects(outside, found), max([0, *(one.end for one in found if one.values)]), ""
    at = 0
    for line in words.splitlines(keepends=True):
        label = _LABEL.match(line.rstrip())
        stated = _points(label["rest"] if label else line, whole_sentence=label is None)
        if stated is not None:
            points.append(stated)
            behind, unread = max(behind, at + len(line)), ""
        elif label and label["rest"].strip(_AROUND) and at >= behind:
            unread = line.strip()
        at += len(line)
    if not points and (stated := _points(words)) is not None:
        points, behind = [stated], len(words)
    if not points:
        raise Unscorable(f"there is no verdict in the answer: {shown(outside)}")
    if len(set(points)) > 1:
        raise Unscorable(f"the answer gives several verdicts: {shown(text)}")
    if unread:
        raise Unscorable(f"the verdict's line can't be read: {shown(unread)}")
    if TAKEN_BACK.search(words[behind:]):
        raise Unscorable(f"what follows the verdict may take it back: {shown(outside[behind:])}")
    return Answer(points[-1], -1, closed=bool(found))


def _in_object(value: Any, text: str) -> int:
    points = _points(value) if isinstance(value, str) else None
    if points is None:
        raise Unscorable(f"the winner is neither 1, 2 nor a tie: {shown(text)}")
    return points


def _points(text: str, *, whole_sentence: bool = False) -> int | None:
    """The verdict that a text states and nothing else; as a sentence "Image 1 is better", where words stand around."""
    match = _WHICH.fullmatch(plain(text).strip().strip(_AROUND))
    if match is None or (whole_sentence and not match["better"]):
        return None
    return FIRST if match["one"] or match["first"] else SECOND if match["two"] or match["second"] else TIE
