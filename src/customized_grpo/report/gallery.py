"""Gallery of examples, chosen by stated rules, with pictures as data URIs."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

import numpy as np
from PIL import Image

from customized_grpo.data.images import ImageError, load_image
from customized_grpo.evaluation.pairing import unlike, without
from customized_grpo.evaluation.summary import Row
from customized_grpo.report.folders import RunFolder

_SIDE: Final = 384
_EXTREMES: Final = 6
RANDOM: Final = 9
"""Number of examples that are drawn before anybody has looked."""


Pair = tuple[Row | None, Row]
"""Rows of the base and of the last system, which is the base itself if no adapter was evaluated."""


@final
@dataclass(frozen=True, slots=True)
class Card:
    """One example: pictures as data URIs, None if the file is gone.

    Attributes:
        images: (system, picture) of ``base`` and ``tuned``, if there.
        values: (axis, base, last system); None where not measurable, and for a base shown alone.
    """

    prompt: str
    reference: str | None
    images: Sequence[tuple[str, str | None]]
    values: Sequence[tuple[str, float | None, float | None]]


@final
@dataclass(frozen=True, slots=True)
class Group:
    """Cards chosen by one rule."""

    title: str
    rule: str
    cards: Sequence[Card]


def gallery(run: RunFolder, axes: Mapping[str, str]) -> list[Group]:
    """Random examples, the best and the worst images, and the largest gains and losses of tuned against base.

    Empty without saved pictures.
    """
    left_out = unlike(*run.ends)
    base, tuned = (
        {row["key"]: row for row in without(rows, left_out) if row["image"] == 0 and row.get("file")}
        for rows in run.ends
    )
    # Without an adapter the base alone is shown, in both places.
    pairs: list[Pair] = [(base.get(key), row) for key, row in (tuned or base).items() if not tuned or key in base]
    if not pairs:
        return []
    chosen = np.random.default_rng(0).permutation(len(pairs))[:RANDOM]
    count = f"among the {len(pairs)} examples with saved pictures"
    drawn = [pairs[i] for i in sorted(chosen)]
    found = [("Random", f"Drawn by a fixed seed {count}, before looking.", drawn)]
    names = " and ".join(axes)
    scale = {column: _spread([row for _, row in pairs], column) for column in axes.values()}
    mean = f"the mean of {names}, each in units of its standard deviation, {count}"
    ranked = _ranked(pairs, lambda pair: _level(pair[1], scale))
    half = min(_EXTREMES, len(ranked) // 2)
    best, worst = [pair for _, pair in ranked[:half]], [pair for _, pair in ranked[::-1][:half]]
    found.append(("Best", f"Highest in {mean}: not the typical ones.", best))
    found.append(("Worst", f"Lowest in {mean}: not the typical ones.", worst))
    if tuned:
        changes = _ranked(pairs, lambda pair: _change(pair, scale))
        gains = [pair for change, pair in changes if change > 0][:_EXTREMES]
        losses = [pair for change, pair in reversed(changes) if change < 0][:_EXTREMES]
        rule = f"The largest {{}} in {mean}: the {{}} cases, not the typical ones."
        found.append(("Largest gains", rule.format("gains", "best"), gains))
        found.append(("Largest losses", rule.format("losses", "worst"), losses))
    return [Group(title, rule, _cards(run, cases, axes)) for title, rule, cases in found if cases]


def _ranked(pairs: Sequence[Pair], value: Callable[[Pair], float | None]) -> list[tuple[float, Pair]]:
    """Pairs with a value, largest first; ties keep their order."""
    scored = [(found, pair) for pair in pairs if (found := value(pair)) is not None]
    return sorted(scored, key=lambda item: -item[0])


def _spread(rows: Sequence[Row], column: str) -> float:
    """Standard deviation of a column, the scale for adding different units; 1 if it is constant."""
    values = [value for row in rows if (value := row["values"].get(column)) is not None]
    return float(np.std(values)) or 1.0 if values else 1.0


def _level(row: Row | None, scale: Mapping[str, float]) -> float | None:
    values = [row["values"].get(column) for column in scale] if row is not None else []
    if not values or None in values:
        return None
    return float(np.mean([value / unit for value, unit in zip(values, scale.values(), strict=True)]))


def _change(pair: Pair, scale: Mapping[str, float]) -> float | None:
    """Mean over the axes of tuned minus base; None if one was not measurable."""
    before, after = (_level(row, scale) for row in pair)
    return None if before is None or after is None else after - before


def _cards(run: RunFolder, pairs: Sequence[Pair], axes: Mapping[str, str]) -> list[Card]:
    folder = run.path / "evaluation"
    alone = not run.ends[1]
    return [
        Card(
            prompt=str(after["prompt"]),
            reference=data_uri(folder, after.get("reference") or (before or {}).get("reference")),
            images=[
                (name, data_uri(folder, row["file"]))
                for name, row in ([("base", after)] if alone else [("base", before), ("tuned", after)])
                if row is not None
            ],
            values=[
                (
                    axis,
                    None if alone or before is None else before["values"].get(column),
                    after["values"].get(column),
                )
                for axis, column in axes.items()
            ],
        )
        for before, after in pairs
    ]


def data_uri(folder: Path, name: str | None, wide: int = 2) -> str | None:
    """A picture of the folder, scaled down; None if it is missing, damaged, or outside the folder.

    Args:
        folder: that it must lie in.
        name: relative to the folder.
        wide: its width is at most this many times its largest height.
    """
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
        image.thumbnail((wide * _SIDE, _SIDE), Image.Resampling.LANCZOS)
        image.save(buffer, format="JPEG", quality=88)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
