"""The scale of an answer: which numbers it may be, and how many stand in it."""

from dataclasses import dataclass
from typing import Final, final


@final
@dataclass(frozen=True, slots=True)
class Scale:
    """Whole numbers from ``worst`` to ``best``.

    Attributes:
        scores: numbers that one answer holds: 1, or the length of its list.
        take: position of the one that counts, from 1.
    """

    worst: int = 0
    best: int = 4
    scores: int = 1
    take: int = 1

    def words(self) -> str:
        """``0, 1, 2, 3 or 4``, or ``a whole number from 0 to 25``."""
        *most, last = map(str, self.values())
        return f"{', '.join(most)} or {last}" if len(most) < 6 else f"a whole number from {self.worst} to {self.best}"

    def values(self) -> range:
        """All numbers of the scale."""
        return range(self.worst, self.best + 1)


DREAMBENCH: Final = Scale()
"""DreamBench++'s scale, 0 to 4."""
