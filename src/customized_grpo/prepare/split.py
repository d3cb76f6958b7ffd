"""Train/test split of a manifest by subject: no individual and no picture, whatever its name, is on both sides.

Of a single subject, prompts are held out instead: its pictures are then on both sides, and no prompt is.

``extra.subject_id`` of a row (a name, or a list if it shows several) identifies individuals; ``subject`` is
the class word, which many individuals share. Rows that share an individual or a picture stay together.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final

from customized_grpo.atomic import replacing
from customized_grpo.data.rows import Row, individuals, sound_rows
from customized_grpo.identity.hashes import equal_files
from customized_grpo.text import read_lines

By = Literal["individual", "class", "prompt"]


@final
@dataclass(frozen=True, slots=True)
class Part:
    """One side of a split: its manifest, and how much is in it."""

    path: Path
    rows: int
    groups: int


def identities(row: Row) -> tuple[str, ...]:
    """Individuals of a row; empty if it names none."""
    return individuals(row.extra)


def groups_of(rows: Sequence[Row], by: By, same: Mapping[str, str] | None = None) -> list[list[int]]:
    """Indices of connected rows; groups and their members are in order of the rows.

    Args:
        rows: the manifest's.
        by: what connects them besides pictures.
        same: the name under which a picture counts, for pictures that are in several files.
    """
    parent = list(range(len(rows)))

    def find(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    first: dict[tuple[str, str], int] = {}
    for index, row in enumerate(rows):
        for key in _keys(row, by, same or {}):
            one, other = find(index), find(first.setdefault(key, index))
            parent[max(one, other)] = min(one, other)
    groups: defaultdict[int, list[int]] = defaultdict(list)
    for index in range(len(rows)):
        groups[find(index)].append(index)
    return list(groups.values())


def split_of(manifest: Path) -> tuple[Path, Path]:
    """The files that a manifest is split into: training's, and what is held out."""
    return manifest.with_suffix(".train.jsonl"), manifest.with_suffix(".test.jsonl")


def split_manifest(
    path: Path, *, share: float, names: Sequence[str] = (), by: By = "individual", seed: int = 0
) -> tuple[Part, Part]:
    """Write ``<stem>.train.jsonl`` and ``<stem>.test.jsonl`` beside a manifest; lines are copied as they are.

    Args:
        share: share of the rows to hold out, in (0, 1); whole groups are drawn until one more would be further from it.
        names: individuals (or class words, or prompts) to hold out instead, with all connected rows.
        by: what must not be on both sides besides pictures; ``prompt``: prompts alone.

    Raises:
        ValueError: a line is bad, a name is unknown, or one side would be empty.
    """
    rows, lines = _read(path)
    equal = equal_files(path.parent / name for row in rows for name in row.images())
    groups = groups_of(rows, by, {str(one.relative_to(path.parent)): str(of) for one, of in equal.items()})
    if names:
        held = _named(rows, groups, names, by)
    else:
        if not 0 < share < 1:
            raise ValueError(f"--share: given {share}; allowed: above 0 and below 1")
        held = set()
        taken = 0
        import torch

        from customized_grpo.seeding import generator

        order = torch.randperm(len(groups), generator=generator(seed, "split", 0, 0)).tolist()
        for group in order:
            wanted = share * len(rows)
            if held and abs(taken + len(groups[group]) - wanted) >= abs(taken - wanted):
                break
            held.add(group)
            taken += len(groups[group])
    if len(held) == len(groups):
        raise ValueError(
            f"{path}: all {len(rows)} rows are connected by shared individuals or pictures, or all would be held "
            "out; hold out less, name what to hold out, or hold out prompts of one subject by --by prompt"
        )
    test = {index for group in held for index in groups[group]}
    trained, held_out = split_of(path)
    train = Part(trained, len(rows) - len(test), len(groups) - len(held))
    tested = Part(held_out, len(test), len(held))
    for part in (train, tested):
        with replacing(part.path) as aside:
            inside = part is tested
            chosen = (f"{line}\n" for at, line in enumerate(lines) if (at in test) is inside)
            aside.write_text("".join(chosen), encoding="utf-8", newline="\n")
    return train, tested


def _keys(row: Row, by: By, same: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    if by == "prompt":
        yield "prompt", row.prompt
        return
    yield from (("individual", name) for name in identities(row))
    yield from (("image", same.get(path, path)) for path in row.images())
    if by == "class" and row.subject:
        yield "class", row.subject


def _named(rows: Sequence[Row], groups: Sequence[list[int]], names: Sequence[str], by: By) -> set[int]:
    def words(row: Row) -> set[str]:
        if by == "prompt":
            return {row.prompt}
        return {row.subject} if by == "class" else set(identities(row))

    known = {word for row in rows for word in words(row)}
    if unknown := [name for name in names if name not in known]:
        some = ", ".join(sorted(known)[:12]) or "none: no row has an extra.subject_id"
        raise ValueError(f"--hold-out: no row is about {unknown[0]!r}; there are {len(known)}: {some}")
    wanted = set(names)
    return {at for at, group in enumerate(groups) if any(words(rows[index]) & wanted for index in group)}


def _read(path: Path) -> tuple[list[Row], list[str]]:
    found = list(sound_rows(path))
    lines = dict(read_lines(path))
    return [row for _, row in found], [str(lines[number]) for number, _ in found]
