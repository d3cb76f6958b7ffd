"""The expectation of an answer, sum_s s p(s), from the log-probabilities of the token in which it was given.

A digit: whole numbers often tie in a group, and a tied group has no gradient; the expectation doesn't tie. A word: yes
is 1 and no is 0, so it is the probability of yes, p(yes) / (p(yes) + p(no)) (PaCo-RL, arXiv 2512.04784). The form is
OpenAI's, as vLLM gives it too: ``choices[].logprobs.content[].top_logprobs[]``.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

from customized_grpo.rewards.judge.answer import Answer
from customized_grpo.rewards.judge.numbers import of_token
from customized_grpo.rewards.judge.unscorable import Unscorable, shown

_SPECIAL: Final = re.compile(rb"<[^<>\s]+>|\[[A-Z_]+\]")
"""End-of-turn tokens: ``<|im_end|>``, ``</s>``, ``[EOS]``."""
_BLANK: Final = b" \t\r\n"
_MIN_MASS: Final = 0.5
"""Probability mass of all answers below which the model was not choosing an answer at the token's position."""


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


def expected_score(
    text: str, answer: Answer, tokens: Sequence[Any] | None, value_of: Callable[[str], int | None] = of_token
) -> float:
    """Expectation of the answer over the alternatives of its token: of a digit, or of yes (1) and no (0).

    Args:
        tokens: as by ``tokens_of``.
        value_of: the answer that a token is, however it is spelled; None: it is none.

    Raises:
        Unscorable: the endpoint gave no log-probabilities, or none for that token.
    """
    if not tokens:
        raise Unscorable(
            "the endpoint gave no log-probabilities; take another endpoint, or in a new run expected: false and a "
            "rubric that asks for a score"
        )
    token = _token_at(text[answer.at :], tokens)
    if token is not None and value_of(token.token) == answer.score:
        weights = _weights(token.top_logprobs, value_of)
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


def _weights(alternatives: Sequence[Alternative], value_of: Callable[[str], int | None]) -> dict[int, float]:
    """Probability of each answer, summed over the tokens that spell it; other tokens are left out.

    Several tokens of a vocabulary may have one text, so equal texts are summed too, unless one is listed twice.
    """
    weights: dict[int, float] = {}
    for one in dict.fromkeys(alternatives):
        if (found := value_of(one.token)) is not None and one.logprob <= 0.0:
            weights[found] = weights.get(found, 0.0) + math.exp(one.logprob)
    return weights
