"""A run's folder and its log: JSONL and images on disk are the truth, trackers and the console mirror them."""

import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, final

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from PIL import Image
from rich.console import Console

from customized_grpo.atomic import replacing
from customized_grpo.evaluation import about
from customized_grpo.identity import runs
from customized_grpo.identity.hashes import HASHES
from customized_grpo.recipe.config import Recipe
from customized_grpo.training import trackers
from customized_grpo.training.progress import Shown

METRICS = "metrics.jsonl"
_BEFORE_A_STEP = frozenset(
    {"config.yaml", METRICS, HASHES, about.FILE, runs.FILE, "evaluation", "checkpoints", "samples"}
)
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


@final
class RunLog:
    """Writes one JSON object per step, mirrors it to accelerate's trackers, and shows progress on the main process."""

    def __init__(self, accelerator: Accelerator, folder: Path, recipe: Recipe, start: int) -> None:
        self._accelerator = accelerator
        self._path = folder / METRICS
        self._lost = set[tuple[str, str]]()
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
        self._mirror(lambda tracker: tracker.log(dict(metrics), step=step), f"metrics of step {step}", METRICS)
        self.shown.stepped(step, headline)

    def show(self, step: int, pictures: Sequence[tuple[Image.Image, str]]) -> None:
        """Mirror pictures with their captions to the trackers."""
        if pictures:
            send = partial(trackers.log_pictures, pictures=pictures, step=step)
            self._mirror(send, f"pictures of step {step}", "samples/fixed")

    def _mirror(self, send: Callable[[GeneralTracker], None], what: str, kept: str) -> None:
        for tracker in self._accelerator.trackers:
            try:
                send(tracker)
            except Exception as error:  # a mirror's network is no reason to lose a run
                if (tracker.name, kept) not in self._lost:
                    self._lost.add((tracker.name, kept))
                    self.say(f"{tracker.name} took no {what}: {error} (said once; {kept} has all)")
