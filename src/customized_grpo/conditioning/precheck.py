"""Examples that a recipe can't use, found before any model is loaded: from texts, and from heads and ends of files.

What a policy takes of references it declares itself (``recipe.limits``), and ``encode`` asks the same; what rewards and
metrics need of an example is ``ExampleNeeds.needs``.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

from PIL.Image import Image
from pydantic import BaseModel

from customized_grpo.conditioning.miniature import strange_to
from customized_grpo.conditioning.notices import Sizes, of_lost_views, of_prompts, of_shapes, size_of
from customized_grpo.conditioning.outlines import Outline
from customized_grpo.data.images import ImageError, checked_size
from customized_grpo.data.prompts import text_problem
from customized_grpo.data.rows import same_shape
from customized_grpo.recipe.limits import ExampleNeeds, Need, Size
from customized_grpo.recipe.sections import PolicySpec
from customized_grpo.rewards.segmenter import class_words, shared_word, views_of_subjects

_THREADS = 8
_SHOWN = 5


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
        places: dict[str, list[str]] = {}
        for one in self.misfits:
            places.setdefault(one.reason, []).append(one.place)
        shown = "\n".join(
            f"{of[0]}: {reason}" + (f" (and {len(of) - 1:,} more lines)" if len(of) > 1 else "")
            for reason, of in list(places.items())[:_SHOWN]
        )
        more = sum(len(of) for of in list(places.values())[_SHOWN:])
        shown += f"\n... and {more:,} more" if more else ""
        file = Path(self.misfits[0].place.rpartition(":")[0])
        manifest = f"{file}" if file.suffix == ".jsonl" else "MANIFEST"
        usable = f"{file.with_suffix('.usable.jsonl')}" if file.suffix == ".jsonl" else "FILE"
        raise ValueError(
            f"{place}: {len(self.misfits):,} of {self.examples:,} examples can't be used by this recipe; "
            f"'customized-grpo data check {manifest} --config RECIPE --usable {usable}' lists them and writes the "
            "others:\n"
            f"{shown}"
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
        views: whether views are read, too; those that can't be are left out, and a notice names them.
        download: fetch missing tokenizers of a hub id.
    """
    known = list(outlines)
    named = [(name, one.needs()) for name, one in measures.items() if isinstance(one, ExampleNeeds)]
    needs: dict[Need, str] = {need: name for name, wanted in named for need in wanted}
    views = views or "view" in needs
    sizes = _sizes(known, views=views)
    notices = of_lost_views(known, sizes) if views else []

    def reason(one: Outline) -> str:
        return next(_reasons(one, policy, sizes, needs), "") or lacking(one)

    reasons = [_without_lost_views(one, reason, sizes) if views else reason(one) for one in known]
    tokenizers = [(f"the model's {kind.folder}", kind) for kind in policy.prompt_tokenizers()]
    for name, one in measures.items():
        if isinstance(one, ExampleNeeds) and (kind := one.prompt_tokenizer()) is not None:
            tokenizers.append((name, kind))
    notices += of_prompts(known, tokenizers, reasons, download=download)
    notices += of_shapes(known, policy, sizes, reasons)
    seen = [reference for one, reason in zip(known, reasons, strict=True) if not reason for reference in one.references]
    notices += strange_to(policy, measures, [size_of(reference, sizes) for reference in seen])
    misfits = [Misfit(one.place, reason) for one, reason in zip(known, reasons, strict=True) if reason]
    return Findings(len(known), misfits, notices)


def _sizes(outlines: Iterable[Outline], *, views: bool) -> Sizes:
    """Size of each image file that is read, or the problem."""
    files = dict.fromkeys(
        path
        for one in outlines
        for path in (*one.references, *one.masks, *one.targets, *(one.views if views else ()))
        if isinstance(path, Path)
    )
    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(files, pool.map(_size, files), strict=True))


def _size(path: Path) -> Size | ImageError:
    try:
        return checked_size(path)
    except ImageError as error:
        return error


def _without_lost_views(one: Outline, reason: Callable[[Outline], str], sizes: Sizes) -> str:
    """Reason why the example can't be used without the views that can't be read; without the last, they are it."""
    lost = [problem for view in one.views if isinstance(problem := sizes[view], ImageError)]
    sound = tuple(view for view in one.views if not isinstance(sizes[view], ImageError))
    found = reason(replace(one, views=sound))
    return str(lost[0]) if found and lost and not reason(one) else found


def _reasons(one: Outline, policy: PolicySpec, sizes: Sizes, needs: Mapping[Need, str]) -> Iterator[str]:
    """Reasons why an example can't be used, the plainest first."""
    for path in (*one.references, *one.masks, *one.targets):
        if isinstance(path, Path) and isinstance(problem := sizes[path], ImageError):
            yield str(problem)
    try:
        policy.check_count(len(one.references))
        for reference in one.references:
            _fitted(reference, policy, sizes, len(one.references))
    except ValueError as error:
        yield str(error)
    for mask, reference in zip(one.masks, one.references, strict=False):
        if mask is not None and not same_shape(size_of(mask, sizes), size_of(reference, sizes)):
            yield f"mask {mask}: is {size_of(mask, sizes)} but its image is {size_of(reference, sizes)}"
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
        return policy.fitted_size(size_of(reference, sizes), count)
    except ValueError as error:
        raise ValueError(f"{reference}: {error}" if isinstance(reference, Path) else str(error)) from error
