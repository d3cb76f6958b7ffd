"""Thoughts of a reply: they are blanked, and a score in them is a draft and none.

Tags as models write them: ``<think>``, ``<thinking>``, ``<reasoning>`` and their kin, ``◁think▷`` of Kimi, ``[THINK]``
of Magistral, ``<|begin_of_thought|>``, the channels of gpt-oss and Gemma. Some templates write the opening tag into the
question, so a closing one alone ends thoughts that began with the reply.
"""

import re
from typing import Final

from customized_grpo.rewards.judge.unscorable import Unscorable, shown

_WORD: Final = r"(?:think(?:ing)?|thoughts?|reason(?:ing)?|reflect(?:ion)?|scratchpad|inner_monologue)"
_BEFORE, _AFTER = r"[<◁]\s*\|?\s*", r"\s*\|?\s*[>▷]"
_FINAL: Final = r"<\|channel\|>\s*final\b\s*(?:<\|constrain\|>\s*\w+\s*)?(?:<\|message\|>)?|assistantfinal"
_CLOSE: Final = (
    rf"{_BEFORE}(?:/\s*(?:\w+[:_])?{_WORD}(?:_\w+)?|end_(?:of_)?{_WORD}){_AFTER}|(?-i:\[/THINK\])|<channel\|>"
)
_OPEN: Final = (
    rf"{_BEFORE}(?:(?:\w+[:_])?{_WORD}(?:\s[^<>]*)?|(?:begin|start)_(?:of_)?{_WORD}){_AFTER}|(?-i:\[THINK\])"
    r"|<\|channel\|>\s*(?:analysis|commentary)\b|<\|channel>|\Aanalysis(?-i:(?=[A-Z]))"
)
_TAG: Final = re.compile(rf"(?P<final>{_FINAL})|(?P<close>{_CLOSE})|(?P<open>{_OPEN})", re.IGNORECASE)


def spoken(text: str) -> str:
    """The text with its thoughts and their tags blanked, so that positions stay.

    Raises:
        Unscorable: the thoughts never end, so the answer was not reached.
    """
    depth, at, kept = 0, 0, list[str]()
    for tag in _TAG.finditer(text):
        words = text[at : tag.start()]
        kept.append(_blank(words) if depth else words)
        if tag["open"]:
            depth += 1
        elif tag["close"] and depth:
            depth -= 1
        else:  # what ends without a beginning began with the reply; a final channel ends all others
            depth, kept = 0, [_blank("".join(kept))]
        kept.append(_blank(tag[0]))
        at = tag.end()
    if depth:
        raise Unscorable(
            f"the thoughts are not closed, so a score in them would be a draft: {shown(text)}; raise answer_tokens, or "
            "in a new run turn thinking off by extra_body"
        )
    return "".join([*kept, text[at:]])


def _blank(text: str) -> str:
    """Blanks of the same length; lines stay lines."""
    return re.sub(r"[^\n]", " ", text)
