"""Before and after: the examples that the report shows, chosen by a rule that it states, as data URIs."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

import numpy as np
from PIL import Image

from customized_grpo.data.images import ImageError, load_image
from customized_grpo.evaluation.folders import RunFolder
from customized_grpo.evaluation.summary import Row

_SIDE: Final = 256
_EXTREMES: Final = 4
_RANDOM: Final = 8


@final
@dataclass(frozen=True, slots=True)
class Card:
    """One example: pictures as data URIs (None where the file is gone) and (name, base, tuned) of the columns."""

    prompt: str
    reference: str | None
    base: str | None
    tuned: str | None
    values: Sequence[tuple[str, float, float]]


@final
@dataclass(frozen=True, slots=True)
class Group:
    """Cards under one rule of selection."""

    title: str
    rule: str
    cards: Sequence[Card]


def gallery(run: RunFolder, axes: Mapping[str, str]) -> list[Group]:
    """Random examples, largest gains, and largest losses, of base against tuned.

    Args:
        axes: axis to the held-out column that stands for it.

    Returns:
        Groups with at least one card; empty without saved pictures of both.
    """
    base, tuned = (
        {row["key"]: row for row in rows if row["image"] == 0 and row.get("file")} for rows in run.ends
    )
    pairs = [(base[key], tuned[key]) for key in base if key in tuned]
    if not pairs:
        return []
    chosen = np.random.default_rng(0).permutation(len(pairs))[:_RANDOM]
    count = f"among the {len(pairs)} examples with saved pictures"
    drawn = [pairs[i] for i in sorted(chosen)]
    groups = [Group("Random", f"Drawn by a fixed seed {count}, before looking.", _cards(run, drawn, axes))]
    scored = [(change, pair) for pair in pairs if (change := _change(pair, axes)) is not None]
    scored.sort(key=lambda item: -item[0])
    names = " and ".join(axes)
    gains = [pair for change, pair in scored if change > 0][:_EXTREMES]
    losses = [pair for change, pair in reversed(scored) if change < 0][:_EXTREMES]
    rule = f"The largest {{}} in the mean of {names}, {count}: the {{}} cases, not the typical ones."
    if gains:
        groups.append(Group("Largest gains", rule.format("gains", "best"), _cards(run, gains, axes)))
    if losses:
        groups.append(Group("Largest losses", rule.format("losses", "worst"), _cards(run, losses, axes)))
    return groups


def _change(pair: tuple[Row, Row], axes: Mapping[str, str]) -> float | None:
    """Mean over the axes of tuned minus base; None where one was not measurable."""
    values = [(pair[0]["values"].get(column), pair[1]["values"].get(column)) for column in axes.values()]
    measured = [after - before for before, after in values if before is not None and after is not None]
    return float(np.mean(measured)) if measured and len(measured) == len(values) else None


def _cards(run: RunFolder, pairs: Sequence[tuple[Row, Row]], axes: Mapping[str, str]) -> list[Card]:
    folder = run.path / "evaluation"
    return [
        Card(
            prompt=str(before["prompt"]),
            reference=_data_uri(folder, after.get("reference") or before.get("reference")),
            base=_data_uri(folder, before["file"]),
            tuned=_data_uri(folder, after["file"]),
            values=[
                (axis, float(before["values"][column]), float(after["values"][column]))
                for axis, column in axes.items()
                if before["values"].get(column) is not None and after["values"].get(column) is not None
            ],
        )
        for before, after in pairs
    ]


def _data_uri(folder: Path, name: str | None) -> str | None:
    """A picture inside the folder, small; None where it is gone, damaged, or named outside of the folder."""
    if not isinstance(name, str):
        return None
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        return None
    try:
        image = load_image(path)
    except ImageError:
        return None
    buffer = io.BytesIO()
    if max(image.size) <= _SIDE:
        image.save(buffer, format="PNG", optimize=True)
        kind = "png"
    else:
        image.thumbnail((2 * _SIDE, _SIDE), Image.Resampling.LANCZOS)
        image.save(buffer, format="JPEG", quality=88)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
