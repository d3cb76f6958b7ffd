"""Problems in the text of prompts: captions made by models are noisy, and a policy is trained to follow them."""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

MAX_WORDS: Final = 60
"""Limit on words: about CLIP's 77 tokens; rewards built on CLIP don't see the rest."""

_UNSPACED: Final[Mapping[str, float]] = {
    # Chinese and Japanese
    "\u2e80-\u312f\u31a0-\ua4cf\uf900-\ufaff\uff66-\uff9f\U0001b000-\U0001b16f\U00020000-\U0003ffff": 2.0,
    # Thai, Lao, Burmese, Khmer
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1a20-\u1aaf\ua9e0-\ua9ff\uaa60-\uaa7f": 5.0,
}
"""Signs of scripts without spaces between words, and how many of them a word has on average."""
_RUNS: Final = [(re.compile(f"[{signs}]+"), length) for signs, length in _UNSPACED.items()]

_SPECIAL: Final = re.compile(
    r"<\|[^<>|\s]{1,40}\|>|<\uff5c[^<>\uff5c]{1,40}\uff5c>"  # CLIP, Qwen, Llama, Phi; DeepSeek
    r"|<extra_id_\d+>|</?(?:s|pad|unk|mask|bos|eos|cls|sep)>"  # T5, Gemma
    r"|</?(?:image|video|audio|tool_call|tool_response|think)>"
    r"|<(?:start|end)_of_(?:turn|image)>|<(?:unused|SPECIAL_)\d+>"
    r"|\[/?(?:INST|IMG|IMG_BREAK|IMG_END|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_RESULTS|TOOL_CALLS|CLS|SEP|PAD|UNK|MASK)\]"
)
"""What the tokenizers of text encoders and judges read as one token with a meaning, instead of as text."""

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
    # what web interfaces and template files read as instructions, and a policy as words: (dog:1.3), ((dog)),
    # <lora:x:0.8>, {red|blue}, __colour__, {} and [V] left open, embedding:x, BREAK
    "prompt-syntax": (
        r"\([^()]*[^()\d\s]:\d*\.?\d+\)|\(\(|<(?:lora|lyco|hypernet|embedding|segment):|\{[^{}]*\|[^{}]*\}|\{\w*\}"
        r"|__[\w/-]+__|\[[A-Z]\d?\]|(?i:\bembedding:)\w|\bBREAK\b"
    ),
    "markup": r"<[a-zA-Z/][^>]*>|https?://|&(?:amp|lt|gt|quot);",
    # replacement and control signs; UTF-8 that was read as CP1252, as in "cafÃ©" and "itâ€™s"
    "broken-text": r"\ufffd|[\x00-\x08\x0b-\x1f\x7f-\x9f]|[\xc2\xc3][\x80-\xbf]|\xe2\u20ac|\xef\xbf\xbd|\xef\xbb\xbf",
    # signs that nobody sees and a tokenizer does; joiners have a meaning in emoji and in Arabic and Indic scripts
    "invisible": r"[\u00a0\u00ad\u180e\u200b\u200e\u200f\u2028-\u202f\u2060-\u2064\u2066-\u206f\ufeff]",
    "cut-off": rf"(?i)(?:^|\s)(?:{'|'.join(_DANGLING.split())}),?$",
}
_COMPILED: Final = {name: re.compile(pattern) for name, pattern in _PATTERNS.items()}


def prompt_problems(prompt: str) -> list[str]:
    """Names of the problems of a prompt, explained in docs/how-to/data.md; empty if there are none."""
    text = prompt.strip()
    found = [name for name, pattern in _COMPILED.items() if pattern.search(text)]
    if text.count('"') % 2 or text.count("(") != text.count(")"):
        found.append("unpaired-quote")
    if special_tokens(text):
        found.append("special-token")
    words = num_words(text)
    if words > MAX_WORDS:
        found.append("too-long")
    if words < 2:
        found.append("one-word")
    return found


def num_words(text: str) -> int:
    """Number of words; in scripts without spaces (Chinese, Japanese, Thai, ...) estimated from the signs."""
    words = 0
    for signs, length in _RUNS:
        words += sum(math.ceil(len(run) / length) for run in signs.findall(text))
        text = signs.sub(" ", text)
    return words + sum(any(sign.isalnum() for sign in piece) for piece in text.split())


def special_tokens(text: str) -> list[str]:
    """Special tokens of tokenizers in a text: they end a prompt or break the count of image tokens without a word."""
    return list(dict.fromkeys(_SPECIAL.findall(text)))


def is_blank(text: str) -> bool:
    """True if there is nothing to see: white space, control signs, zero-width signs."""
    return all(unicodedata.category(sign)[0] in "CZ" for sign in text)


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
        length = num_words(prompt)
        total, words, longest = total + 1, words + length, max(longest, length)
    return PromptSurvey(noisy, dict(counts.most_common()), examples, words / max(total, 1), longest)
