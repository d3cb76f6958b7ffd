"""A run's folder and its log: JSONL and images on disk are the truth, trackers and the console mirror them."""

import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, final

import numpy as np
from accelerate import Accelerator
from jaxtyping import UInt8
from PIL import Image, ImageOps
from rich.console import Console
from torch import Tensor

from customized_grpo.atomic import replacing
from customized_grpo.identity.hashes import HASHES
from customized_grpo.identity.runs import FILE as NAME
from customized_grpo.recipe.config import Recipe
from customized_grpo.training.progress import Shown
from customized_grpo.types import Example

METRICS = "metrics.jsonl"
_BEFORE_A_STEP = frozenset({"config.yaml", METRICS, HASHES, NAME, "evaluation", "checkpoints"})
"""Names that a run leaves in its folder before its first step."""


def is_every(every: int, done: int) -> bool:
    """True if an event of every ``every`` steps, 0 for never, is due after ``done``."""
    return every > 0 and done % every == 0


def prepare_folder(folder: Path, *, resuming: bool) -> None:
    """Make a run's folder, or accept an existing one when resuming.

    Raises:
        ValueError: the folder holds something already (or nothing, when resuming), or can't be written.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"run.dir: {folder} is a file; give a folder that is new or empty")
    if not resuming and folder.is_dir() and any(folder.iterdir()) and not _never_began(folder):
        raise ValueError(
            f"run.dir: {folder} already holds files; give another folder (run.dir=...), "
            "or go on with that run by run.resume=latest"
        )
    if resuming and not (folder / "config.yaml").is_file():
        raise ValueError(f"run.resume: {folder} holds no run to go on with; start one with run.resume=null")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"run.dir: {folder} can't be made ({error.strerror}); give a folder that can be written"
        ) from error
    try:
        with tempfile.TemporaryFile(dir=folder):  # before minutes of loading: a folder may be there and read-only
            pass
    except OSError as error:
        raise ValueError(f"run.dir: {folder} can't be written ({error.strerror}); give a folder that can") from error


def _never_began(folder: Path) -> bool:
    """Whether a folder holds no more than a run leaves that failed before its first step."""
    if not {one.name for one in folder.iterdir()} <= _BEFORE_A_STEP:
        return False
    metrics, checkpoints = folder / METRICS, folder / "checkpoints"
    stepped = metrics.is_file() and any(step for step, _ in _rows(metrics))
    return not stepped and not (checkpoints.is_dir() and any(checkpoints.iterdir()))


def _rows(path: Path) -> Iterator[tuple[int, str]]:
    """Step and text of each line, but for one that a killed run was writing."""
    for line in path.read_text(encoding="utf-8").splitlines():
        with suppress(ValueError, KeyError):
            yield json.loads(line)["step"], line


def cut_metrics(path: Path, step: int) -> None:
    """Drop the lines after ``step``: a resumed run writes them again."""
    if not path.exists():
        return
    kept = [line for done, line in _rows(path) if done <= step]
    with replacing(path) as aside:  # a full disk leaves the whole log
        aside.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def save_group(
    path: Path, example: Example, images: UInt8[Tensor, "g h w 3"], values: Mapping[str, Sequence[float]]
) -> None:
    """A group as a picture, its first reference on the left, and the samples' values as JSON (NaN as null)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = images.shape[1:3]
    gap = max(2, width // 16)
    strip = Image.new("RGB", ((width + gap) * len(images) + width + gap, height), "white")
    strip.paste(ImageOps.fit(example.references[0], (width, height)), (0, 0))
    for column, image in enumerate(np.asarray(images)):
        strip.paste(Image.fromarray(image), ((width + gap) * (column + 1) + gap, 0))
    strip.save(path)
    rows = {"key": example.key, "prompt": example.prompt} | {
        name: [round(v, 6) if math.isfinite(v) else None for v in of] for name, of in values.items()
    }
    path.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


@final
class RunLog:
    """Writes one JSON object per step, mirrors it to accelerate's trackers, and shows progress on the main process."""

    def __init__(self, accelerator: Accelerator, folder: Path, recipe: Recipe, start: int) -> None:
        self._accelerator = accelerator
        self._path = folder / METRICS
        self._lost: set[str] = set()
        console = Console(stderr=True, emoji=False, quiet=not accelerator.is_main_process)
        self.shown = Shown(console, recipe, start)

    def __enter__(self) -> Self:
        self.shown.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shown.__exit__(kind, error, trace)

    def say(self, text: str) -> None:
        """Print a line, on the main process only."""
        self.shown.say(text)

    def write(self, step: int, metrics: Mapping[str, float], headline: str) -> None:
        """Append a line to ``metrics.jsonl`` (NaN as null) and show progress."""
        if not self._accelerator.is_main_process:
            return
        row: dict[str, Any] = {"step": step}
        row.update({name: value if math.isfinite(value) else None for name, value in sorted(metrics.items())})
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        for tracker in self._accelerator.trackers:
            try:
                tracker.log(dict(metrics), step=step)
            except Exception as error:  # a mirror's network is no reason to lose a run
                if tracker.name not in self._lost:
                    self._lost.add(tracker.name)
                    self.say(f"{tracker.name} took no metrics of step {step}: {error} (said once; {METRICS} has all)")
        self.shown.stepped(step, headline)
