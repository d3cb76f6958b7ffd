"""Base of importers: from a source and options to drafts of manifest rows. Importers read text, not pixels.

An importer is a frozen pydantic model that can be called, found by the registry under the kind ``importers``. The
writer (``importers.writer``) handles files, ids and errors, so an importer stays small.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from pydantic import BaseModel, ConfigDict


@final
class SourceError(ValueError):
    """A source does not have its importer's layout; the message describes the layout."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A row whose files have not been checked. Paths lie under the importer's root or the output folder."""

    id: str
    """Proposed id; the writer makes it unique and safe as a file name."""
    prompt: str
    references: tuple[Path, ...]
    subject: str = ""
    masks: tuple[Path | None, ...] = ()
    target: Path | None = None
    target_mask: Path | None = None
    views: tuple[Path, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.masks and len(self.masks) != len(self.references):
            raise ValueError(
                f"{len(self.masks)} masks for {len(self.references)} references; give one path or None per reference"
            )


@final
@dataclass(frozen=True, slots=True)
class Rejected:
    """An entry of the source that can't become a row."""

    id: str
    reason: str


@final
@dataclass(frozen=True, slots=True)
class Skipped:
    """An entry excluded by an option: counted by its reason, not listed."""

    reason: str


Item = Draft | Rejected | Skipped


class Importer(BaseModel, ABC):
    """Base of importers: subclass it, add options as fields, and write ``__call__``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: str

    def root(self, source: str) -> Path:
        """Root folder of the source's images: by default the source itself, or its parent if it is a file."""
        path = Path(source).expanduser()
        return path if path.is_dir() else path.parent

    @abstractmethod
    def __call__(self, source: str, out: Path) -> Iterator[Item]:
        """Yield every entry of ``source`` in a fixed order; images that are not files are written under ``out``.

        Raises:
            SourceError: the source as a whole can't be read.
        """


def folder_of(source: str, holds: str) -> Path:
    """The source as an existing folder.

    Raises:
        SourceError: it is not a folder; ``holds`` names its expected content.
    """
    path = Path(source).expanduser()
    if not path.is_dir():
        given = "a file" if path.exists() else "no such folder"
        raise SourceError(f"{source}: is {given}; give the folder that holds {holds}")
    return path


def text_of(entry: Mapping[str, Any], key: str) -> str:
    """A text field of a JSON object, stripped.

    Raises:
        ValueError: it is missing, not text, or blank.
    """
    if key not in entry:
        raise ValueError(f"has no {key!r}; keys: {', '.join(map(str, entry)) or 'none'}")
    value = entry[key]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{key}: given {value!r}; it must be a text that isn't blank")
    return value.strip()


def paths_of(entry: Mapping[str, Any], key: str) -> list[str]:
    """A field that is a path, or a list of paths.

    Raises:
        ValueError: it is neither.
    """
    value = entry.get(key)
    if isinstance(value, list) and value and all(isinstance(path, str) and path for path in value):
        return value
    return [text_of(entry, key)]
