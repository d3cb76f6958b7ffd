"""DreamBench (Ruiz et al. 2023, github.com/google/dreambooth): prompt lists, and a data set read from its folder.

The repository has 30 subjects with 4 to 6 photos each and, in ``prompts_and_classes.txt``, their classes and two lists
of 25 prompts (objects, and live subjects). Two lists of 750 prompts are in use, with one reference per subject; both
follow UNO's evaluation (arXiv 2504.02160) and its order: every subject with each prompt of its list, and 30 pairs.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Final, Literal, final

from pydantic import Field, PositiveInt

from customized_grpo.data.base import DatasetConfig, Sources
from customized_grpo.data.folders import images_in
from customized_grpo.data.recent import load_recent
from customized_grpo.registry import did_you_mean
from customized_grpo.text import TextError, lines_of, read_text
from customized_grpo.types import Example

ORIGINAL: Final = "original"
PROMPTS_FILE: Final = "prompts_and_classes.txt"
_LIVE_CLASSES: Final = frozenset({"cat", "dog"})
_SCENES: Final = 10
"""Number of scene prompts that begin both lists; the live list goes on with outfits and attributes of one subject."""
_ATTRIBUTES: Final = 5
"""Number of attribute prompts that end both lists, such as "a red {}"."""

_REFERENCE: Final[Mapping[str, str]] = {
    subject: stem
    for stem, subjects in {
        "00": "dog5 poop_emoji red_cartoon robot_toy",
        "01": "can colorful_sneaker dog7 duck_toy shiny_sneaker",
        "02": "backpack backpack_dog berry_bowl candle cat2 dog dog2 dog6 fancy_boot vase",
        "03": "bear_plushie clock rc_car",
        "04": "cat dog8 grey_sloth_plushie monster_toy pink_sunglasses teapot wolf_plushie",
        "05": "dog3",
    }.items()
    for subject in subjects.split()
}
"""Reference photo of each subject, as in UNO's list."""

_PAIRS: Final = tuple(
    (first, second)
    for pairs in (
        "backpack_dog+bear_plushie berry_bowl+can candle+clock colorful_sneaker+duck_toy "
        "fancy_boot+grey_sloth_plushie monster_toy+pink_sunglasses poop_emoji+rc_car red_cartoon+robot_toy "
        "shiny_sneaker+teapot vase+wolf_plushie",
        "cat+dog cat+dog6 cat+dog8 cat2+cat cat2+dog3 cat2+dog7 dog+dog2 dog3+dog5 dog6+dog7 dog7+dog8",
        "cat+backpack cat2+bear_plushie dog+can dog2+clock dog3+duck_toy dog5+grey_sloth_plushie "
        "dog6+pink_sunglasses dog7+rc_car dog8+robot_toy dog6+teapot",
    )
    for first, second in (pair.split("+") for pair in pairs.split())
)
"""Pairs of the multi-subject list: ten of objects, ten of live subjects, ten mixed."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One prompt of a list.

    Attributes:
        id: unique in its list, and safe as a file's name.
        subjects: folders of the subjects, one or two.
        references: reference photo of each subject, relative to the folder with the subjects.
    """

    id: str
    prompt: str
    subjects: tuple[str, ...]
    classes: tuple[str, ...]
    references: tuple[str, ...]


@final
@dataclass(frozen=True, slots=True)
class Templates:
    """Content of ``prompts_and_classes.txt``: a class word per subject, and prompts with ``{}`` for that word."""

    classes: Mapping[str, str]
    objects: Sequence[str]
    live: Sequence[str]

    def of(self, subject: str) -> Sequence[str]:
        """The 25 prompt templates of a subject."""
        return self.live if self.is_live(subject) else self.objects

    def is_live(self, subject: str) -> bool:
        """True if the subject is an animal."""
        return self.classes[subject] in _LIVE_CLASSES


def read_templates(text: str) -> Templates:
    """Parse ``prompts_and_classes.txt``. The placeholder of the unique token is dropped, as evaluations do.

    Raises:
        ValueError: it lacks a class table and two lists of the same number of prompts.
    """
    table = re.search(r"subject_name,class\s*\n(.*?)\n\s*\n", text, flags=re.DOTALL)
    classes = dict(re.findall(r"^\s*(\w+)\s*,\s*(.+?)\s*$", table[1], flags=re.MULTILINE)) if table else {}
    lists = [
        [line.replace("{0} {1}", "{}") for line in re.findall(r"^\s*'(.*?)'\.format", body, re.MULTILINE)]
        for body in re.findall(r"prompt_list\s*=\s*\[(.*?)\n\]", text, flags=re.DOTALL)
    ]
    if not classes or len(lists) != 2 or len(lists[0]) != len(lists[1]) or len(lists[0]) < _SCENES + _ATTRIBUTES:
        raise ValueError(
            f"it holds {len(classes)} classes and {len(lists)} prompt lists, but DreamBench has 30 classes and "
            "two lists of 25 prompts; take the file as it is at github.com/google/dreambooth"
        )
    return Templates(classes, *lists)


def read_prompts(root: Path, subjects: Literal["single", "multi"]) -> tuple[Templates, list[Prompt]]:
    """The templates in the folder of the subjects, and the list of prompts of one or of two subjects.

    Raises:
        ValueError: the file of prompts is not DreamBench's.
    """
    file = root / PROMPTS_FILE
    try:
        templates = read_templates("\n".join(lines_of(read_text(file))))
        return templates, single_list(templates) if subjects == "single" else multi_list(templates)
    except TextError:
        raise  # names its place
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def single_list(templates: Templates) -> list[Prompt]:
    """750 prompts: 25 for each of the 30 subjects."""
    return [
        _prompt(f"{subject}-{number:02d}", template.format(templates.classes[subject]), (subject,), templates)
        for subject in templates.classes
        for number, template in enumerate(templates.of(subject))
    ]


def multi_list(templates: Templates) -> list[Prompt]:
    """750 prompts of two subjects: 25 for each of the 30 pairs."""
    return [
        _prompt(f"{first}-{second}-{number:02d}", text, (first, second), templates)
        for first, second in _PAIRS
        if {first, second} <= templates.classes.keys()
        for number, text in enumerate(_texts_of_two(templates, first, second))
    ]


def _texts_of_two(templates: Templates, first: str, second: str) -> list[str]:
    """Scenes show both; attributes go to both objects, or to the live subject alone with the other beside it."""
    one, other = (f"a {templates.classes[subject]}" for subject in (first, second))
    texts = []
    prompts = templates.of(first)
    for number, template in enumerate(prompts):
        adjective = re.fullmatch(r"a (.+) \{\}", template)
        if templates.is_live(first) and number >= _SCENES:
            texts.append(f"{template.format(templates.classes[first])}, next to it is {other}")
        elif adjective and number >= len(prompts) - _ATTRIBUTES:
            both = [template.format(templates.classes[subject]) for subject in (first, second)]
            texts.append(" and ".join(both))
        else:
            texts.append(template.removeprefix("a ").format(f"{one} and {other}"))
    return texts


def _prompt(name: str, text: str, subjects: tuple[str, ...], templates: Templates) -> Prompt:
    unknown = [subject for subject in subjects if subject not in _REFERENCE]
    if unknown:
        raise ValueError(f"subject {unknown[0]!r} is not one of DreamBench's 30, so it has no chosen reference")
    return Prompt(
        id=name,
        prompt=text,
        subjects=subjects,
        classes=tuple(templates.classes[subject] for subject in subjects),
        references=tuple(f"{subject}/{_REFERENCE[subject]}.jpg" for subject in subjects),
    )


@final
class DreamBench:
    """DreamBench's prompts and photos, read from a copy of its public repository (``data download dreambench``)."""

    @final
    class Config(DatasetConfig):
        """A data section with ``type: dreambench``."""

        path: str = Field(min_length=1, description="the repository's folder, or the 'dataset' folder in it")
        prompts: Literal["single", "multi"] = Field(
            default="single", description="750 prompts of one subject, or 750 of two"
        )
        subjects: tuple[str, ...] = Field(
            default=(),
            description="use only these, for an incomplete copy; a pair needs both of its subjects",
        )
        per_subject: PositiveInt | None = Field(
            default=None,
            description="number of prompts per subject (or pair), spread over its list; null: all 25",
        )

    def __init__(self, config: Config) -> None:
        self.root = find_root(Path(config.path).expanduser())
        templates, prompts = read_prompts(self.root, config.prompts)
        for subject in config.subjects:
            if subject not in templates.classes:
                hint = did_you_mean(subject, list(templates.classes))
                raise ValueError(f"subjects: given {subject!r};{hint} allowed: {', '.join(templates.classes)}")
        wanted = set(config.subjects or templates.classes)
        prompts = [prompt for prompt in prompts if wanted.issuperset(prompt.subjects)]
        self._prompts = _spread(prompts, config.per_subject)
        # Checked now: a missing photo should stop an evaluation at its start.
        for path in (self.root / name for prompt in self._prompts for name in prompt.references):
            if not path.is_file():
                raise ValueError(
                    f"{path}: no such file; fetch the whole of DreamBench, or name the subjects "
                    "that are there in 'subjects'"
                )
        self._photos = cache(lambda subject: [f"{subject}/{file.name}" for file in images_in(self.root / subject)])

    def __len__(self) -> int:
        return len(self._prompts)

    def sources(self, index: int) -> Sources:
        """Text and files of one example; no image is read. ``extra`` has the ``subject_id``."""
        prompt = self._prompts[index]
        return Sources(
            root=self.root,
            key=prompt.id,
            prompt=prompt.prompt,
            references=prompt.references,
            subject=" and ".join(prompt.classes),
            views=tuple(name for subject in prompt.subjects for name in self._photos(subject)),
            extra={"subject_id": "+".join(prompt.subjects)},
        )

    def __getitem__(self, index: int) -> Example:
        """Example with ``subject_id`` and ``views`` (paths of all photos of its subjects) in ``extra``."""
        if not 0 <= index < len(self._prompts):
            raise IndexError(f"example {index} of {len(self._prompts)}")
        made_of = self.sources(index)
        return Example(
            key=made_of.key,
            prompt=made_of.prompt,
            references=tuple(load_recent(self.root / path) for path in made_of.references),
            subject=made_of.subject,
            extra={**made_of.extra, "views": tuple(self.root / name for name in made_of.views)},
        )


def find_root(path: Path) -> Path:
    """The folder of the subjects: the repository's folder, or ``dataset`` in it.

    Raises:
        ValueError: it is neither.
    """
    for root in (path, path / "dataset"):
        if (root / PROMPTS_FILE).is_file():
            return root
    raise ValueError(
        f"{path}: no {PROMPTS_FILE} in it or in its 'dataset' folder; give the folder of github.com/google/dreambooth, "
        "which 'customized-grpo data download dreambench' fetches"
    )


def facts() -> dict[str, Any]:
    """The repository's files with size and sha256, and its licence."""
    file = resources.files("customized_grpo.data") / "facts/dreambench.json"
    known: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return known


def photos(path: str) -> str:
    """``original``, or the number of photos that differ from the repository's: scaled ones change image features.

    They are compared by file size, which changes if a photo is scaled or saved again.
    """
    root = find_root(Path(path).expanduser())
    sizes = {name: size for name, (size, _) in facts()["files"].items() if name.endswith(".jpg")}
    others = sum(not _has_size(root / name.removeprefix("dataset/"), size) for name, size in sizes.items())
    return f"other files ({others} of {len(sizes)})" if others else ORIGINAL


def _has_size(file: Path, size: int) -> bool:
    return file.is_file() and file.stat().st_size == size


def _spread(prompts: Sequence[Prompt], per_subject: int | None) -> list[Prompt]:
    """``per_subject`` prompts per subject or pair, spread evenly over its list."""
    groups: dict[tuple[str, ...], list[Prompt]] = {}
    for prompt in prompts:
        groups.setdefault(prompt.subjects, []).append(prompt)
    chosen = []
    for group in groups.values():
        count = min(per_subject or len(group), len(group))
        chosen += [group[i * len(group) // count] for i in range(count)]
    return chosen
