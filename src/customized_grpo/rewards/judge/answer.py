"""Strict parsing of a judge's answer: one that is ambiguous or out of range is not a score.

``expected_score`` is sum_s s p(s) over the scores 0 to 4, from the log-probabilities of the answered digit.
Whole numbers often tie in a group, and a tied group has no gradient; the expectation doesn't tie.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

from customized_grpo.rewards.judge.rubrics import BEST, WORST

_SHOWN: Final = 120
_THOUGHTS: Final = "</think>"
_LINE: Final = re.compile(r"^[\s>*_#`\-]*(?:(?:final|overall|my)\s+)?score\b(?P<rest>.*)$", re.IGNORECASE)
# A number alone, after a grade, or out of the best: "3", "[3]", "Excellent (4)", "3/4", "3 out of 4". Nothing else may
# precede it: "not 3" and "less than 3" are not a 3.
_REST: Final = re.compile(
    r"^[\s*_`:=]*(?:is\s+)?(?:(?:very\s+)?(?:poor|bad|fair|good|excellent|perfect)\b)?[\s*_`(\[]*(?P<digit>\d+)[\s*_`)\]]*"
    rf"(?:(?:/|out\s+of)\s*{BEST})?[\s*_`)\].]*$",
    re.IGNORECASE,
)
_MEMBER: Final = re.compile(r'(?<!\\)"score"\s*:\s*"?(\d)')
_SPECIAL: Final = re.compile(rb"<[^<>\s]+>|\[[A-Z_]+\]")
"""End-of-turn tokens: ``<|im_end|>``, ``</s>``, ``[EOS]``."""
_BLANK: Final = b" \t\r\n"
_MIN_MASS: Final = 0.5
"""Probability mass of all scores below which the model was not choosing a score at the digit's position."""


class Unscorable(RuntimeError):
    """An image has no score; the message says why. Other images are not affected."""


@final
@dataclass(frozen=True, slots=True)
class Answer:
    """A parsed answer.

    Attributes:
        score: 0 to 4.
        at: position of its digit in the text.
    """

    score: int
    at: int


def read_choice(choice: Any) -> tuple[str, Answer]:
    """Text and answer of a chat completion's choice.

    Raises:
        Unscorable: refused, cut off, empty, without a score, with several, or out of range.
    """
    message = choice.message
    if message is None:
        raise Unscorable("the answer has no message")
    if getattr(message, "refusal", None):
        raise Unscorable(f"refused: {_shown(message.refusal)}")
    if choice.finish_reason == "content_filter":
        raise Unscorable("refused by the endpoint's content filter")
    if choice.finish_reason != "stop":
        why = "; raise answer_tokens" if choice.finish_reason == "length" else ""
        raise Unscorable(f"the answer ended by {choice.finish_reason!r} and not by 'stop'{why}")
    text = message.content
    if not isinstance(text, str) or not text.strip():
        raise Unscorable("the answer is empty")
    return text, read(text)


def read(text: str) -> Answer:
    """The score of a text: from its JSON object (alone, fenced, among words) if any, else from its last score line.

    Raises:
        Unscorable: no score, contradicting ones, or one out of range.
    """
    start = text.rfind(_THOUGHTS) + len(_THOUGHTS) if _THOUGHTS in text else 0
    return _of_json(text, start) or _of_lines(text, start)


def _of_json(text: str, start: int) -> Answer | None:
    found: list[Answer] = []
    at = text.find("{", start)
    decoder = json.JSONDecoder(object_pairs_hook=_no_member_twice)
    while at != -1:
        try:
            value, end = decoder.raw_decode(text, at)
        except json.JSONDecodeError:
            at = text.find("{", at + 1)
            continue
        except RecursionError:
            raise Unscorable("the answer is nested too deeply") from None
        if isinstance(value, dict) and "score" in value:
            found.append(Answer(_in_range(value["score"], text), _digit(text, at, end)))
        at = text.find("{", end)
    if len({answer.score for answer in found}) > 1:
        raise Unscorable(f"the answer gives several scores: {_shown(text)}")
    return found[-1] if found else None


def _no_member_twice(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    if sum(name == "score" for name, _ in pairs) > 1:
        raise Unscorable("the answer gives several scores")
    return dict(pairs)


def _digit(text: str, start: int, end: int) -> int:
    """Position of the score's digit in the object at [start, end); -1 if it is written in an unusual way."""
    matches = [match.start(1) for match in _MEMBER.finditer(text, start, end)]
    return matches[-1] if matches else -1


def _of_lines(text: str, start: int) -> Answer:
    at, last = start, None
    for line in text[start:].splitlines(keepends=True):
        if match := _LINE.match(line.rstrip()):
            last = (at + match.start("rest"), match["rest"])
        at += len(line)
    if last is None:
        raise Unscorable(f"there is no score in the answer: {_shown(text[start:])}")
    number = _REST.match(last[1]) if len(last[1]) <= _SHOWN else None
    if number is None:
        raise Unscorable(f"the score line can't be read: {_shown('score' + last[1])}")
    return Answer(_in_range(number["digit"], text), last[0] + number.start("digit"))


def _in_range(value: Any, text: str) -> int:
    if isinstance(value, bool) or not re.fullmatch(r"\d+", str(value)):
        raise Unscorable(f"the score is not a whole number: {_shown(text)}")
    score = int(value)
    if not WORST <= score <= BEST:
        raise Unscorable(f"the score {score} is outside {WORST} to {BEST}: {_shown(text)}")
    return score


def expected_score(text: str, answer: Answer, tokens: Sequence[Any] | None) -> float:
    """Expectation of the score over the alternatives of its digit's token.

    Args:
        tokens: ``choice.logprobs.content``.

    Raises:
        Unscorable: the endpoint gave no log-probabilities, or none for that digit.
    """
    if not tokens:
        raise Unscorable("the endpoint gave no log-probabilities; set expected: false, or logprobs for another")
    token = _token_at(text[answer.at :], tokens)
    if token is not None and token.token.strip() == str(answer.score):
        weights = _weights({entry.token: entry.logprob for entry in token.top_logprobs or ()})
        mass = sum(weights.values())
        if answer.score in weights and mass >= _MIN_MASS:
            return sum(score * weight for score, weight in weights.items()) / mass
    raise Unscorable(f"the log-probabilities don't cover the score: {_shown(text)}")


def _token_at(tail: str, tokens: Sequence[Any]) -> Any:
    """The token that holds the first character of ``tail``, if the tokens end with ``tail``; else None.

    Matched from the end, in bytes: earlier tokens may hold thoughts that the text lacks, and a character may take
    several tokens. End-of-turn tokens and white space removed by the endpoint may follow.
    """
    wanted, seen = tail.rstrip(_BLANK.decode()).encode(), b""
    for token in reversed(tokens):
        piece = token.token.encode() if token.bytes is None else bytes(token.bytes)
        if not seen and _SPECIAL.fullmatch(piece) and not wanted.endswith(piece):
            continue
        seen = (piece + seen).rstrip(_BLANK)
        if len(seen) >= len(wanted):
            return token if seen.endswith(wanted) else None
    return None


def _weights(alternatives: Mapping[str, float]) -> dict[int, float]:
    """Probability of each score; a digit with or without a leading space is the same score."""
    weights: dict[int, float] = {}
    for token, logprob in alternatives.items():
        digit = token.strip()
        if re.fullmatch(r"\d", digit) and WORST <= int(digit) <= BEST and logprob <= 0.0:
            weights[int(digit)] = weights.get(int(digit), 0.0) + math.exp(logprob)
    return weights


def _shown(text: str) -> str:
    flat = " ".join(text.split())
    return repr(flat if len(flat) <= _SHOWN else f"{flat[: _SHOWN - 1]}…")
