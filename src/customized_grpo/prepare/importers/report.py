"""Result of an import: what became rows, and what did not, counted by kind and named."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, final

from customized_grpo.data.prompts import PromptSurvey
from customized_grpo.data.rows import individuals

_NAMED: Final = 3
"""Number of entries that are named of each kind; ``rejected.jsonl`` has all that were rejected."""


@final
@dataclass(slots=True)
class Lost:
    """What a picture that can't be used costs, in rows."""

    rows: int = 0
    """Rows whose reference or target it is, which are left out."""
    views: int = 0
    """Rows of whose ``views`` alone it is left out."""

    def __str__(self) -> str:
        costs = [f"{self.rows:,} row{'s' * (self.rows != 1)}"] if self.rows else []
        costs += [f"as a view of {self.views:,} row{'s' * (self.views != 1)}"] if self.views else []
        return ", and ".join(costs)


@final
@dataclass(slots=True)
class Subject:
    """An individual of the rows, for a person who looks whether it was read as it was meant."""

    name: str
    word: str
    photos: int
    rows: int
    prompt: str
    """That of its first row."""


@final
class Subjects:
    """The individuals of rows, in the order of their first one. A row that shows several counts for none."""

    def __init__(self) -> None:
        self._found: dict[str, Subject] = {}
        self._photos: dict[str, set[str]] = {}

    def __len__(self) -> int:
        return len(self._found)

    def add(self, row: Mapping[str, Any]) -> None:
        """Count a manifest's row."""
        names = individuals(row["extra"])
        if len(names) != 1:
            return
        subject = self._found.setdefault(names[0], Subject(names[0], row["subject"], 0, 0, row["prompt"]))
        photos = self._photos.setdefault(names[0], set())
        photos.update(row["references"], row["views"], [row["target"]] if row["target"] else [])
        subject.rows, subject.photos = subject.rows + 1, len(photos)

    def first(self, count: int) -> list[Subject]:
        """The first of them."""
        return list(self._found.values())[:count]


@final
@dataclass(slots=True)
class Report:
    """Result of an import."""

    rows: int = 0
    rejected: int = 0
    masks_dropped: int = 0
    views_dropped: int = 0
    images: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    """Number of entries that each option or rule excluded."""
    problems: dict[str, int] = field(default_factory=dict)
    """Number of rejected rows and files per kind."""
    examples: dict[str, list[str]] = field(default_factory=dict)
    """The first names of each reason of ``skipped``; of kinds of ``problems``, masks and views with what is wrong."""
    lost: dict[str, Lost] = field(default_factory=dict)
    """Pictures that can't be used, each with its reason, and what they cost."""
    num_subjects: int = 0
    """Number of individuals."""
    subjects: list[Subject] = field(default_factory=list)
    """The first of them."""
    remarks: list[str] = field(default_factory=list)
    """What the importer says about how it read the source."""
    first_reason: str = ""
    prompts: PromptSurvey | None = None

    def skip(self, reason: str, name: str) -> None:
        """Count an entry that an option or a rule excluded."""
        self.skipped[reason] = self.skipped.get(reason, 0) + 1
        self.name(reason, name)

    def reject(self, name: str, kind: str, reason: str) -> None:
        """Count an entry or a file that can't be used."""
        self.first_reason = self.first_reason or (f"{name}: {reason}" if kind == "file" else reason)
        self.rejected += 1
        self.problems[kind] = self.problems.get(kind, 0) + 1
        self.name(kind, f"{name}: {reason}", reason)

    def name(self, kind: str, text: str, reason: str = "") -> None:
        """Keep one of the first examples of a kind; a picture that costs many rows for one ``reason`` is named once."""
        named = self.examples.setdefault(kind, [])
        if text and len(named) < _NAMED and not (reason and any(reason in one for one in named)):
            named.append(text)
