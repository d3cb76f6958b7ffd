"""Evaluation protocols: references of identity metrics, unit of averaging, and comparable published numbers.

A name is a promise: numbers of one protocol are comparable, numbers of two are not. ``evaluate.protocol`` may also be a
name of your own, for other data; then identity is measured against the input references and the mean is over examples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, final

from PIL.Image import Image

from customized_grpo.data.dreambench import ORIGINAL
from customized_grpo.data.images import ImageError
from customized_grpo.data.recent import load_recent
from customized_grpo.data.rows import individuals
from customized_grpo.evaluation.published import CUSTOMIZED_GRPO_FIGURE, STANDARD, UNO_TABLE_1, Published
from customized_grpo.registry import did_you_mean
from customized_grpo.types import Example

Unit = Literal["example", "subject"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """Definition of a named protocol.

    Attributes:
        references: images that identity is measured against: the policy's input, or every photo of the subject.
        unit: unit of averaging and resampling: examples, or subjects (each the mean of its examples).
        num_subjects: number of subjects per example; None: any number.
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
        """The example as metrics see it, with the references that identity is measured against.

        Raises:
            ValueError: the data set doesn't name the subject or its photos.
        """
        if lacking := self.lacking(example.key, len(example.references), example.extra):
            raise ValueError(lacking)
        if self.references == "input":
            return example
        if not (photos := subject_photos(example)):
            raise ValueError(
                f"{example.key}: none of its 'views' can be read, and evaluate.protocol {self.name!r} compares with "
                "them; 'customized-grpo data check MANIFEST' says why"
            )
        # The input first: a metric that uses one reference uses that one.
        photos.sort(key=lambda photo: photo not in example.references)
        return replace(example, references=tuple(photos), masks=())

    def lacking(self, key: str, num_references: int, extra: Mapping[str, Any]) -> str:
        """What an example lacks, told from its texts; empty if it has everything."""
        if self.unit == "subject" and not individuals(extra):
            return (
                f"evaluate.protocol {self.name!r} averages over subjects, but example {key!r} has no "
                "'subject_id' in its extra; use data of type dreambench, or write it into the manifest"
            )
        if self.num_subjects not in (None, num_references):
            return (
                f"evaluate.protocol {self.name!r} is for prompts of {self.num_subjects} subject(s), but example "
                f"{key!r} has {num_references}; allowed: {', '.join(PROTOCOLS)}"
            )
        if self.references == "subject" and not extra.get("views"):
            return (
                f"evaluate.protocol {self.name!r} compares with all photos of a subject, but example "
                f"{key!r} has no 'views' (paths) in its extra; use data of type dreambench, or "
                "write them into the manifest"
            )
        return ""

    def departures(self, settings: Mapping[str, Any]) -> list[str]:
        """Deviations from the settings of published numbers, and metrics whose standard name is wrong."""
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
    """All photos of an example's subjects that can be read, from the paths in ``extra["views"]``."""
    return [photo for path in example.extra.get("views", ()) if (photo := readable(Path(path))) is not None]


def readable(path: Path) -> Image | None:
    """A photo; None if it can't be read, which ``precheck`` says: it costs itself, not its subject."""
    try:
        return load_recent(path)
    except ImageError:
        return None


def group_of(example: Example) -> str:
    """Subject under which an example is averaged."""
    return "+".join(individuals(example.extra)) or example.subject or example.key


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
"""Settings of UNO's and Customized-GRPO's released evaluation; its shift is exp(mu), with mu of 16 tokens."""

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
    """The protocol of that name, or a plain one for a user's own name.

    Raises:
        ValueError: the name resembles a known one but is not it.
    """
    if name in PROTOCOLS:
        return PROTOCOLS[name]
    if name.startswith("dreambench"):
        hint = did_you_mean(name, list(PROTOCOLS))
        raise ValueError(f"evaluate.protocol: given {name!r};{hint} allowed: {', '.join(PROTOCOLS)}")
    return Protocol(name=name)
