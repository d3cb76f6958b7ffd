"""JSON objects among the words of a reply, also as models write them.

Strict JSON first, with raw line breaks inside strings. Where that fails: full-width punctuation, single quotes, names
without quotes, trailing commas and comments, as long as the object is whole. ``yaml`` reads that form; its duplicate
members and its tags are refused here.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import yaml

from customized_grpo.rewards.judge.numbers import Number, plain, stated
from customized_grpo.rewards.judge.scale import Scale
from customized_grpo.rewards.judge.unscorable import Unscorable, shown

NAME: Final = r"(?:(?:final|overall)[\s_-]*)?(?:score|(?P<other>rating|grade|answer))"
"""A member that is the score. What has another name than that is one only where its value can be one."""
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
class Members:
    """The members of an object that are answers.

    Attributes:
        name: regular expression of their names; what its group ``other`` matches is one only where ``fits`` holds.
        fits: whether a value can be an answer.
    """

    name: str
    fits: Callable[[Any], bool]

    def of(self, pairs: Any) -> list[Any]:
        """Their values; those of an only member, if it is an object, count as its own."""
        named = [(re.fullmatch(self.name, str(name).strip(), re.IGNORECASE), value) for name, value in pairs]
        values = [value for name, value in named if name and (name["other"] is None or self.fits(value))]
        only = pairs[0][1] if len(pairs) == 1 else None
        return self.of(only) if not values and _is_object(only) else values

    def mentioned(self, text: str) -> bool:
        """True if a text names one."""
        return bool(re.search(rf"(?:[\"']|[{{,]\s*){self.name}[\"']?\s*:", text, re.IGNORECASE))


def scores_on(scale: Scale) -> Members:
    """The members that are scores."""
    return Members(NAME, lambda value: _is_number(value, scale))


@final
@dataclass(frozen=True, slots=True)
class Found:
    """An object at [start, end) of the text, and the values of its members that are answers."""

    start: int
    end: int
    values: Sequence[Any]


def objects(text: str, members: Members) -> Iterator[Found]:
    """The outermost objects of a text, in order.

    Raises:
        Unscorable: one that has an answer can't be read, or is nested too deeply.
    """
    at, tries = _next(text, 0), 0
    while at != -1:
        found = _strict(text, at, members)
        if found is None and tries < _TRIES:
            found, tries = _by_yaml(text, at, members), tries + 1
        if found is not None:
            yield found
        at = _next(text, at + 1 if found is None else found.end)


def ascii_of(text: str) -> str:
    """The text with the punctuation and digits of JSON in the place of their full-width and typographic forms."""
    return plain(text).translate({0x201C: '"', 0x201D: '"'})


def whole(text: str, members: Members) -> Found | None:
    """The object of strict JSON that a text is from end to end, if it is one."""
    found = _strict(text, len(text) - len(text.lstrip()), members) if text.lstrip().startswith("{") else None
    return found if found is not None and not text[found.end :].strip() else None


def _strict(text: str, at: int, members: Members) -> Found | None:
    try:
        pairs, end = _DECODER.raw_decode(text, at)
    except json.JSONDecodeError:
        return None
    except RecursionError:
        raise Unscorable("the answer is nested too deeply") from None
    return Found(at, end, members.of(pairs))


def _next(text: str, start: int) -> int:
    ats = [at for at in (text.find("{", start), text.find("\uff5b", start)) if at != -1]
    return min(ats, default=-1)


def _is_object(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in value)


def _is_number(value: Any, scale: Scale) -> bool:
    return isinstance(value, Number) or (isinstance(value, str) and stated(value, scale) is not None)


def _by_yaml(text: str, start: int, members: Members) -> Found | None:
    ascii_text = ascii_of(text)
    if not _LIKE.match(ascii_text, start):
        return None
    end, clean = _whole(ascii_text, start)
    part = clean if end is not None else ascii_text[start:]
    if not members.mentioned(part):
        return None
    if end is None:
        raise Unscorable(f"the answer's JSON is not whole: {shown(text[start:])}")
    try:
        values = members.of(_pairs(yaml.compose(part, Loader=yaml.SafeLoader)))
    except (yaml.YAMLError, ValueError, RecursionError):
        raise Unscorable(f"the answer's JSON can't be read: {shown(text[start:])}") from None
    return Found(start, end, values)


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
    """Members of a mapping; a plain scalar that JSON would call a number is one.

    Raises:
        ValueError: a number stands where a member's name should be, and isn't the decimals of the number before it.
    """
    if not isinstance(node, yaml.MappingNode):
        return ()
    pairs, end = list[tuple[str, Any]](), -1
    for key, value in node.value:
        if key.tag.endswith((":int", ":float")):
            whole = pairs[-1][1] if pairs else None
            if not isinstance(whole, Number) or key.start_mark.index != end + 1 or not key.value.isdigit():
                raise ValueError(f"{key.value} is no member's name")
            pairs[-1] = (pairs[-1][0], Number(f"{whole}.{key.value}"))
        else:
            pairs.append((str(key.value), _value(value)))
        end = value.end_mark.index
    return tuple(pairs)


def _value(node: Any) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return [_value(one) for one in node.value]
    if isinstance(node, yaml.MappingNode):
        return _pairs(node)
    if isinstance(node, yaml.ScalarNode) and node.tag.endswith(":str"):
        return node.value
    if isinstance(node, yaml.ScalarNode) and node.tag.endswith((":int", ":float")):
        return Number(node.value)
    return None
