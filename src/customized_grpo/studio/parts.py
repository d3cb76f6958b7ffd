"""Parts that the tabs of the studio share: artist, scores, folders, what is asked for, and how errors are told."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import gradio as gr
from PIL import Image
from torch import Tensor

from customized_grpo.data.base import Dataset
from customized_grpo.data.images import ImageError, load_image
from customized_grpo.studio.artist import Artist, Shown
from customized_grpo.studio.scores import Scores
from customized_grpo.types import Example

MAX_REFERENCES: Final = 16
MAX_PROMPT: Final = 4000
"""Characters, more than any text encoder reads."""
ONE_DRAWS: Final[dict[str, Any]] = {"concurrency_limit": 1, "concurrency_id": "artist"}
"""Events that draw wait for each other, whoever asks; the page shows the place in the queue."""


@final
@dataclass(frozen=True, slots=True)
class Studio:
    """A studio's parts.

    Attributes:
        folder: of what is kept: ``pictures`` and ``votes``.
        uploads: folder of files that end with the server.
        dataset: examples of the run's data; None where it can't be read here, and ``no_data`` says why.
    """

    artist: Artist
    scores: Scores
    folder: Path
    uploads: Path
    dataset: Dataset | None
    no_data: str
    examples: Sequence[Example]

    def shown_folders(self) -> list[Path]:
        """Folders whose files the page may show."""
        return [self.uploads, self.folder, *(run / "samples" for run in self.artist.runs.values())]


@final
@dataclass(frozen=True, slots=True)
class Asked:
    """What a person asks for, checked."""

    prompt: str
    references: tuple[Image.Image, ...]
    subject: str


@final
@dataclass(frozen=True, slots=True)
class Drawn:
    """A picture of the result, with all that it stands on."""

    system: str
    image: Image.Image
    asked: Asked
    shown: Shown
    scores: dict[str, float]

    @property
    def caption(self) -> str:
        """System and seed."""
        return f"{self.system} · seed {self.shown.seed}"


def asked(studio: Studio, prompt: str, files: Sequence[str] | None, subject: str) -> Asked:
    """What is to be drawn.

    Raises:
        ValueError: a file is no picture, there are too many, or the policy can't take the prompt or the references.
    """
    if len(prompt) > MAX_PROMPT:
        raise ValueError(f"The prompt has {len(prompt):,} characters; allowed: {MAX_PROMPT:,}")
    references, bad = read_references(files)
    if bad:
        raise ValueError(f"{'; '.join(bad)}. Take it out of the references, or give another")
    for notice in studio.artist.check(prompt, references):
        gr.Warning(notice, duration=None)
    return Asked(prompt, tuple(references), subject.strip())


def read_references(files: Sequence[str] | None) -> tuple[list[Image.Image], list[str]]:
    """Uploaded files by the one image loader, and what is wrong with the others, in the words of that.

    Raises:
        ValueError: there are too many.
    """
    if len(files or ()) > MAX_REFERENCES:
        raise ValueError(f"{len(files or ())} references; allowed: {MAX_REFERENCES}")
    found, bad = [], []
    for file in files or ():
        try:
            found.append(load_image(file))
        except ImageError as error:
            bad.append(f"{Path(file).name}: {error.reason}")
    return found, bad


def picture(images: Tensor) -> Image.Image:
    """The first of (n, h, w, 3), uint8."""
    return Image.fromarray(images[0].numpy())


@contextmanager
def told() -> Iterator[None]:
    """Show an error of the user's as a message on the page, until it is closed."""
    try:
        yield
    except ValueError as error:
        raise gr.Error(str(error), duration=None, print_exception=False) from error
