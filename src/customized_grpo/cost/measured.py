"""Measured seconds of FLUX.1-dev's two uses on one card (``measured.json``), and what lies between the measurements.

The file holds numbers of ``benchmarks/results``, with the command, the card and the versions; a test holds it to them.
Dimensions: n samples in a forward, T forwards and K replays of a group.
"""

import json
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from itertools import pairwise
from typing import Any, NamedTuple

_FILE = resources.files("customized_grpo.cost") / "measured.json"


class Seconds(NamedTuple):
    """A time, and whether it is a measurement itself."""

    value: float
    known: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A whole measured group: sampled, decoded, scored, replayed, with its update."""

    recipe: str
    forwards: int
    """T."""
    replays: int
    """K."""
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Measurements of one model at one size, on one card, in bfloat16."""

    source: str
    """File with all numbers, in the repository."""
    card: str
    torch: str
    model: str
    recipe: str
    """Shipped recipe whose policy was measured."""
    samples: int
    """Samples of a measured group."""
    scored: tuple[str, ...]
    """Models of the two rewards that were among a measured group's seconds."""
    forwards: tuple[tuple[int, float], ...]
    """n and seconds."""
    replays: dict[float, tuple[tuple[int, float], ...]]
    """Share of the blocks that are computed again, to n and seconds."""
    groups: tuple[Group, ...]

    def forward(self, n: int) -> Seconds:
        """A forward of n samples, without gradient."""
        return _at(self.forwards, n)

    def replay(self, n: int, share: float) -> Seconds:
        """Forward and backward of n samples, where this share of the blocks is computed again."""
        if share in self.replays:
            return _at(self.replays[share], n)
        shares = sorted(self.replays)
        place = bisect(shares, share)
        low, high = shares[place - 1], shares[place]
        ends = [_at(self.replays[end], n).value for end in (low, high)]
        return Seconds(ends[0] + (share - low) / (high - low) * (ends[1] - ends[0]), False)

    def beside(self, samples: int, passes: int) -> float:
        """Seconds of a group outside of its forwards and replays: encoding, decoding, small rewards, the optimizer.

        A share for each sample and one for each of its passes, such that the two measured groups come out.

        Args:
            samples: of the group.
            passes: T + K.
        """
        (first, rest_1), (second, rest_2) = (
            (one.forwards + one.replays, one.seconds - one.forwards * forward - one.replays * replay)
            for forward, replay in [(self.forward(self.samples).value, self.replay(self.samples, 1.0).value)]
            for one in self.groups
        )
        per_pass = (rest_1 - rest_2) / (first - second)
        return samples / self.samples * (rest_1 + (passes - first) * per_pass)


@dataclass(frozen=True, slots=True, kw_only=True)
class Miniature:
    """Seconds of one group of the embedded recipe on another machine's CPU."""

    source: str
    recipe: str
    machine: str
    threads: dict[int, float]
    """Seconds by number of threads."""


@lru_cache(maxsize=1)
def measured() -> Table:
    """The table of the large model."""
    found = _read()
    rows: dict[float, list[tuple[int, float]]] = {}
    for row in found["replay"]:
        rows.setdefault(row["checkpointed"], []).append((row["n"], row["seconds"]))
    return Table(
        **{name: found[name] for name in ("source", "card", "torch", "model", "recipe", "samples")},
        scored=tuple(found["scored"]),
        forwards=tuple((row["n"], row["seconds"]) for row in found["forward"]),
        replays={share: tuple(points) for share, points in rows.items()},
        groups=tuple(Group(**one) for one in found["groups"]),
    )


@lru_cache(maxsize=1)
def miniature() -> Miniature:
    """The record of the miniature."""
    found = _read()["miniature"]
    threads = {int(number): seconds for number, seconds in found["threads"].items()}
    return Miniature(**{name: found[name] for name in ("source", "recipe", "machine")}, threads=threads)


def _read() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_FILE.read_text(encoding="utf-8"))
    return found


def _at(points: Sequence[tuple[int, float]], n: int) -> Seconds:
    """Between two measured batches on the line through them; above the largest in proportion."""
    last, most = points[-1]
    if n > last:
        return Seconds(most / last * n, False)
    for (below, least), (above, most) in pairwise(points):
        if below < n < above:
            return Seconds(least + (n - below) / (above - below) * (most - least), False)
    return Seconds(dict(points)[n], True)
