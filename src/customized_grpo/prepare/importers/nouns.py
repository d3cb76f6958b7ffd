"""Common class words, by which one that is none is told: a folder's name may be a pet's, a project's or a camera's.

The list in ``nouns.txt`` is ours: what people photograph to have it drawn. A word that isn't in it is asked about and
used all the same.
"""

from functools import cache
from pathlib import Path
from typing import Final

_LIST: Final = Path(__file__).with_name("nouns.txt")
_NO_BEGINNING: Final = ("a", "an", "the", "this", "that", "my", "our", "your", "his", "her", "their")


def is_likely(word: str) -> bool:
    """True for a class word that ends in a common noun and fits behind 'a': 'red bag'; not for 'rex' or 'my dog'."""
    parts = word.lower().replace("-", " ").split()
    if not parts or parts[0] in _NO_BEGINNING:
        return False
    ends = ("-".join(parts[-2:]), parts[-1])
    return any(one in _nouns() for end in ends for one in (end, end.removesuffix("s"), end.removesuffix("es")))


@cache
def _nouns() -> frozenset[str]:
    return frozenset(_LIST.read_text(encoding="utf-8").split())
