"""The neutral data set: one JSON object a line, image paths relative to the manifest's folder.

``{"id": "bag-03", "prompt": "a bag in the snow", "references": ["bag/03.jpg"], "subject": "bag"}``,
and optionally ``masks`` (one path or null a reference) and ``extra`` (an object that only plug-ins read).
"""

import json
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, final

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from customized_grpo.data.base import DatasetConfig
from customized_grpo.data.images import ImageError, load_image, load_mask
from customized_grpo.types import Example


@final
class ManifestError(ValueError):
    """A manifest that can't be used; the message names the file and the line."""


@final
class Row(BaseModel):
    """One line of a manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    # It names files and cache entries, so it must be safe there.
    id: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$")
    prompt: str = Field(pattern=r"\S")
    references: list[str] = Field(min_length=1)
    subject: str = ""
    masks: list[str | None] = []
    extra: dict[str, Any] = {}


@final
class ManifestDataset:
    """Examples of a JSONL manifest. Lines are checked at once, images read when an example is asked for."""

    @final
    class Config(DatasetConfig):
        """The ``data`` section of a recipe with ``type: manifest``."""

        path: str = Field(min_length=1, description="the .jsonl file; image paths are relative to its folder")
        limit: PositiveInt | None = Field(
            default=None, description="use only the first so many lines; null: all"
        )

    def __init__(self, config: Config) -> None:
        self._path = Path(config.path).expanduser()
        if not self._path.is_file():
            raise ManifestError(f"{config.path}: no such manifest; give the path of a .jsonl file")
        self._root = self._path.parent
        self._rows: list[tuple[int, Row]] = []
        lines_by_id: dict[str, int] = {}
        with self._path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                row = self._read(number, line)
                first = lines_by_id.setdefault(row.id, number)
                if first != number:
                    raise self._error(
                        number, f"id {row.id!r} is already that of line {first}; ids must be unique"
                    )
                self._rows.append((number, row))
                if len(self._rows) == config.limit:
                    break
        if not self._rows:
            raise ManifestError(f"{self._path}: the manifest is empty; it needs one JSON object a line")

    def __len__(self) -> int:
        return len(self._rows)

    def keys(self) -> list[str]:
        """The ids of all examples, in order; no image is read."""
        return [row.id for _, row in self._rows]

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self._rows):
            raise IndexError(f"example {index} of {len(self._rows)}")
        number, row = self._rows[index]
        try:
            references = tuple(load_image(self._root / path) for path in row.references)
            masks = tuple(None if path is None else load_mask(self._root / path) for path in row.masks)
        except ImageError as error:
            raise self._error(number, str(error)) from error
        for path, reference, mask in zip(row.masks, references, masks, strict=False):
            if mask is not None and mask.size != reference.size:
                raise self._error(
                    number, f"mask {path!r} is {_size(mask)} but its reference is {_size(reference)}"
                )
        return Example(
            key=row.id,
            prompt=row.prompt,
            references=references,
            subject=row.subject,
            masks=masks,
            extra=row.extra,
        )

    def _read(self, number: int, line: bytes) -> Row:
        try:
            # utf-8-sig: some editors begin a file with a byte-order mark.
            data = json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise self._error(
                number, f"is no UTF-8 text ({error.reason}); save the manifest as UTF-8"
            ) from error
        except json.JSONDecodeError as error:
            raise self._error(
                number, f"is no JSON ({error.msg}, column {error.colno}); write one object a line"
            ) from error
        try:
            row = Row.model_validate(data)
        except ValidationError as error:
            raise self._error(number, _first_problem(error)) from error
        if row.masks and len(row.masks) != len(row.references):
            raise self._error(
                number,
                f"{len(row.masks)} masks for {len(row.references)} references; give one or null each",
            )
        for path in (*row.references, *(path for path in row.masks if path is not None)):
            self._check_path(number, path)
        return row

    def _check_path(self, number: int, path: str) -> None:
        """A manifest may come from anywhere, so it must not reach outside its folder (links in there may)."""
        windows = PureWindowsPath(path)
        outside = PurePosixPath(path).is_absolute() or windows.drive or windows.root or ".." in windows.parts
        if not path or "\0" in path or outside:
            raise self._error(
                number, f"path {path!r} is not inside the manifest's folder; use a relative path without '..'"
            )
        # Looked for now: a missing file should stop a run at its start and not in its night.
        if not (self._root / path).is_file():
            raise self._error(number, f"no such file: {self._root / path}")

    def _error(self, number: int, problem: str) -> ManifestError:
        return ManifestError(f"{self._path}:{number}: {problem}")


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "the line"
    allowed = ", ".join(Row.model_fields)
    if first["type"] == "extra_forbidden":
        return f"unknown key {where!r}; allowed: {allowed}"
    if first["type"] == "missing":
        return f"the key {where!r} is missing; a line has the keys {allowed}"
    if where == "id" and first["type"] == "string_pattern_mismatch":
        return f"id: given {first['input']!r}; use at most 128 letters, digits, '.', '_', '-': it names files"
    if where == "prompt" and first["type"] == "string_pattern_mismatch":
        return "prompt: is empty"
    return f"{where}: {first['msg']}, given {first['input']!r}"


def _size(image: Image.Image) -> str:
    return f"{image.width} x {image.height}"
