"""Problems in the text of prompts: captions made by models are noisy, and a policy is trained to follow them."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

MAX_WORDS: Final = 60
"""Limit on words: about CLIP's 77 tokens; rewards built on CLIP don't see the rest."""

_DANGLING: Final = "a an the of to and or with in on at by for from its their his her into near next is are as"

_PATTERNS: Final[Mapping[str, str]] = {
    # "a -out book", "a of a rabbit": a word, or one half of it, is gone
    "lost-word": r"(?:^|\s)-\w|\w-(?:\s|$)|(?i:\b(?:a|an|the) (?:of|by|with|and|in|on)\s)",
    "remark": r"(?i)\blet me know\b|\bhere (?:are|is) (?:a|an|the|some|your)\b|\bas an ai\b|\bi'd be happy\b",
    "loose-punctuation": r"\s[,.;:!?](?:\s|$)|[,;:]{2}",
    "double-space": r"\S[^\S\n]{2,}\S",
    "line-break": r"\n",
    "repeated-word": r"(?i)\b(\w{2,})\s+\1\b",
    "listing-words": r"(?i)\broyalty[- ]free\b|\bstock (?:photo|image)|\bfor sale\b|\blow[- ]?poly\b|\b3d model\b",
    "wrong-article": (
        r"(?i:\ba +(?!uni|one\b|once\b|eu|us[aeiu]|ut[ei]|ubi|u\b|of\b|on\b|in\b|and\b)[aeiou]\w)"
        r"|(?i:\ban) +(?!(?i:hour|honest|hono|heir|herb|[aefhilmnorsx]\b)|[A-Z]{2})(?i:[b-df-hj-np-tv-z]\w)"
    ),
    "markup": r"<[a-zA-Z/][^>]*>|https?://|&(?:amp|lt|gt|quot);",
    "broken-text": r"\ufffd|[\x00-\x08\x0b-\x1f\x7f]",
    "cut-off": rf"(?i)(?:^|\s)(?:{'|'.join(_DANGLING.split())}),?$",
}
_COMPILED: Final = {name: re.compile(pattern) for name, pattern in _PATTERNS.items()}


def prompt_problems(prompt: str) -> list[str]:
    """Names of the problems of a prompt, explained in docs/how-to/data.md; empty if there are none."""
    text = prompt.strip()
    found = [name for name, pattern in _COMPILED.items() if pattern.search(text)]
    if text.count('"') % 2 or text.count("(") != text.count(")"):
        found.append("unpaired-quote")
    words = len(text.split())
    if words > MAX_WORDS:
        found.append("too-long")
    if words < 2:
        found.append("one-word")
    return found


@dataclass(frozen=True, slots=True)
class PromptSurvey:
    """Statistics over many prompts."""

    noisy: int
    """Number of prompts with at least one problem."""
    problems: Mapping[str, int]
    """Number of prompts per problem, most frequent first."""
    examples: Mapping[str, list[str]]
    """The first three prompts per problem."""
    mean_words: float
    max_words: int


def survey(prompts: Iterable[str]) -> PromptSurvey:
    """Survey of problems and lengths of prompts."""
    counts: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    noisy = total = words = longest = 0
    for prompt in prompts:
        found = prompt_problems(prompt)
        noisy += bool(found)
        counts.update(found)
        for name in found:
            if len(kept := examples.setdefault(name, [])) < 3:
                kept.append(prompt)
        length = len(prompt.split())
        total, words, longest = total + 1, words + length, max(longest, length)
    return PromptSurvey(noisy, dict(counts.most_common()), examples, words / max(total, 1), longest)
