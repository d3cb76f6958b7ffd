"""The score of a reply's text. It has one meaning or it is none:

1. Thoughts are no part of the answer; if they never end, there is none.
2. Answers are the JSON objects with a score, and the score lines that hold nothing but a number. All of them must
   agree. A line for the *final* or *overall* score stands above the other lines.
3. Without a JSON object, the last score line must be readable: what follows an answer may take it back.
"""

import json
import re
from dataclasses import dataclass, replace
from typing import Final, final

from customized_grpo.rewards.judge.numbers import PLAIN, of_member, stated
from customized_grpo.rewards.judge.objects import Found, objects, whole
from customized_grpo.rewards.judge.rubrics import BEST, WORST
from customized_grpo.rewards.judge.thoughts import spoken
from customized_grpo.rewards.judge.unscorable import Unscorable, shown

__all__ = ["Answer", "Unscorable", "read"]

_WRAPPER: Final = re.compile(
    r"</?\s*(?:answer|final_answer|output|response|result)\s*>"
    r"|<\|(?:(?:begin|end)_of_box|im_end|end|return|eot_id)\|>|</s>",
    re.IGNORECASE,
)
"""Tags around an answer: of templates, of GLM's box, of the end of a turn."""
_LINE: Final = re.compile(
    r"^[\s>*_#`\-<(\[]*(?:(?P<final>final|overall)\s+|my\s+)?score\b"
    rf"(?:\s*\((?:{WORST}\s*(?:-|\u2013|to)|out of)\s*{BEST}\))?(?P<rest>.*)$",
    re.IGNORECASE,
)
_ESCAPED: Final = re.compile(r'\s*"?\s*\{\s*\\"')
"""JSON within a string of JSON."""
_HEADED: Final = re.compile(r"[^\n]*\s*[^\n]*")
_CLOSED: Final = re.compile(r"^>(?P<inside>.*?)</\s*score\s*>\s*$", re.IGNORECASE)
_MEMBER: Final = re.compile(r"(?<!\\)[\"'](?:(?:final|overall)[ _-]?)?score[\"']\s*:\s*[\"']?\+?(\d)", re.IGNORECASE)


@final
@dataclass(frozen=True, slots=True)
class Answer:
    """A parsed answer.

    Attributes:
        score: 0 to 4.
        at: position of its digit in the text; -1 if it is written in an unusual way.
        closed: whether it is a JSON object, which can't be the start of a longer answer.
    """

    score: int
    at: int
    closed: bool = False


@final
@dataclass(frozen=True, slots=True)
class _Line:
    """A score line: its answer, None if it can't be read; whether it is the final score; its words."""

    answer: Answer | None
    is_final: bool
    words: str


def read(text: str) -> Answer:
    """The score of a text, by the rules above.

    Raises:
        Unscorable: no score, contradicting ones, one that is not whole or out of range, or unfinished thoughts.
    """
    if _ESCAPED.match(text) and (inner := _unescaped(text)):
        return replace(read(inner), at=-1)
    alone = whole(text)  # tags of thoughts in its strings are words
    outside = text if alone is not None and alone.scores else spoken(text)
    found = list(objects(outside))
    from_json = [_of_object(text, one, of_member(value, text)) for one in found for value in one.scores]
    lines = _lines(_without(outside, found))
    readable = [(line.answer, line.is_final) for line in lines if line.answer is not None]
    said = [answer for answer, is_final in readable if is_final] or [answer for answer, _ in readable]
    if len({answer.score for answer in (*said, *from_json)}) > 1:
        raise Unscorable(f"the answer gives several scores: {shown(text)}")
    if from_json:
        return from_json[-1]
    if lines and lines[-1].answer is None:
        raise Unscorable(f"the score line can't be read: {shown(lines[-1].words)}")
    if not said:
        raise Unscorable(f"there is no score in the answer: {shown(outside)}")
    return said[-1]


def _unescaped(text: str) -> str:
    try:
        inner = str(json.loads(f'"{text.strip().strip(chr(34))}"', strict=False))
    except json.JSONDecodeError:
        return ""
    return "" if _ESCAPED.match(inner) else inner


def _of_object(text: str, found: Found, score: int) -> Answer:
    matches = [match.start(1) for match in _MEMBER.finditer(text, found.start, found.end) if int(match[1]) == score]
    return Answer(score, matches[-1] if matches else -1, closed=True)


def _without(text: str, found: list[Found]) -> str:
    """The words around the objects, positions kept."""
    for one in found:
        text = text[: one.start] + re.sub(r"[^\n]", " ", text[one.start : one.end]) + text[one.end :]
    return _WRAPPER.sub(lambda tag: " " * len(tag[0]), text).translate(PLAIN)


def _lines(text: str) -> list[_Line]:
    lines, at = list[_Line](), 0
    pieces = text.splitlines(keepends=True)
    for number, piece in enumerate(pieces):
        if match := _LINE.match(piece.rstrip()):
            start, rest = at + match.start("rest"), match["rest"]
            if not rest.strip(" \t*_`:="):  # a heading, with the number beneath it
                rest = _HEADED.match("".join(pieces[number:]), match.start("rest"))[0]  # type: ignore[index]
            closed = _CLOSED.match(rest)
            start, rest = (start + closed.start("inside"), closed["inside"]) if closed else (start, rest)
            number_at = stated(rest)
            answer = None if number_at is None else Answer(number_at[0], start + number_at[1])
            lines.append(_Line(answer, match["final"] is not None, "score" + match["rest"]))
        at += len(piece)
    return lines
