"""Named protocols: what identity metrics compare with, what is averaged, and which published numbers may stand beside.

A name is a promise: numbers of one protocol are comparable, numbers of two are not. ``evaluate.protocol`` may also be a
name of one's own, for data that no protocol here is about; then identity is measured against the input references and
the mean is over examples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Final, Literal, final

from PIL.Image import Image

from customized_grpo.data.images import load_image
from customized_grpo.data.originals import ORIGINAL
from customized_grpo.evaluation.published import CUSTOMIZED_GRPO_FIGURE, STANDARD, UNO_TABLE_1, Published
from customized_grpo.registry import did_you_mean
from customized_grpo.types import Example

Unit = Literal["example", "subject"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """What a name stands for.

    Attributes:
        references: what identity is measured against: the policy's input, or every photo of the subject.
        unit: what is averaged and resampled: examples, or subjects (each the mean of its examples).
        num_subjects: how many subjects an example has; None: any number.
        canonical: settings that published numbers were made with; see ``departures``.
        published: numbers of other papers under this protocol.
    """

    name: str
    references: Literal["input", "subject"] = "input"
    unit: Unit = "example"
    num_subjects: int | None = None
    canonical: Mapping[str, Any] = field(default_factory=dict)
    published: Sequence[Published] = ()

    def judged(self, example: Example) -> Example:
        """The example as metrics see it: its references are those that identity is measured against.

        Raises:
            ValueError: the data set doesn't say which photos or which subject these are.
        """
        if self.unit == "subject" and not example.extra.get("subject_id"):
            raise ValueError(
                f"evaluate.protocol {self.name!r} averages over subjects, but example {example.key!r} has no "
                "'subject_id' in its extra; use data of type dreambench, or write it into the manifest"
            )
        if self.num_subjects not in (None, len(example.references)):
            raise ValueError(
                f"evaluate.protocol {self.name!r} is for prompts of {self.num_subjects} subject(s), but example "
                f"{example.key!r} has {len(example.references)}; allowed: {', '.join(PROTOCOLS)}"
            )
        if self.references == "input":
            return example
        photos = subject_photos(example)
        if not photos:
            raise ValueError(
                f"evaluate.protocol {self.name!r} compares with all photos of a subject, but example "
                f"{example.key!r} has no 'views' (paths) in its extra; use data of type dreambench, or "
                "write them into the manifest"
            )
        # The input first: a judge that looks at one reference looks at that one.
        photos.sort(key=lambda photo: photo not in example.references)
        return replace(example, references=tuple(photos), masks=())

    def departures(self, settings: Mapping[str, Any]) -> list[str]:
        """What differs from how published numbers were made, and which metrics bear a standard name in vain."""
        if not self.canonical:
            return []
        differ = [
            f"{name} is {settings.get(name)}, not {value}"
            for name, value in self.canonical.items()
            if settings.get(name) != value
        ]
        metrics: Mapping[str, Any] = settings.get("metrics", {})
        for name, (kind, model) in STANDARD.items():
            if metrics.get(name, model) != model:
                differ.append(f"{name} is measured by {metrics[name]}, not {model}")
            options = {"type": kind} | settings.get("metric_options", {}).get(name, {})
            if options.pop("type") != kind:
                differ.append(f"{name} is not of type {kind}")
            differ += [f"{name} has {option} {value}" for option, value in options.items()]
        return differ


def subject_photos(example: Example) -> list[Image]:
    """All photos of an example's subjects, as its data set names them in ``extra["views"]``."""
    return [_photo(str(path)) for path in example.extra.get("views", ())]


@lru_cache(maxsize=16)
def _photo(path: str) -> Image:
    """Neighbouring examples share their subject, and a photo of four megapixels takes a while to decode."""
    return load_image(path)


def group_of(example: Example) -> str:
    """The subject that an example counts for in an average over subjects."""
    subject = example.extra.get("subject_id") or example.subject or example.key
    return str(subject) if not isinstance(subject, list) else "+".join(map(str, subject))


_DATA: Final = {"data": "dreambench", "photos": ORIGINAL}
_CANONICAL: Final = {
    "examples": 750,
    "images_per_prompt": 1,
    "height": 512,
    "width": 512,
    "steps": 25,
    "guidance": 4.0,
    "shift": 1.583,
    **_DATA,
}
"""Of UNO's and Customized-GRPO's released evaluation, whose schedule has the shift exp(mu), with mu of 16 tokens."""

PROTOCOLS: Final = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="dreambench/uno-all-references",
            references="subject",
            unit="subject",
            num_subjects=1,
            canonical=_CANONICAL,
            published=(*UNO_TABLE_1, *CUSTOMIZED_GRPO_FIGURE),
        ),
        Protocol(
            name="dreambench/input-reference",
            unit="subject",
            num_subjects=1,
            canonical=_CANONICAL,
            published=CUSTOMIZED_GRPO_FIGURE,
        ),
        Protocol(
            name="dreambench-multi/uno-all-references",
            references="subject",
            unit="subject",
            num_subjects=2,
            canonical=_DATA,
        ),
        Protocol(name="dreambench-multi/input-reference", unit="subject", num_subjects=2, canonical=_DATA),
        Protocol(name="dreambench++", num_subjects=1),
    )
}


def find_protocol(name: str) -> Protocol:
    """The protocol of that name, or a plain one for a name of the user's own.

    Raises:
        ValueError: the name begins like one of those here but is none.
    """
    if name in PROTOCOLS:
        return PROTOCOLS[name]
    if name.startswith("dreambench"):
        hint = did_you_mean(name, list(PROTOCOLS))
        raise ValueError(f"evaluate.protocol: given {name!r};{hint} allowed: {', '.join(PROTOCOLS)}")
    return Protocol(name=name)
