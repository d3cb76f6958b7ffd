"""Prompts as a policy's tokenizers read them: special tokens, lost words, tokens beyond the limit. No weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from customized_grpo.recipe.limits import PromptTokenizer
from customized_grpo.recipe.sections import PolicySpec

_BATCH = 1024


@final
@dataclass(frozen=True, slots=True)
class Reading:
    """One tokenizer's reading of many prompts.

    Attributes:
        special: special tokens in each prompt's text.
        tokens: number of tokens of each prompt, its frame included.
        unknown: indices of prompts with a sign that the tokenizer doesn't know.
    """

    tokenizer: PromptTokenizer
    special: Sequence[Sequence[str]]
    tokens: Sequence[int]
    unknown: Sequence[int]


def read_prompts(spec: PolicySpec, prompts: Sequence[str], *, download: bool) -> tuple[list[Reading], list[str]]:
    """What each tokenizer of a policy makes of prompts, and folders of tokenizers that are not on this machine.

    Args:
        spec: the recipe's section ``policy``.
        prompts: in any order.
        download: fetch a missing tokenizer of a hub id, a few MB.
    """
    readings, absent = [], []
    for kind in spec.prompt_tokenizers():
        tokenizer = _load(spec, kind.folder, download=download)
        if tokenizer is None:
            absent.append(kind.folder)
        else:
            readings.append(_read(kind, tokenizer, prompts))
    return readings, absent


def _load(spec: PolicySpec, folder: str, *, download: bool) -> Any:
    from transformers import AutoTokenizer

    source = spec.source()
    revision = spec.model_dump(include={"revision"}).get("revision")
    local = Path(source).is_dir()
    if local and not (Path(source) / folder).is_dir():
        return None
    try:
        return AutoTokenizer.from_pretrained(
            source, subfolder=folder, revision=revision, local_files_only=local or not download
        )
    except (OSError, ValueError):  # not there; a model that can't be opened is explained where it is loaded
        return None


def _read(kind: PromptTokenizer, tokenizer: Any, prompts: Sequence[str]) -> Reading:
    added = {number: str(token) for number, token in tokenizer.added_tokens_decoder.items()}
    special: list[list[str]] = []
    counts: list[int] = []
    unknown: list[int] = []
    frame = kind.frame(tokenizer)
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
    return Reading(kind, special, counts, unknown)
