"""Blind votes between two systems: a tally, and a manifest of chosen and rejected pictures that ``dpo`` reads."""

import json
import secrets
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, final

from PIL import Image
from scipy.stats import binomtest

from customized_grpo.atomic import replacing
from customized_grpo.studio.artist import Shown
from customized_grpo.text.json_lines import read_json_lines

MANIFEST: Final = "manifest.jsonl"
TIES: Final = "ties.jsonl"
Choice = Literal["A", "B", "tie"]


@final
@dataclass(frozen=True, slots=True)
class Pair:
    """Two pictures of one prompt and noise, whose systems a voter doesn't see.

    Attributes:
        systems: of A and of B.
        images: RGB, of A and of B.
    """

    systems: tuple[str, str]
    images: tuple[Image.Image, Image.Image]
    prompt: str
    references: tuple[Image.Image, ...]
    subject: str
    shown: Shown


@final
@dataclass(frozen=True, slots=True)
class Count:
    """Votes between two systems; ``low`` and ``high`` bound the first one's share of wins (Clopper-Pearson, 95 %)."""

    systems: tuple[str, str]
    wins: tuple[int, int]
    ties: int
    low: float
    high: float


@final
class Votes:
    """Votes in a folder: ``manifest.jsonl`` of the decided ones, ``ties.jsonl`` of the others, and their pictures."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writing = threading.Lock()

    def add(self, pair: Pair, choice: Choice) -> None:
        """Keep a vote, its pictures first, so that a line never names a file that isn't there."""
        name = secrets.token_hex(8)
        references = [self._picture(f"{name}-reference-{at}", one) for at, one in enumerate(pair.references)]
        files = [self._picture(f"{name}-{side}", image) for side, image in zip("ab", pair.images, strict=True)]
        row: dict[str, Any] = {"id": f"vote-{name}", "prompt": pair.prompt, "references": references}
        row |= {"subject": pair.subject} if pair.subject else {}
        better = 1 if choice == "B" else 0
        systems = pair.systems[better], pair.systems[1 - better]
        if choice != "tie":
            row |= {"chosen": files[better], "rejected": files[1 - better]}
        row |= {"extra": {"systems": systems, **asdict(pair.shown)}}
        kept_in = self.folder / (TIES if choice == "tie" else MANIFEST)
        with self._writing, kept_in.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def counts(self) -> list[Count]:
        """Votes of every two systems that were compared, in the order of their names."""
        found: dict[tuple[str, str], list[int]] = {}
        for file in (MANIFEST, TIES):
            for systems in self._systems(file):
                key = tuple(sorted(systems))
                assert len(key) == 2
                place = 2 if file == TIES else key.index(systems[0])
                found.setdefault(key, [0, 0, 0])[place] += 1
        result = []
        for key, (first, second, ties) in sorted(found.items()):
            bounds = (0.0, 1.0)
            if first + second:
                interval = binomtest(first, first + second).proportion_ci()
                bounds = float(interval.low), float(interval.high)
            result.append(Count(key, (first, second), ties, *bounds))
        return result

    def _systems(self, name: str) -> Sequence[tuple[str, str]]:
        file = self.folder / name
        if not file.is_file():
            return []
        # a line that a full disk cut short is no vote
        return [tuple(row["extra"]["systems"]) for _, row in read_json_lines(file) if isinstance(row, dict)]

    def _picture(self, name: str, image: Image.Image) -> str:
        file = self.folder / "pictures" / f"{name}.png"
        with replacing(file) as aside:
            image.save(aside)
        return str(file.relative_to(self.folder))
