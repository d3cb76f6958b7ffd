"""Examples that a recipe can't use, found before any model is loaded: from texts, and from the heads of image files.

What a policy takes of references it declares itself (``recipe.limits``), and ``encode`` asks the same; what rewards and
metrics need of an example is ``ExampleNeeds.needs``.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from PIL.Image import Image
from pydantic import BaseModel

from customized_grpo.data.base import Dataset, FromFiles, Sources
from customized_grpo.data.images import ImageError, image_size
from customized_grpo.data.prompts import misread, text_problem
from customized_grpo.data.rows import same_shape
from customized_grpo.policies.prompt_tokens import read_prompts
from customized_grpo.recipe.limits import ExampleNeeds, Need, PromptTokenizer, Size
from customized_grpo.recipe.sections import PolicySpec
from customized_grpo.rewards.segmenter import class_words, shared_word, views_of_subjects

_THREADS = 8
_STRETCHED = 1.5
"""Factor by which a reference's aspect ratio may change without being mentioned."""
_ENLARGED = 16
"""Factor by which a reference may be enlarged without being mentioned."""
_SHOWN = 5

Sizes = Mapping[Path, Size | ImageError]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """An example without pixels: files are named; pictures that a data set makes itself are there.

    Attributes:
        place: file and line, or the example's key.
    """

    place: str
    key: str
    prompt: str
    references: tuple[Path | Image, ...]
    subject: str
    masks: tuple[Path | Image | None, ...]
    views: tuple[Path, ...]
    extra: Mapping[str, Any]


@final
@dataclass(frozen=True, slots=True)
class Misfit:
    """An example that can't be used, and why."""

    place: str
    reason: str


@final
@dataclass(frozen=True, slots=True)
class Findings:
    """Result of a check.

    Attributes:
        examples: number of examples that were looked at.
        misfits: those that can't be used, in order.
        notices: what can be used and will not be used as it is written.
    """

    examples: int
    misfits: Sequence[Misfit]
    notices: Sequence[str]

    def refuse(self, place: str) -> None:
        """Raise a ``ValueError`` about ``place`` (``data``) that names the first misfits, if there are any."""
        if not self.misfits:
            return
        shown = "\n".join(f"{one.place}: {one.reason}" for one in self.misfits[:_SHOWN])
        more = f"\n... and {len(self.misfits) - _SHOWN:,} more" if len(self.misfits) > _SHOWN else ""
        raise ValueError(
            f"{place}: {len(self.misfits):,} of {self.examples:,} examples can't be used by this recipe; "
            "'customized-grpo data check MANIFEST --config RECIPE --usable FILE' lists them and writes the others:\n"
            f"{shown}{more}"
        )


def outline(one: Sources) -> Outline:
    """An example of files."""
    return Outline(
        place=one.place or one.key,
        key=one.key,
        prompt=one.prompt,
        references=tuple(one.root / name for name in one.references),
        subject=one.subject,
        masks=tuple(None if name is None else one.root / name for name in one.masks),
        views=tuple(one.root / name for name in one.views),
        extra=one.extra,
    )


def outlines_of(dataset: Dataset, count: int | None = None) -> Iterator[Outline]:
    """Outlines of the first ``count`` examples (None: all), or, of a data set without files, of the first one."""
    if isinstance(dataset, FromFiles):
        known = (dataset.sources(index) for index in range(len(dataset) if count is None else count))
        yield from (outline(one) for one in known if one is not None)
        return
    first = dataset[0]
    yield Outline(
        place=first.key,
        key=first.key,
        prompt=first.prompt,
        references=first.references,
        subject=first.subject,
        masks=first.masks,
        views=tuple(Path(view) for view in first.extra.get("views", ())),
        extra=first.extra,
    )


def check_examples(
    outlines: Iterable[Outline],
    policy: PolicySpec,
    measures: Mapping[str, BaseModel],
    *,
    lacking: Callable[[Outline], str] = lambda outline: "",
    views: bool = False,
    download: bool = False,
) -> Findings:
    """Look at every example: its references, its masks, its texts, and what is measured by.

    Args:
        outlines: of the examples that will be used.
        policy: the recipe's section ``policy``.
        measures: sections of rewards or metrics by name.
        lacking: says what else an example lacks, as a protocol does.
        views: whether views are read, too.
        download: fetch missing tokenizers of a hub id.
    """
    known = list(outlines)
    sizes = _sizes(known, views=views)
    named = [(name, one.needs()) for name, one in measures.items() if isinstance(one, ExampleNeeds)]
    needs: dict[Need, str] = {need: name for name, wanted in named for need in wanted}
    reasons = [next(_reasons(one, policy, sizes, needs, views), "") or lacking(one) for one in known]
    tokenizers = [(f"the model's {kind.folder}", kind) for kind in policy.prompt_tokenizers()]
    for name, one in measures.items():
        if isinstance(one, ExampleNeeds) and (kind := one.prompt_tokenizer()) is not None:
            tokenizers.append((name, kind))
    notices = _prompt_notices(known, tokenizers, reasons, download=download)
    notices += _reshaped(known, policy, sizes, reasons)
    misfits = [Misfit(one.place, reason) for one, reason in zip(known, reasons, strict=True) if reason]
    return Findings(len(known), misfits, notices)


def _sizes(outlines: Iterable[Outline], *, views: bool) -> Sizes:
    """Size of each image file by its head, or the problem."""
    files = dict.fromkeys(
        path
        for one in outlines
        for path in (*one.references, *one.masks, *(one.views if views else ()))
        if isinstance(path, Path)
    )
    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(files, pool.map(_size, files), strict=True))


def _size(path: Path) -> Size | ImageError:
    try:
        return image_size(path)
    except ImageError as error:
        return error


def _reasons(one: Outline, policy: PolicySpec, sizes: Sizes, needs: Mapping[Need, str], views: bool) -> Iterator[str]:
    """Reasons why an example can't be used, the plainest first."""
    for path in (*one.references, *one.masks, *(one.views if views else ())):
        if isinstance(path, Path) and isinstance(problem := sizes[path], ImageError):
            yield str(problem)
    try:
        policy.check_count(len(one.references))
        for reference in one.references:
            _fitted(reference, policy, sizes, len(one.references))
    except ValueError as error:
        yield str(error)
    for mask, reference in zip(one.masks, one.references, strict=False):
        if mask is not None and not same_shape(_of(mask, sizes), _of(reference, sizes)):
            yield f"mask {mask}: is {_of(mask, sizes)} but its image is {_of(reference, sizes)}"
    if misread_text := text_problem(one.prompt, one.subject):
        yield misread_text
    masks = sum(mask is not None for mask in one.masks)
    words = class_words(one.subject, one.extra, len(one.references))
    if "reference" in needs and not one.references:
        yield f"has no reference, and {needs['reference']} compares with one"
    if "mask" in needs and masks < len(one.references):
        yield (
            f"has {masks} masks for {len(one.references)} references, and {needs['mask']} needs each; make them by "
            "'customized-grpo data masks'"
        )
    if "subject" in needs and not all(words):
        yield f"has no 'subject', and {needs['subject']} looks for it by its class word"
    shared = shared_word(one.subject, one.extra, len(one.references))
    if "distinct" in needs and shared:
        yield (
            f"has two subjects of the word {shared!r}, and {needs['distinct']} finds one of each word; "
            "take type: subjects there, in a new run"
        )
    if "view" in needs and not one.views:
        yield f"has no 'views', and {needs['view']} compares with other photos of it; give some in the manifest"
    if "view" in needs and len(views_of_subjects(one.subject, one.extra, len(one.references))) > 1:
        yield f"has several subjects, and 'views' don't say whose they are; {needs['view']} measures one subject"


def _fitted(reference: Path | Image, policy: PolicySpec, sizes: Sizes, count: int) -> Size:
    try:
        return policy.fitted_size(_of(reference, sizes), count)
    except ValueError as error:
        raise ValueError(f"{reference}: {error}" if isinstance(reference, Path) else str(error)) from error


def _of(image: Path | Image, sizes: Sizes) -> Size:
    size = sizes[image] if isinstance(image, Path) else image.size
    assert not isinstance(size, ImageError)  # a broken file is reported before its size is asked for
    return size


def _prompt_notices(
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


def _reshaped(outlines: Sequence[Outline], policy: PolicySpec, sizes: Sizes, reasons: Sequence[str]) -> list[str]:
    """References that are stretched, or enlarged beyond what their pixels show."""
    stretched, enlarged = [], []
    for one, reason in zip(outlines, reasons, strict=True):
        for reference in () if reason else one.references:
            given, read = _of(reference, sizes), policy.fitted_size(_of(reference, sizes), len(one.references))
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
