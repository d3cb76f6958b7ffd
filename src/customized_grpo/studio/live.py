"""Curves of a run in training, as SVG in HTML, and the groups that it saved."""

import html
import json
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, final

from customized_grpo.report import figures, page
from customized_grpo.report.folders import read_runs


@final
@dataclass(frozen=True, slots=True)
class Group:
    """A group that training saved: a strip of its first reference and its samples, and their values."""

    step: int
    picture: Path
    prompt: str
    values: dict[str, list[float]]


def state_of(run: Path) -> tuple[int, ...]:
    """A fingerprint of what the curves are made from, cheap enough to be asked for every few seconds."""
    files = [run / "metrics.jsonl", *sorted((run / "evaluation").glob("*.jsonl"))]
    return tuple(file.stat().st_mtime_ns for file in files if file.is_file())


def curves(run: Path) -> str:
    """HTML of a run's facts and curves; a sentence where it has done no step yet."""
    return _curves(run, state_of(run))


@lru_cache(maxsize=8)
def _curves(run: Path, state: tuple[int, ...]) -> str:
    try:
        (read,) = read_runs([run])
    except ValueError as error:  # nothing is measured yet
        return f"<p>{html.escape(str(error))}</p>"
    axes = page.axes_of([read])
    shown = figures.all_figures([read], [], axes, ("rewards", "learnt", "heldout", "conflict"))
    done = f"step {read.last_step}" + (f" of {read.planned_steps}" if read.planned_steps else "")
    views = [*shown["rewards"], *shown["learnt"], *shown["heldout"], *shown["conflict"][:1]]
    drawn = "".join(
        f"<figure><figcaption>{html.escape(view.title)}</figcaption>"
        f'<div role="img" aria-label="{html.escape(view.alt, quote=True)}">{view.svg}</div></figure>'
        for view in views
    )
    notes = "".join(f"<p>{html.escape(text)}</p>" for text in (*map(str, read.suspicions()), *read.missing))
    return f"<p><b>{html.escape(read.name)}</b>: {done}</p>{notes}<div class='curves'>{drawn}</div>"


def groups(run: Path) -> list[Path]:
    """Pictures of the saved groups, in the order of their steps."""
    return sorted((run / "samples").glob("step-*.png"))


def group_in(picture: Path) -> Group:
    """A saved group; without values where their file is missing or not finished."""
    step = int(picture.stem.removeprefix("step-"))
    try:
        row: dict[str, Any] = json.loads(picture.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        row = {}
    values = {
        name: [math.nan if one is None else float(one) for one in of]
        for name, of in row.items()
        if isinstance(of, list)
    }
    return Group(step, picture, str(row.get("prompt", "")), values)
