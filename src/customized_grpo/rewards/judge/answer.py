"""The score of a reply's text. It has one meaning or it is none:

1. Thoughts are no part of the answer; if they never end, there is none.
2. Answers are the JSON objects with a score, and the lines for a score, rating, grade or answer that hold nothing but a
   number. All of them must agree. A *final* or *overall* score stands above the other scores.
3. Nothing may take the last one back: no such line that can't be read, no other number, no word such as "actually".
4. Without any of them, a reply that is nothing but a number is the score.
"""

import json
import re
from dataclasses import dataclass, replace
from typing import Final, Literal, final

from customized_grpo.rewards.judge.numbers import of_member, others, plain, stated, without_scale
from customized_grpo.rewards.judge.objects import NAME, Found, ascii_of, objects, scores_on, whole
from customized_grpo.rewards.judge.scale import DREAMBENCH, Scale
from customized_grpo.rewards.judge.thoughts import spoken
from customized_grpo.rewards.judge.unscorable import Unscorable, shown

__all__ = ["Answer", "Unscorable", "read"]

_WRAPPER: Final = re.compile(
    r"</?\s*(?:answer|final_answer|output|response|result)\s*>"
    r"|</?(?:b|strong|i|em|u|p|span|div|code|h[1-6])>|<br\s*/?>"
    r"|<\|(?:(?:begin|end)_of_box|im_end|end|return|eot_id)\|>|</s>",
    re.IGNORECASE,
)
"""Tags around an answer: of templates, of HTML, of GLM's box, of the end of a turn."""
_LINE: Final = re.compile(
    r"^[\s>*_#`\-<(\[|\"']*(?:(?P<final>final|overall)\s+|my\s+)?(?:score|rating|grade|(?P<answer>answer))\b(?P<rest>.*)$",
    re.IGNORECASE,
)
_EMPTY: Final = " \t*_`:=|\"'"
TAKEN_BACK: Final = re.compile(
    r"\b(?:wait|actually|correction|oops|sorry|scratch\s+that|make\s+(?:that|it)|or\s+rather|mistaken"
    r"|(?:on|upon)\s+(?:second\s+thoughts?|(?:further\s+)?reflection)|reconsider\w*|revis(?:ed?|ing|ion)"
    r"|(?:my|made\s+an?)\s+(?:mistake|error)|too\s+(?:high|low|generous|harsh|strict|lenient)"
    r"|(?:lower|raise|reduce|increase|change|adjust|correct)(?:ing)?\s+(?:it|this|that|my|the\s+(?:score|rating|grade)))\b"
    r"|(?:^|\n)[ \t]*(?:no|hm+)[,.!:]|(?<!\bthe\s)(?<!\bthese\s)\b(?:zero|two|three|four)\b(?=\s*(?:[.,;:!*]|$))"
    r"|更正|改为|改成|抱歉|訂正|やはり",
    re.IGNORECASE,
)
_ESCAPED: Final = re.compile(r'\s*(?:"\s*)?\{\s*\\"')
"""JSON within a string of JSON."""
_HEADED: Final = re.compile(r"[^\n]*\s*[^\n]*")
_CLOSED: Final = re.compile(r"^>(?P<inside>.*?)</\s*(?:score|rating|grade)\s*>\s*$", re.IGNORECASE)
_MEMBER: Final = re.compile(rf"(?<!\\)[\"']{NAME}[\"']\s*:\s*[\"']?\+?(?P<digit>\d)", re.IGNORECASE)


@final
@dataclass(frozen=True, slots=True)
class Answer:
    """A parsed answer.

    Attributes:
        score: on its scale.
        at: position of its digit in the text; -1 if it is written in an unusual way.
        closed: whether it is a JSON object, which can't be the start of a longer answer.
    """

    score: int
    at: int
    closed: bool = False


@final
@dataclass(frozen=True, slots=True)
class _Line:
    """A score line: its answer, None if it can't be read; its rank; its words at [start, end) of the text.

    Attributes:
        rank: ``final`` scores stand above ``plain`` ones; an ``answer`` must agree with either.
    """

    answer: Answer | None
    rank: Literal["plain", "final", "answer"]
    words: str
    start: int
    end: int


def read(text: str, scale: Scale = DREAMBENCH) -> Answer:
    """The score of a text, by the rules above.

    Raises:
        Unscorable: no score, contradicting ones, one that is taken back, not whole or out of range, or unfinished
            thoughts.
    """
    if _ESCAPED.match(text) and (inner := _unescaped(text)):
        return replace(read(inner, scale), at=-1)
    members = scores_on(scale)
    alone = whole(text, members)  # tags of thoughts in its strings are words
    outside = text if alone is not None and alone.values else spoken(text)
    found = list(objects(outside, members))
    from_json = [_of_object(text, one, of_member(value, text, scale)) for one in found for value in one.values]
    words = without_scale(without_objects(outside, found), scale)
    lines = _lines(words, scale)
    has_final = any(line.rank == "final" and line.answer for line in lines)
    said = [line.answer for line in lines if line.answer and not (has_final and line.rank == "plain")]
    if len({answer.score for answer in (*said, *from_json)}) > 1:
        raise Unscorable(f"the answer gives several scores: {shown(text)}")
    behind = max([0, *(line.end for line in lines if line.answer), *(one.end for one in found if one.values)])
    if unread := [line.words for line in lines if not line.answer and line.start >= behind]:
        raise Unscorable(f"the score line can't be read: {shown(unread[-1])}")
    if not said and not from_json:
        return _alone(words, outside, found, scale)
    answer = (said + from_json)[-1]
    if TAKEN_BACK.search(words[behind:]) or others(words[behind:], answer.score):
        raise Unscorable(f"what follows the score may take it back: {shown(outside[behind:])}")
    return answer


def _alone(words: str, outside: str, found: list[Found], scale: Scale) -> Answer:
    """The answer of a reply that is a number and nothing else."""
    start = len(words) - len(words.lstrip())
    number = None if found else stated(words.strip(), scale)
    if number is None:
        raise Unscorable(f"there is no score in the answer: {shown(outside)}")
    return Answer(number[0], start + number[1])


def _unescaped(text: str) -> str:
    try:
        inner = str(json.loads(f'"{text.strip().strip(chr(34))}"', strict=False))
    except json.JSONDecodeError:
        return ""
    return "" if _ESCAPED.match(inner) else inner


def _of_object(text: str, found: Found, score: int) -> Answer:
    digits = _MEMBER.finditer(ascii_of(text), found.start, found.end)
    matches = [match.start("digit") for match in digits if int(match["digit"]) == score]
    return Answer(score, matches[-1] if matches else -1, closed=True)


def without_objects(text: str, found: list[Found]) -> str:
    """The words around the objects, without tags; positions kept."""
    for one in found:
        text = text[: one.start] + re.sub(r"[^\n]", " ", text[one.start : one.end]) + text[one.end :]
    return plain(_WRAPPER.sub(lambda tag: " " * len(tag[0]), text))


def _lines(text: str, scale: Scale) -> list[_Line]:
    lines, at = list[_Line](), 0
    pieces = text.splitlines(keepends=True)
    for number, piece in enumerate(pieces):
        if match := _LINE.match(piece.rstrip()):
            start, rest = at + match.start("rest"), match["rest"]
            if not rest.strip(_EMPTY):  # a heading, with the number beneath it
                rest = _HEADED.match("".join(pieces[number:]), match.start("rest"))[0]  # type: ignore[index]
            end, closed = start + len(rest), _CLOSED.match(rest)
            start, rest = (start + closed.start("inside"), closed["inside"]) if closed else (start, rest)
            number_at = stated(rest, scale)
            answer = None if number_at is None else Answer(number_at[0], start + number_at[1])
            rank: Literal["plain", "final", "answer"] = "final" if match["final"] else "plain"
            lines.append(_Line(answer, "answer" if match["answer"] else rank, piece.strip(), at, end))
        at += len(piece)
    return lines
