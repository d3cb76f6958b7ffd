"""Result of an import: what became rows, and what did not, counted by kind and named."""

from dataclasses import dataclass, field
from typing import Final, final

from customized_grpo.data.prompts import PromptSurvey

_NAMED: Final = 3
"""Number of entries that are named of each kind; ``rejected.jsonl`` has all that were rejected."""


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
