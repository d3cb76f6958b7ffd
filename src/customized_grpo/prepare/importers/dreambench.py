"""DreamBench (the data set of DreamBooth, arXiv 2208.12242) and DreamBench++ (arXiv 2406.16855).

The prompt lists of DreamBench are in ``data.dreambench``, whose data set reads the folder without an import.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, final

from pydantic import Field

from customized_grpo.data.dreambench import find_root, read_prompts
from customized_grpo.data.folders import images_in, masks_beside
from customized_grpo.paths import entries, files_under, is_system
from customized_grpo.prepare.archive import unpack
from customized_grpo.prepare.importers.base import Draft, Importer, Item, Rejected, Skipped, SourceError, folder_of
from customized_grpo.text import TextError, lines_of, read_text


@final
class DreamBench(Importer):
    """DreamBench: 750 prompts of one subject, or UNO's 750 of two, in the order of the public lists."""

    subjects: Literal["single", "multi"] = Field(default="single", description="one subject per prompt, or two")

    def root(self, source: str) -> Path:
        """Folder of the subjects."""
        try:
            return find_root(folder_of(source, "DreamBench's subjects and prompts_and_classes.txt"))
        except ValueError as error:
            raise SourceError(str(error)) from error

    def __call__(self, source: str, out: Path) -> Iterator[Item]:
        """Rows in the order of the public lists; ``views`` are all pictures of the subject."""
        root = self.root(source)
        try:
            templates, prompts = read_prompts(root, self.subjects)
        except ValueError as error:
            raise SourceError(str(error)) from error
        for path in entries(root):
            if path.is_dir() and path.name not in templates.classes:
                yield Skipped("folders that are no subject of DreamBench", path.name)
        for prompt in prompts:
            missing = [subject for subject in prompt.subjects if not (root / subject).is_dir()]
            if missing:
                yield Rejected(prompt.id, f"no such folder: {root / missing[0]}")
                continue
            kinds = ("live" if templates.is_live(subject) else "object" for subject in prompt.subjects)
            references = tuple(root / path for path in prompt.references)
            yield Draft(
                id=prompt.id,
                prompt=prompt.prompt,
                references=references,
                subject=" and ".join(prompt.classes),
                masks=masks_beside(references),
                views=tuple(photo for subject in prompt.subjects for photo in images_in(root / subject)),
                extra={
                    "subject_id": prompt.subjects[0] if len(prompt.subjects) == 1 else list(prompt.subjects),
                    "kind": "+".join(kinds),
                },
            )


@final
class DreamBenchPlus(Importer):
    """DreamBench++: 150 pictures with nine prompts each; a folder, or its data.zip."""

    def root(self, source: str) -> Path:
        """Folder that holds images/ and captions/."""
        folder = super().root(source)
        return next((at for at in (folder, folder / "data") if (at / "captions").is_dir()), folder)

    def __call__(self, source: str, out: Path) -> Iterator[Item]:
        """Rows by the path of the picture, then by the number of the prompt."""
        root = _unpacked(Path(source).expanduser(), out) or self.root(source)
        captions = sorted(path for path in files_under(root / "captions") if path.suffix == ".txt")
        if not captions:
            raise SourceError(f"{source}: there is no captions/**/*.txt; is this the folder of DreamBench++?")
        captioned = {caption.relative_to(root / "captions").with_suffix("") for caption in captions}
        for picture in files_under(root / "images"):
            if (inner := picture.relative_to(root / "images")).with_suffix("") not in captioned:
                yield Skipped("pictures without a list of prompts", inner.as_posix())
        for caption in captions:
            inner = caption.relative_to(root / "captions").with_suffix("")
            name = "-".join(inner.parts)
            try:
                subject, *prompts = [line.strip() for line in lines_of(read_text(caption))]
            except TextError as error:
                yield Rejected(name, str(error))
                continue
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
    """Folder in ``out`` to which a zip archive was unpacked; None if the source is not an archive."""
    if source.suffix.lower() != ".zip":
        return None

    def place(member: str) -> str | None:
        found = re.search(r"(?:^|/)((?:images|captions)/.+)", member)
        return found[1] if found and not any(map(is_system, member.split("/"))) else None

    unpack(source, out, place)
    return out
