"""Prompts as tokenizers read them: special tokens, unknown signs, tokens beyond the limit. No weights are loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from customized_grpo.recipe.limits import PromptTokenizer

_BATCH = 1024


@final
@dataclass(frozen=True, slots=True)
class Reading:
    """One tokenizer's reading of many prompts.

    Attributes:
        special: special tokens in each prompt's text.
        tokens: number of tokens of each prompt, its frame included.
        most: number of tokens at which a prompt is cut off; None: it never is.
        unknown: indices of prompts with a sign that the tokenizer doesn't know.
    """

    special: Sequence[Sequence[str]]
    tokens: Sequence[int]
    most: int | None
    unknown: Sequence[int]


def read_prompts(kind: PromptTokenizer, prompts: Sequence[str], *, download: bool) -> Reading | None:
    """What a tokenizer makes of prompts; None if it is not on this machine.

    Args:
        kind: where it is.
        prompts: in any order.
        download: fetch a missing tokenizer of a hub id, a few MB.
    """
    opened = _open(kind, download=download)
    if opened is None:
        return None
    tokenizer, frame = opened
    added = {number: str(token) for number, token in tokenizer.added_tokens_decoder.items()}
    special: list[list[str]] = []
    counts: list[int] = []
    unknown: list[int] = []
    for at in range(0, len(prompts), _BATCH):
        part = list(prompts[at : at + _BATCH])
        ids = tokenizer(part, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        for prompt, numbers in zip(part, ids, strict=True):
            # Also the sign for what is unknown is a special token; it is one only where it is written out.
            found = [added[number] for number in dict.fromkeys(numbers) if number in added]
            special.append([token for token in found if token != tokenizer.unk_token or token in prompt])
            if tokenizer.unk_token in found and tokenizer.unk_token not in prompt:
                unknown.append(len(counts))
            counts.append(len(numbers) + frame)
    most = None if kind.most is None else min(kind.most, tokenizer.model_max_length)
    return Reading(special, counts, most, unknown)


def _open(kind: PromptTokenizer, *, download: bool) -> tuple[Any, int] | None:
    """The tokenizer, and the number of tokens of its frame."""
    from transformers import AutoTokenizer

    try:
        source = kind.source()
        local = Path(source).is_dir()
        if local and not (Path(source) / kind.folder).is_dir():
            return None
        tokenizer: Any = AutoTokenizer.from_pretrained(
            source, subfolder=kind.folder, revision=kind.revision, local_files_only=local or not download
        )
        return tokenizer, kind.frame(tokenizer)
    # Not there, or of another model: what can't be opened is explained where the model is loaded.
    except (OSError, ValueError, ImportError):
        return None
