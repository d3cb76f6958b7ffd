"""Pictures that a training left: fixed prompts as the steps went on, or else groups that it learnt from."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

from customized_grpo.paths import matching
from customized_grpo.report.folders import RunFolder
from customized_grpo.report.gallery import Card, data_uri

FIXED: Final = "samples/fixed"
"""Folder of the fixed prompts' pictures in a run's folder."""
_STEPS: Final = 6
_GROUPS: Final = 3


@final
@dataclass(frozen=True, slots=True)
class Samples:
    """Strips of pictures, each of one prompt.

    Attributes:
        fixed: whether only the adapter differs between a strip's pictures; else a strip is one group.
    """

    fixed: bool
    cards: Sequence[Card]


def samples_of(run: RunFolder) -> Samples | None:
    """Fixed prompts as training went on, else the newest groups of the rollout; None where no picture is."""
    if cards := _fixed(run.path / FIXED):
        return Samples(True, cards)
    if cards := _groups(run.path / "samples"):
        return Samples(False, cards)
    return None


def records_of(folder: Path, last: str | None = None) -> dict[str, list[Mapping[str, Any]]]:
    """Rows of the fixed prompts by step, of at most six steps.

    Only steps that drew what the newest drew: a resumed run may have asked for others before.

    Args:
        folder: of the fixed prompts.
        last: step that is the newest; None: the newest there is.
    """
    records: dict[str, list[Mapping[str, Any]]] = {}
    for file in matching(folder, "step-*.json"):
        rows = _rows(file)
        found: list[Mapping[str, Any]] = (
            [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
        )
        whole = all({"prompt", "file"} <= row.keys() for row in found)
        if found and whole and (last is None or file.stem <= last):
            records[file.stem] = found
    if not records:
        return {}
    asked = _asked(records[max(records)])
    steps = sorted(step for step, rows in records.items() if _asked(rows) == asked)
    if len(steps) > _STEPS:
        steps = [steps[at * (len(steps) - 1) // (_STEPS - 1)] for at in range(_STEPS)]
    return {step: records[step] for step in steps}


def _asked(rows: Sequence[Mapping[str, Any]]) -> list[tuple[Any, Any]]:
    return [(row.get("key"), row["prompt"]) for row in rows]


def _fixed(folder: Path) -> list[Card]:
    records = records_of(folder)
    if not records:
        return []
    steps = list(records)
    newest = records[steps[-1]]
    cards = []
    for place, row in enumerate(newest):
        images = [(title(step), data_uri(folder, records[step][place]["file"])) for step in steps]
        first, last = (records[step][place].get("values", {}) for step in (steps[0], steps[-1]))
        values = [(name, _number(first.get(name)), _number(value)) for name, value in last.items()]
        cards.append(Card(str(row["prompt"]), data_uri(folder, row.get("reference")), images, values))
    return cards


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def title(step: str) -> str:
    """What a step's pictures are called."""
    number = int(step.removeprefix("step-"))
    return f"step {number}" if number else "before"


def _groups(folder: Path) -> list[Card]:
    cards = []
    for file in matching(folder, "step-*.png")[-_GROUPS:]:
        about = _rows(file.with_suffix(".json"))
        prompt = str(about.get("prompt", "")) if isinstance(about, dict) else ""
        cards.append(Card(prompt, None, [(title(file.stem), data_uri(folder, file.name, wide=8))], ()))
    return cards


def _rows(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
