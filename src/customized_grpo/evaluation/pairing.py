"""Pairs of rows: two rows of one key are compared only where they are of the same example and were measured alike.

A key is a name. After a prompt was corrected or a reference replaced, it names another example than before.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from customized_grpo.data.content import PARTS

_METRIC: Final = "metrics."


def unlike(of: Sequence[Mapping[str, Any]], to: Sequence[Mapping[str, Any]]) -> set[str]:
    """Keys that two lists of rows have in common, though not the example or a metric's options."""
    theirs = {row["key"]: row for row in to}
    ours = {row["key"]: row for row in of}
    return {key for key in ours.keys() & theirs.keys() if not is_pair(ours[key], theirs[key])}


def without(rows: Sequence[dict[str, Any]], keys: set[str]) -> Sequence[dict[str, Any]]:
    """The rows of all other keys."""
    return [row for row in rows if row["key"] not in keys] if keys else rows


def is_pair(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """True if two rows are of the same example and measured alike; what made their images may differ.

    Of a row of an earlier version nothing but its prompt is known.
    """
    if one["prompt"] != other["prompt"]:
        return False
    if not (says_what_it_stands_on(one) and says_what_it_stands_on(other)):
        return True
    same = all(one["stands_on"].get(part) == other["stands_on"].get(part) for part in PARTS)
    return same and not other_metrics(one, other)


def says_what_it_stands_on(row: Mapping[str, Any]) -> bool:
    """False for a row of an earlier version."""
    return isinstance(row.get("stands_on"), dict)


def other_metrics(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Metrics that two rows have in common by name, but not by their options and models."""
    first, second = one["stands_on"], other["stands_on"]
    return sorted(
        part.removeprefix(_METRIC)
        for part in first.keys() & second.keys()
        if part.startswith(_METRIC) and first[part] != second[part]
    )
