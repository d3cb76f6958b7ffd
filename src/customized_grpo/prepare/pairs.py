"""Ranked pairs for ``dpo`` from a table of scores: of each example the picture that is better on every score, by most.

A table has a row per picture, with columns ``image`` (its path below the folder of pictures) and ``example`` (an id of
the manifest), as ``customized-grpo score --out`` writes it, and one or more columns of numbers: scores, or votes.
"""

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any, Final, final

from customized_grpo import registry
from customized_grpo.atomic import replacing
from customized_grpo.data.rows import Row, sound_rows
from customized_grpo.text import read_table
from customized_grpo.text.json_lines import read_json_lines

_COLUMNS: Final = ("image", "example")


@final
@dataclass(frozen=True, slots=True)
class Pairs:
    """What was written."""

    path: Path
    pairs: int
    unranked: tuple[str, ...]
    """Ids of examples of which no picture is better than another on every score."""


def write_pairs(manifest: Path, table: Path, images: Path, by: Sequence[str], out: Path) -> Pairs:
    """Write a manifest with ``chosen`` and ``rejected``, one line per example that has such a pair.

    Of all ordered pairs of an example's pictures in which the first is better on every column, it takes the one with
    the largest sum of differences, each in standard deviations of its column over the whole table.

    Args:
        manifest: of the examples.
        table: CSV or JSON lines.
        images: folder that the table's paths are relative to; inside the manifest's folder.
        by: columns of the table, higher is better. An empty cell is unscored, and its picture is in no pair.
        out: the new manifest, in the folder of ``manifest``, as its paths are relative to that.

    Raises:
        ValueError: no such column, a value that is no number, an unknown example, a picture that isn't there or lies
            outside, or no pair at all.
    """
    if out.resolve().parent != manifest.resolve().parent or out.resolve() == manifest.resolve():
        raise ValueError(
            f"--out: given {out}; write it beside {manifest} under another name, as its paths are relative to there"
        )
    if not by:
        raise ValueError("--by: missing; give one column of the table or more, such as --by dino")
    rows = {row.id: row for _, row in sound_rows(manifest)}
    scored = _read(table, by, rows)
    spreads = {name: statistics.pstdev(of[name] for ones in scored.values() for _, of in ones) for name in by}
    if flat := [name for name, spread in spreads.items() if not spread]:
        raise ValueError(f"--by: {flat[0]} is the same for all pictures of {table}, so it ranks none; leave it out")
    lines, unranked = [], []
    for key, ones in scored.items():
        better = [pair for pair in permutations(ones, 2) if all(pair[0][1][name] > pair[1][1][name] for name in by)]
        if not better:
            unranked.append(key)
            continue
        chosen, rejected = max(better, key=lambda pair: sum((pair[0][1][n] - pair[1][1][n]) / spreads[n] for n in by))
        lines.append(_line(rows[key], chosen[0], rejected[0], images, manifest.parent))
    if not lines:
        raise ValueError(
            f"{table}: no example has two pictures of which one is better on all of {', '.join(by)}; draw more "
            "pictures of each, or rank by fewer columns"
        )
    with replacing(out) as aside:
        aside.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
    return Pairs(out, len(lines), tuple(unranked))


def _line(row: Row, chosen: str, rejected: str, images: Path, root: Path) -> str:
    paths = {}
    for key, name in {"chosen": chosen, "rejected": rejected}.items():
        file = images / name
        if not file.is_file():
            raise ValueError(f"--images: there is no {file}; give the folder that the table's images are relative to")
        if not file.resolve().is_relative_to(root.resolve()):
            raise ValueError(f"--images: {file} lies outside of {root}, the manifest's folder; move the pictures there")
        paths[key] = file.resolve().relative_to(root.resolve()).as_posix()
    return json.dumps({**row.model_dump(mode="json", exclude_defaults=True), **paths}, ensure_ascii=False)


def _read(
    table: Path, by: Sequence[str], rows: Mapping[str, Row]
) -> Mapping[str, list[tuple[str, Mapping[str, float]]]]:
    """(picture, score by column) of every picture that all columns score, by example."""
    found: defaultdict[str, list[tuple[str, Mapping[str, float]]]] = defaultdict(list)
    for number, cells in _cells(table):
        place = f"{table}:{number}: "
        if missing := [name for name in (*_COLUMNS, *by) if name not in cells]:
            hint = registry.did_you_mean(missing[0], list(cells))
            raise ValueError(f"{place}there is no column {missing[0]!r};{hint} it has: {', '.join(cells)}")
        key = str(cells["example"])
        if key not in rows:
            raise ValueError(f"{place}no line of the manifest has the id {key!r}; give the manifest that was scored by")
        values = {name: _number(cells[name], f"{place}{name}: ") for name in by}
        if not any(math.isnan(value) for value in values.values()):
            found[key].append((str(cells["image"]), values))
    return found


def _cells(table: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    if not table.is_file():
        raise ValueError(f"{table}: there is no such file; customized-grpo score --out writes one")
    read = read_json_lines(table) if table.suffix.lower() == ".jsonl" else read_table(table, "image")
    for number, cells in read:
        if not isinstance(cells, dict):
            raise ValueError(f"{table}:{number}: {cells if isinstance(cells, ValueError) else 'is no JSON object'}")
        yield number, cells


def _number(cell: Any, place: str) -> float:
    """A cell as a number; NaN where it is empty or null."""
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return math.nan
    try:
        value = float(cell)
    except (TypeError, ValueError):
        raise ValueError(f"{place}given {cell!r}; it must be a number, or empty") from None
    if math.isinf(value):
        raise ValueError(f"{place}given {cell!r}; it must be finite, or empty")
    return value
