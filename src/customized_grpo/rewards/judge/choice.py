"""The answer in a choice of a chat completion: how it ended, where its words stand, and their score.

Endpoints end an answer by many names (null, ``eos``, ``end_turn``, ``STOP``, their own), so any ending is taken but
those that say that the answer is cut off, filtered, or a call of a tool; what was interrupted must be a closed object.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

from customized_grpo.rewards.judge.answer import Answer, read
from customized_grpo.rewards.judge.objects import Members, scores_on, whole
from customized_grpo.rewards.judge.scale import DREAMBENCH
from customized_grpo.rewards.judge.unscorable import Unscorable, shown

_FILTERED: Final = re.compile(
    r"filter|safety|recitation|prohibited|blocklist|blocked|spii|sensitive|refus|moderat|guardrail|violat",
    re.IGNORECASE,
)
_CUT: Final = re.compile(r"length|max_?(?:\w+_)?tokens?|token_?limit|context_?window|truncat|incomplete", re.IGNORECASE)
_TOOL: Final = re.compile(r"tool|function", re.IGNORECASE)
_BROKEN: Final = re.compile(
    r"error|abort|cancel|interrupt|insufficient|fail|time_?(?:out|_limit)|pause|load_?shed|overload", re.IGNORECASE
)
"""Endings of an answer whose endpoint broke off: DeepSeek's ``insufficient_system_resource``, vLLM's ``abort``,
OpenRouter's ``error``."""
_THOUGHTS: Final = ("reasoning_content", "reasoning", "thinking", "reasoning_details", "thinking_blocks")
_SILENT_PARTS: Final = ("thinking", "reasoning", "redacted_thinking", "thought")


@final
@dataclass(frozen=True, slots=True)
class Reader:
    """How the words of a reply become an answer.

    Attributes:
        read: the answer of a text; it raises ``Unscorable``.
        members: of a JSON object, those that are the answer; None: it is never one.
        value_of: the answer that a token is, where the score is the expectation over tokens; None: it is the answer.
        cut: whether an answer that is cut off counts, because it stands first.
    """

    read: Callable[[str], Answer]
    members: Members | None = None
    value_of: Callable[[str], int | None] | None = None
    cut: bool = False


SCORES: Final = Reader(read, scores_on(DREAMBENCH))
"""Scores of 0 to 4."""


def read_choices(choices: Sequence[Any], reader: Reader = SCORES) -> tuple[str, Answer]:
    """Text and answer of a chat completion's first choice, with which all others must agree.

    Raises:
        Unscorable: as by ``read_choice``, of any of them; or they give several scores.
    """
    first, *others = [read_choice(choice, reader) for choice in choices]
    if any(answer.score != first[1].score for _, answer in others):
        scores = ", ".join(str(answer.score) for _, answer in (first, *others))
        raise Unscorable(
            f"the endpoint gave {len(choices)} answers with several scores: {scores}; in a new run ask for one (n: 1)"
        )
    return first


def read_choice(choice: Any, reader: Reader = SCORES) -> tuple[str, Answer]:
    """Text and answer of a chat completion's choice.

    Raises:
        Unscorable: refused, cut off, empty, without a score, with several, or out of range.
    """
    message = choice.get("message") if isinstance(choice, Mapping) else None
    if not isinstance(message, Mapping):
        raise Unscorable("the answer has no message")
    if message.get("refusal"):
        raise Unscorable(f"refused: {shown(str(message['refusal']))}")
    ending = _ending(choice)
    if _FILTERED.search(ending):
        raise Unscorable(f"refused by the endpoint's content filter: the answer ended by {ending!r}")
    if _CUT.search(ending) and not reader.cut:
        raise Unscorable(f"the answer ended by {ending!r}: it is cut off; raise answer_tokens")
    text = _text(message.get("content"))
    if _TOOL.search(ending) or (message.get("tool_calls") and not text.strip()):
        raise Unscorable(f"the answer ended by {ending!r}: it calls a tool, and none is offered")
    text = text if text.strip() else _from_thoughts(message, ending, reader)
    answer = reader.read(text)
    if _BROKEN.search(ending) and not answer.closed:
        raise Unscorable(f"the answer ended by {ending!r}, so its score line may not be whole: {shown(text)}")
    return text, answer


def _ending(choice: Mapping[str, Any]) -> str:
    """Why the answer ended, in the endpoint's words; a router says its provider's too."""
    said = (choice.get("finish_reason"), choice.get("native_finish_reason"))
    return " ".join(str(one) for one in said if one is not None)


def _text(content: Any) -> str:
    """The words of a message, of which some endpoints make a list of parts, or in JSON mode an object or a number."""
    if isinstance(content, str) or content is None:
        return content or ""
    if not isinstance(content, list):
        return json.dumps(content, ensure_ascii=False)
    words = []
    for part in content:
        if isinstance(part, str):
            words.append(part)
        elif isinstance(part, Mapping) and part.get("refusal"):
            raise Unscorable(f"refused: {shown(str(part['refusal']))}")
        elif isinstance(part, Mapping) and part.get("type") not in _SILENT_PARTS and isinstance(part.get("text"), str):
            words.append(part["text"])
    return "".join(words)


def _from_thoughts(message: Mapping[str, Any], ending: str, reader: Reader) -> str:
    """The answer that a server took for thoughts: one JSON object and nothing else, as of vLLM's and SGLang's parsers.

    Raises:
        Unscorable: the message is empty, or holds thoughts alone.
    """
    field = next((name for name in _THOUGHTS if message.get(name)), None)
    if field is None:
        raise Unscorable(f"the answer is empty (it ended by {ending!r})" if ending != "stop" else "the answer is empty")
    thoughts = message[field]
    found = whole(thoughts, reader.members) if isinstance(thoughts, str) and reader.members is not None else None
    if found is not None and found.values:
        return str(thoughts)
    raise Unscorable(
        f"the answer is empty, and what the endpoint sent is in {field!r}: {shown(_text(thoughts) or str(thoughts))}; "
        "raise answer_tokens so that thinking comes to an end, start the server with the model's own reasoning parser, "
        "or in a new run turn it off by extra_body (chat_template_kwargs: {enable_thinking: false})"
    )
