"""The expectation of a score, sum_s s p(s) over 0 to 4, from the log-probabilities of the answered digit.

Whole numbers often tie in a group, and a tied group has no gradient; the expectation doesn't tie.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar, final

from customized_grpo.rewards.judge.answer import Answer
from customized_grpo.rewards.judge.numbers import of_token
from customized_grpo.rewards.judge.unscorable import Unscorable, shown

T = TypeVar("T")

_SPECIAL: Final = re.compile(rb"<[^<>\s]+>|\[[A-Z_]+\]")
"""End-of-turn tokens: ``<|im_end|>``, ``</s>``, ``[EOS]``."""
_BLANK: Final = b" \t\r\n"
_MIN_MASS: Final = 0.5
"""Probability mass of all scores below which the model was not choosing a score at the digit's position."""


@final
@dataclass(frozen=True, slots=True)
class Alternative:
    """A token that might have stood here, and its log-probability."""

    token: str
    logprob: float


@final
@dataclass(frozen=True, slots=True)
class Token:
    """A token of the answer, its bytes if it is no whole text, and its alternatives."""

    token: str
    bytes: Sequence[int] | None
    top_logprobs: Sequence[Alternative]


def tokens_of(choice: Mapping[str, Any]) -> list[Token]:
    """The tokens of a choice of a chat completion; none where the endpoint gave none, or in another form."""
    try:
        return [
            Token(
                str(one["token"]),
                one.get("bytes"),
                [Alternative(str(at["token"]), float(at["logprob"])) for at in one.get("top_logprobs") or ()],
            )
            for one in choice["logprobs"]["content"]
        ]
    except (KeyError, TypeError, ValueError, AttributeError):
        return []


def expected_score(text: str, answer: Answer, tokens: Sequence[Any] | None) -> float:
    """Expectation of the score over the alternatives of its digit's token.

    Args:
        tokens: as by ``tokens_of``.

    Raises:
        Unscorable: the endpoint gave no log-probabilities, or none for that digit.
    """
    if not tokens:
        raise Unscorable(
            "the endpoint gave no log-probabilities; take another endpoint, or in a new run expected: false"
        )
    token = _token_at(text[answer.at :], tokens)
    if token is not None and of_token(token.token) == answer.score:
        weights = weights_of(token.top_logprobs, of_token)
        mass = sum(weights.values())
        if answer.score in weights and mass >= _MIN_MASS:
            return sum(score * weight for score, weight in weights.items()) / mass
    raise Unscorable(f"the log-probabilities don't cover the score: {shown(text)}")


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


def weights_of(alternatives: Sequence[Alternative], value: Callable[[str], T | None]) -> dict[T, float]:
    """Probability of each value, summed over the tokens that spell it; what ``value`` gives None for is left out.

    Several tokens of a vocabulary may have one text, so equal texts are summed too, unless one is listed twice.
    """
    weights: dict[T, float] = {}
    for one in dict.fromkeys(alternatives):
        if (found := value(one.token)) is not None and one.logprob <= 0.0:
            weights[found] = weights.get(found, 0.0) + math.exp(one.logprob)
    return weights
