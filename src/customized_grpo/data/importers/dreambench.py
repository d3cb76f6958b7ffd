"""DreamBench (the data set of DreamBooth, arXiv 2208.12242) and DreamBench++ (arXiv 2406.16855).

DreamBench is ``<subject>/NN.jpg`` and ``prompts_and_classes.txt``, which holds the classes and two lists of 25
templates: for objects, and for live subjects (cats, dogs). Its 750 prompts follow from that file alone: the templates
without the unique token. What doesn't follow from it - which picture is the reference, which subjects form pairs - is
the choice of UNO (arXiv 2504.02160), which Customized-GRPO uses too; those facts are the tables below.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, final

from pydantic import Field

from customized_grpo.data.archive import names, unpack
from customized_grpo.data.importers.base import (
    Draft,
    Importer,
    Item,
    Rejected,
    SourceError,
    folder_of,
    images_in,
)

_LIVE: Final = ("cat", "dog")

REFERENCE: Final[Mapping[str, int]] = {
    subject: index
    for index, subjects in enumerate(
        (
            "dog5 poop_emoji red_cartoon robot_toy",
            "can colorful_sneaker dog7 duck_toy shiny_sneaker",
            "backpack backpack_dog berry_bowl candle cat2 dog dog2 dog6 fancy_boot vase",
            "bear_plushie clock rc_car",
            "cat dog8 grey_sloth_plushie monster_toy pink_sunglasses teapot wolf_plushie",
            "dog3",
        )
    )
    for subject in subjects.split()
}
"""Number of the picture that is the reference of each subject."""

_PAIRS: Final = """
backpack_dog+bear_plushie berry_bowl+can candle+clock colorful_sneaker+duck_toy fancy_boot+grey_sloth_plushie
monster_toy+pink_sunglasses poop_emoji+rc_car red_cartoon+robot_toy shiny_sneaker+teapot vase+wolf_plushie
cat+dog cat+dog6 cat+dog8 cat2+cat cat2+dog3 cat2+dog7 dog+dog2 dog3+dog5 dog6+dog7 dog7+dog8
cat+backpack cat2+bear_plushie dog+can dog2+clock dog3+duck_toy dog5+grey_sloth_plushie dog6+pink_sunglasses
dog7+rc_car dog8+robot_toy dog6+teapot
"""
PAIRS: Final = tuple(tuple(pair.split("+")) for pair in _PAIRS.split())
"""The subjects of each pair, in the order of the list of multi-subject prompts."""


@dataclass(frozen=True, slots=True)
class _Lists:
    classes: Mapping[str, str]
    objects: list[str]
    live: list[str]

    def templates(self, subject: str) -> list[str]:
        return self.live if self.is_live(subject) else self.objects

    def is_live(self, subject: str) -> bool:
        return self.classes[subject] in _LIVE


@final
class DreamBench(Importer):
    """DreamBench: 750 prompts of one subject, or UNO's 750 of two, in the order of the public lists."""

    subjects: Literal["single", "multi"] = Field(default="single", description="one subject a prompt, or two")

    def root(self, source: str) -> Path:
        """The folder of the subjects."""
        folder = folder_of(source, "DreamBench's subjects and prompts_and_classes.txt")
        found = next(
            (at for at in (folder, folder / "dataset") if (at / "prompts_and_classes.txt").is_file()), None
        )
        if found is None:
            raise SourceError(
                f"{source}: there is no prompts_and_classes.txt in it or in its folder 'dataset'"
            )
        return found

    def __call__(self, source: str, out: Path) -> Iterator[Item]:
        """Rows in the order of the public lists; ``views`` are all pictures of the subject."""
        root = self.root(source)
        lists = _read_lists(root / "prompts_and_classes.txt")
        if unknown := lists.classes.keys() ^ REFERENCE.keys():
            raise SourceError(f"{source}: its subjects are not DreamBench's: {', '.join(sorted(unknown))}")
        groups = PAIRS if self.subjects == "multi" else tuple((subject,) for subject in lists.classes)
        for group in groups:
            missing = [subject for subject in group if not (root / subject).is_dir()]
            pictures = {subject: images_in(root / subject) for subject in group if subject not in missing}
            for number, prompt in enumerate(_prompts(lists, group)):
                name = f"{'-'.join(group)}-{number:02d}"
                if missing:
                    yield Rejected(name, f"no such folder: {root / missing[0]}")
                    continue
                yield Draft(
                    id=name,
                    prompt=prompt,
                    references=tuple(root / subject / f"{REFERENCE[subject]:02d}.jpg" for subject in group),
                    subject=" and ".join(lists.classes[subject] for subject in group),
                    views=tuple(picture for subject in group for picture in pictures[subject]),
                    extra={
                        "subject_id": group[0] if len(group) == 1 else list(group),
                        "kind": "+".join("live" if lists.is_live(subject) else "object" for subject in group),
                    },
                )


def _prompts(lists: _Lists, group: tuple[str, ...]) -> list[str]:
    words = [lists.classes[subject] for subject in group]
    templates = lists.templates(group[0])
    if len(group) == 1:
        return [template.format(words[0]) for template in templates]
    first, second = words
    if not lists.is_live(group[0]):
        # "a red {}" says the attribute of both, "a {} in the snow" has both in one scene
        return [
            template.format(f"{first} and a {second}")
            if template.startswith("a {}")
            else f"{template.format(first)} and {template.format(second)}"
            for template in templates
        ]
    # what objects are asked for too is a scene for both; an outfit or a colour is the first one's
    return [
        template.format(f"{first} and a {second}")
        if template.startswith("a {}") and template in lists.objects
        else f"{template.format(first)}, next to it is a {second}"
        for template in templates
    ]


def _read_lists(path: Path) -> _Lists:
    text = path.read_text(encoding="utf-8")
    classes = dict(re.findall(r"^([a-z0-9_]+),([a-z ]+)$", text, re.MULTILINE))
    classes.pop("subject_name", None)
    # 'a {0} {1} in the jungle'.format(unique_token, class_token) -> a {} in the jungle
    lists = [
        [
            ast.literal_eval(literal).replace("{0} {1}", "{}")
            for literal in re.findall(r"""^('.*'|".*")\.format\(""", part, re.MULTILINE)
        ]
        for part in text.split("prompt_list")[1:]
    ]
    if not classes or [len(templates) for templates in lists] != [25, 25]:
        raise SourceError(
            f"{path}: found {len(classes)} classes and {[len(part) for part in lists]} prompts; "
            "DreamBench's file has 30 and two lists of 25"
        )
    return _Lists(classes, *lists)


@final
class DreamBenchPlus(Importer):
    """DreamBench++: 150 pictures with nine prompts each; a folder, or its data.zip."""

    def root(self, source: str) -> Path:
        """The folder that holds images/ and captions/."""
        folder = super().root(source)
        return next((at for at in (folder, folder / "data") if (at / "captions").is_dir()), folder)

    def __call__(self, source: str, out: Path) -> Iterator[Item]:
        """Rows by the path of the picture, then by the number of the prompt."""
        root = _unpacked(Path(source).expanduser(), out) or self.root(source)
        captions = sorted((root / "captions").rglob("*.txt"))
        if not captions:
            raise SourceError(f"{source}: there is no captions/**/*.txt; is this the folder of DreamBench++?")
        for caption in captions:
            inner = caption.relative_to(root / "captions").with_suffix("")
            name = "-".join(inner.parts)
            subject, *prompts = [line.strip() for line in caption.read_text(encoding="utf-8").splitlines()]
            prompts = [prompt for prompt in prompts if prompt]
            if len(prompts) != 9:
                yield Rejected(name, f"{caption}: {len(prompts)} prompts after the subject; there must be 9")
                continue
            for number, prompt in enumerate(prompts):
                yield Draft(
                    id=f"{name}-{number}",
                    prompt=prompt,
                    references=((root / "images" / inner).with_suffix(".jpg"),),
                    subject=subject,
                    extra={
                        "subject_id": name,
                        "category": inner.parent.name,
                        "style": ("photorealistic", "stylized", "imaginative")[(number > 3) + (number > 6)],
                    },
                )


def _unpacked(source: Path, out: Path) -> Path | None:
    """The folder in ``out`` that a zip archive is unpacked to; None where the source is none."""
    if source.suffix.lower() != ".zip":
        return None
    inside = next((name for name in names(source) if "captions/" in name), "captions/")
    prefix = inside[: inside.index("captions/")]

    def place(member: str) -> str | None:
        tail = member.removeprefix(prefix)
        wanted = member.startswith(prefix) and tail.startswith(("images/", "captions/"))
        return tail if wanted else None

    unpack(source, out, place)
    return out
