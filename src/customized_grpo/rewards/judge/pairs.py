"""Pairs of a group, verdicts in both orders, and win rates. Dimensions: G group size.

Each image is compared with ``rounds`` others: the first rounds of a round-robin tournament, in each of which every
image has one opponent (of an odd number one waits). Both orders are asked, as judges favour places, and orders that
disagree are a tie (Zheng et al., arXiv 2306.05685). The score is the win rate (Pref-GRPO, arXiv 2508.20751).
"""

import hashlib
import math
from collections.abc import Mapping, Sequence

Pair = tuple[int, int]


def ordered(contents: Sequence[str], seed: int) -> list[str]:
    """The different contents of a group in an order that depends on them and on the seed alone."""
    return sorted(set(contents), key=lambda content: hashlib.sha256(f"{seed} {content}".encode()).digest())


def round_robin(count: int, rounds: int) -> list[Pair]:
    """Pairs of the first rounds of a tournament of ``count``, by the circle method; all pairs for count - 1 rounds.

    Of an odd number another one waits in each round, so it takes two rounds for all to have met someone.
    """
    size = count + count % 2
    circle = list(range(size))
    pairs = list[Pair]()
    for _ in range(rounds if rounds < count - 1 else size - 1):
        meeting = zip(circle[: size // 2], reversed(circle[size // 2 :]), strict=True)
        pairs += [pair for pair in meeting if max(pair) < count]
        circle = [circle[0], circle[-1], *circle[1:-1]]
    return pairs


def agreed(forward: float, backward: float) -> float:
    """Points of a pair's first image, 1 for a win: what both orders say, or one half where they contradict each other.

    Args:
        forward: points of the image that is shown first, 0 to 1, with the pair's first image in that place.
        backward: the same with the pair's second image in that place.
    """
    return forward if forward == 1.0 - backward else 0.5


def win_rates(count: int, points: Mapping[Pair, float]) -> list[float]:
    """Mean points of each image over its comparisons; NaN for one without any.

    Args:
        points: of a pair's first image; the second one has the rest of 1.
    """
    won, met = [0.0] * count, [0] * count
    for (first, second), value in points.items():
        for at, own in ((first, value), (second, 1.0 - value)):
            won[at] += own
            met[at] += 1
    return [won[at] / met[at] if met[at] else math.nan for at in range(count)]
