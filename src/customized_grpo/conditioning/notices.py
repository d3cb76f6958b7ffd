"""Notices about examples: what can be used and will not be used as it is written."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from PIL.Image import Image

from customized_grpo.conditioning.outlines import Outline
from customized_grpo.data.images import ImageError
from customized_grpo.data.prompts import misread
from customized_grpo.policies.prompt_tokens import read_prompts
from customized_grpo.recipe.limits import PromptTokenizer, Size
from customized_grpo.recipe.sections import PolicySpec

_STRETCHED: Final = 1.5
"""Factor by which a reference's aspect ratio may change without being mentioned."""
_ENLARGED: Final = 16
"""Factor by which a reference may be enlarged without being mentioned."""
_SHOWN: Final = 5

Sizes = Mapping[Path, Size | ImageError]


def size_of(image: Path | Image, sizes: Sizes) -> Size:
    """Width and height of a reference or a mask that can be read."""
    size = sizes[image] if isinstance(image, Path) else image.size
    assert not isinstance(size, ImageError)  # a broken file is reported before its size is asked for
    return size


def of_lost_views(outlines: Sequence[Outline], sizes: Sizes) -> list[str]:
    """Pictures that can't be read and are only among ``views``: the examples are used without them."""
    lost: dict[Path, int] = {}
    for one in outlines:
        for view in one.views:
            if isinstance(sizes[view], ImageError):
                lost[view] = lost.get(view, 0) + 1
    shown = [f"{sizes[view]} (of {count:,} examples)" for view, count in list(lost.items())[:_SHOWN]]
    more = f"; and {len(lost) - _SHOWN:,} more" if len(lost) > _SHOWN else ""
    return [f"left out of the other photos of a subject: {'; '.join(shown)}{more}"] if lost else []


def of_prompts(
    outlines: Sequence[Outline],
    tokenizers: Sequence[tuple[str, PromptTokenizer]],
    reasons: list[str],
    *,
    download: bool,
) -> list[str]:
    """Prompts that are cut off or hold unknown signs; an exact reading of special tokens goes into ``reasons``."""
    # Prompts that a data set makes itself are not read: it has no files, either.
    if not any(isinstance(reference, Path) for one in outlines for reference in one.references):
        return []
    notices, absent = [], []
    prompts, total = [one.prompt for one in outlines], len(outlines)
    for name, kind in tokenizers:
        reading = read_prompts(kind, prompts, download=download)
        if reading is None:
            absent.append(name)
            continue
        for at, tokens in enumerate(reading.special):
            if tokens and not reasons[at]:
                reasons[at] = misread(tokens)
        most = reading.most
        over = 0 if most is None else sum(count > most for count in reading.tokens)
        if over:
            longest = max(range(total), key=lambda at, counts=reading.tokens: counts[at])  # type: ignore[misc]
            notices.append(
                f"{over:,} of {total:,} prompts are longer than the {most} tokens that {name} reads: their end is cut "
                f"off there; the longest, of {outlines[longest].place}, has {reading.tokens[longest]}"
            )
        if reading.unknown:
            notices.append(
                f"{len(reading.unknown):,} of {total:,} prompts hold signs that {name} doesn't know, such as another "
                f"script: they are lost there; the first is {outlines[reading.unknown[0]].place}"
            )
    if absent and not download:  # a run says by itself why a model can't be opened
        notices.append(f"prompts are not counted in tokens of {', '.join(absent)}, not on this machine yet")
    return notices


def of_shapes(outlines: Sequence[Outline], policy: PolicySpec, sizes: Sizes, reasons: Sequence[str]) -> list[str]:
    """References that are stretched, or enlarged beyond what their pixels show."""
    stretched, enlarged = [], []
    for one, reason in zip(outlines, reasons, strict=True):
        for reference in () if reason else one.references:
            given, read = size_of(reference, sizes), policy.fitted_size(size_of(reference, sizes), len(one.references))
            across, down = read[0] / given[0], read[1] / given[1]
            said = f"{one.place} ({given[0]} x {given[1]} becomes {read[0]} x {read[1]})"
            if max(across / down, down / across) > _STRETCHED:
                stretched.append(said)
            elif min(across, down) > _ENLARGED:
                enlarged.append(said)
    words = {
        "are read in another shape, so that their subjects change": stretched,
        f"are enlarged over {_ENLARGED} times, so that they show little": enlarged,
    }
    return [f"{len(found):,} references {what}; the first: {found[0]}" for what, found in words.items() if found]
