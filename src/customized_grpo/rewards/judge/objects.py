"""JSON objects among the words of a reply, also as models write them.

Strict JSON first, with raw line breaks inside strings. Where that fails: full-width punctuation, single quotes, names
without quotes, trailing commas and comments, as long as the object is whole. ``yaml`` reads that form; its duplicate
members and its tags are refused here.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import yaml

from customized_grpo.rewards.judge.numbers import PLAIN, Number
from customized_grpo.rewards.judge.unscorable import Unscorable, shown

_NAMES: Final = ("score", "finalscore", "overallscore")
_MENTION: Final = re.compile(r"(?:[\"']|[{,]\s*)(?:(?:final|overall)[ _-]?)?score[\"']?\s*:", re.IGNORECASE)
_TOKEN: Final = re.compile(
    r"\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*'(?=\s*[,:}\]])|(?P<comment>//[^\n]*|/\*.*?\*/|(?<=\s)#[^\n]*)|(?P<brace>[{}])",
    re.DOTALL,
)
_LIKE: Final = re.compile(r"\{\s*(?:[\"'}]|//|/\*|\w+\s*:)")
"""The start of an object, and not of words in braces."""
_LONGEST: Final = 20_000
"""Characters of an object that is not strict JSON: replies are short, and yaml is slow."""
_TRIES: Final = 20
"""Objects of a text that are read by yaml."""
_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=tuple, strict=False, parse_int=Number, parse_float=Number, parse_constant=Number
)


@final
@dataclass(frozen=True, slots=True)
class Found:
    """An object at [start, end) of the text.

    Attributes:
        scores: values of its members that are scores by name.
    """

    start: int
    end: int
    scores: Sequence[Any]


def objects(text: str) -> Iterator[Found]:
    """The outermost objects of a text, in order.

    Raises:
        Unscorable: one that has a score can't be read, or is nested too deeply.
    """
    at, tries = _next(text, 0), 0
    while at != -1:
        found = _strict(text, at)
        if found is None and tries < _TRIES:
            found, tries = _by_yaml(text, at), tries + 1
        if found is not None:
            yield found
        at = _next(text, at + 1 if found is None else found.end)


def whole(text: str) -> Found | None:
    """The object of strict JSON that a text is from end to end, if it is one."""
    found = _strict(text, len(text) - len(text.lstrip())) if text.lstrip().startswith("{") else None
    return found if found is not None and not text[found.end :].strip() else None


def _strict(text: str, at: int) -> Found | None:
    try:
        pairs, end = _DECODER.raw_decode(text, at)
    except json.JSONDecodeError:
        return None
    except RecursionError:
        raise Unscorable("the answer is nested too deeply") from None
    return Found(at, end, _scores(pairs))


def _next(text: str, start: int) -> int:
    ats = [at for at in (text.find("{", start), text.find("\uff5b", start)) if at != -1]
    return min(ats, default=-1)


def _scores(pairs: Any) -> list[Any]:
    """Values of the members that are scores; those of an only member, if it is an object, count as its own."""
    scores = [value for name, value in pairs if re.sub(r"[\s_-]", "", str(name)).lower() in _NAMES]
    only = pairs[0][1] if len(pairs) == 1 else None
    return _scores(only) if not scores and _is_object(only) else scores


def _is_object(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in value)


def _by_yaml(text: str, start: int) -> Found | None:
    plain = text.translate(PLAIN | {0x201C: '"', 0x201D: '"'})
    if not _LIKE.match(plain, start):
        return None
    end, clean = _whole(plain, start)
    part = clean if end is not None else plain[start:]
    if not _MENTION.search(part):
        return None
    if end is None:
        raise Unscorable(f"the answer's JSON is not whole: {shown(text[start:])}")
    try:
        scores = _scores(_pairs(yaml.compose(part, Loader=yaml.SafeLoader)))
    except (yaml.YAMLError, ValueError, RecursionError):
        raise Unscorable(f"the answer's JSON can't be read: {shown(text[start:])}") from None
    return Found(start, end, scores)


def _whole(text: str, start: int) -> tuple[int | None, str]:
    """End of the object at ``start`` (None: it has none), and the object with blanks for its comments."""
    depth, at, kept = 0, start, list[str]()
    for token in _TOKEN.finditer(text, start, start + _LONGEST):
        kept.append(text[at : token.start()])
        kept.append(re.sub(r"[^\n]", " ", token[0]) if token["comment"] else token[0])
        at = token.end()
        depth += {"{": 1, "}": -1}.get(token["brace"] or "", 0)
        if token["brace"] and depth == 0:
            return at, "".join(kept)
    return None, ""


def _pairs(node: Any) -> tuple[tuple[str, Any], ...]:
    """Members of a mapping; a plain scalar that JSON would call a number is one."""
    if not isinstance(node, yaml.MappingNode):
        return ()
    return tuple((str(key.value), _value(value)) for key, value in node.value)


def _value(node: Any) -> Any:
    if isinstance(node, yaml.MappingNode):
        return _pairs(node)
    if isinstance(node, yaml.ScalarNode) and node.tag.endswith(":str"):
        return node.value
    if isinstance(node, yaml.ScalarNode) and node.tag.endswith((":int", ":float")):
        return Number(node.value)
    return None
