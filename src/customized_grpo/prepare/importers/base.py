"""Base of importers: from a source and options to drafts of manifest rows. Importers read text, not pixels.

An importer is a frozen pydantic model that can be called, found by the registry under the kind ``importers``. The
writer (``importers.writer``) handles files, ids and errors, so an importer stays small.
"""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, final

from pydantic import BaseModel, ConfigDict

from customized_grpo.data.rows import is_nothing
from customized_grpo.prepare.importers.names import Names

_WRITTEN: Final = ("manifest.jsonl", "rejected.jsonl", "import.json", "contact_sheet.jpg", "images", "source")
"""Names of what an import and ``data check`` write."""


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
    """An entry or a file of the source that can't become a row."""

    id: str
    reason: str
    kind: str = "entry"
    """What is counted together; ``file`` for a file or folder that isn't used."""


@final
@dataclass(frozen=True, slots=True)
class Skipped:
    """An entry excluded by an option or by rule: counted by its reason."""

    reason: str
    name: str = ""
    """Named in the closing lines, for the first few of a reason."""


@final
@dataclass(frozen=True, slots=True)
class Remark:
    """A sentence for the closing lines about how the source was read where it could be meant in another way."""

    text: str


Item = Draft | Rejected | Skipped | Remark


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
        if path.is_file() and path.suffix.lower() in (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar"):
            given = "an archive; unpack it first"
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
    if not isinstance(value, str) or is_nothing(value):
        raise ValueError(f"{key}: given {value!r}; it must be a text that isn't blank")
    return value.strip()


def word_of(entry: Mapping[str, Any], key: str) -> str:
    """A text field that may hold nothing: then it is empty.

    Raises:
        ValueError: it is neither text nor nothing.
    """
    return "" if is_nothing(entry.get(key)) else text_of(entry, key)


def individuals_of(entry: Mapping[str, Any], key: str) -> str | list[str]:
    """The individual that a field names, or several; empty if it holds nothing.

    Raises:
        ValueError: it is neither a name nor a number, nor a list of such.
    """
    value = entry.get(key)
    given = value if isinstance(value, list) else [value]
    found = [_name(key, one) for one in given if not is_nothing(one)]
    return found if len(found) > 1 else "".join(found)


def _name(key: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{key}: given {value!r}; it must be a name or a number, or a list of such")
    # a column of whole numbers with a gap in it becomes one of fractions
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def paths_of(entry: Mapping[str, Any], key: str, names: Names | None = None) -> list[str]:
    """A field that is a path or a list of paths; in text also as a JSON list.

    Args:
        names: of the files that are there; then ``a.png;b.png`` are two paths if they are two files.

    Raises:
        ValueError: it is neither.
    """
    value = entry.get(key)
    if isinstance(value, str) and value.lstrip().startswith("["):
        with suppress(ValueError):
            value = json.loads(value)
    if isinstance(value, list) and value and all(isinstance(path, str) and not is_nothing(path) for path in value):
        return value
    text = text_of(entry, key)
    return [text] if names is None else names.several(text)


def is_output(path: Path, out: Path) -> bool:
    """True for what an import wrote or is writing, which is no part of the source.

    That is a folder with a manifest, or, where the output was written into the source's own folder, what is in it.
    """
    own = path.name in _WRITTEN and holds_manifest(path.parent)
    return own or holds_manifest(path) or os.path.realpath(path) == os.path.realpath(out)


def holds_manifest(folder: Path) -> bool:
    """True for a folder that an import wrote."""
    return all(os.path.isfile(folder / name) for name in ("import.json", "manifest.jsonl"))
