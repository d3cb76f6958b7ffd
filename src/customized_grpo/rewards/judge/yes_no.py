"""Yes or no: the word with which a reply begins, and the tokens that spell it."""

import re
from typing import Final

from customized_grpo.rewards.judge.answer import Answer
from customized_grpo.rewards.judge.numbers import plain
from customized_grpo.rewards.judge.thoughts import spoken
from customized_grpo.rewards.judge.unscorable import Unscorable, shown

_FRAME: Final = r"[\s*_`\"'(\[<>#|-]*"
_FIRST: Final = re.compile(
    rf"^{_FRAME}(?:(?:final\s+)?answer\b[\s:=*_-]*{_FRAME})?(?P<word>yes|no)\b(?!\s*(?:/|or\b|and\b)\s*(?:yes|no)\b)",
    re.IGNORECASE,
)
"""The first word; "yes or no" is a question said again."""
_AROUND: Final = " \t\r\n*_`\"'.,:;!()[]<>#|-\u2581\u0120"
"""What may stand around the word in a token, and the marks of a space in vocabularies (SentencePiece, GPT-2)."""
_WORDS: Final = {"yes": 1, "no": 0}


def read_yes_no(text: str) -> Answer:
    """Yes (1) or no (0), by a reply's first word; reasons may follow, also cut off.

    Raises:
        Unscorable: it begins otherwise, or with thoughts that never end.
    """
    match = _FIRST.match(plain(spoken(text)))
    if match is None:
        raise Unscorable(f"the answer does not begin with yes or no: {shown(text)}")
    return Answer(_WORDS[match["word"].lower()], match.start("word"))


def of_word(token: str) -> int | None:
    """Yes (1) or no (0), however a token spells it: "Yes", " yes", "YES,"; None: it is neither."""
    return _WORDS.get(plain(token).strip(_AROUND).lower())
