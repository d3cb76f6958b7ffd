"""Rows of a manifest, read and checked without images and without torch."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, final

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from customized_grpo.data.names import Names
from customized_grpo.data.prompts import is_blank
from customized_grpo.paths import is_inside, is_url
from customized_grpo.text import TextError
from customized_grpo.text.json_lines import read_json_lines

_SHOWN: Final = 3
"""Bad lines that an error shows."""
_LONGEST: Final = 200
"""Characters of a wrong value that an error repeats."""
_FORMS: Final = {
    "string_type": "a text",
    "string_unicode": "a text without halves of surrogate pairs",
    "list_type": 'a list of paths, such as ["bag/0.jpg"]',
    "too_short": "a list of one path or more",
    "int_type": "a whole number of pixels above 0",
    "greater_than": "a whole number of pixels above 0",
    "dict_type": 'an object, such as {"subject_id": "bag-3"}',
}
"""What a value must be, by pydantic's type of error."""
_NOTHING: Final = frozenset(("nan", "none", "null", "<na>", "n/a", "#n/a"))
"""Texts, in lower case, that programs write to a table's cell in which there is nothing."""


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
    target: str | None = None
    target_mask: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    height: PositiveInt | None = None
    width: PositiveInt | None = None
    views: list[str] = []
    extra: dict[str, Any] = {}

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of the image that the prompt asks for; None: it doesn't say."""
        return None if self.height is None or self.width is None else (self.height, self.width)

    def images(self) -> list[str]:
        """Paths of all pictures except masks: references first, then those to learn from, and the views."""
        return [*self._used(), *self.views]

    def _used(self) -> list[str]:
        learnt = [one for one in (self.target, self.chosen, self.rejected) if one is not None]
        return [*self.references, *learnt]

    def files(self) -> list[tuple[str, bool]]:
        """All distinct paths, each with whether it is a mask."""
        return list(dict.fromkeys([*self.needed(), *((path, False) for path in self.views)]))

    def needed(self) -> list[tuple[str, bool]]:
        """``files`` without those that are ``views`` alone: a row can't be used if one of them can't be read."""
        masks = [(mask, True) for _, mask in self.pairs()]
        return list(dict.fromkeys([*((path, False) for path in self._used()), *masks]))

    def pairs(self) -> list[tuple[str, str]]:
        """All pairs (image, mask)."""
        images = [*self.references, self.target]
        masks = [*(self.masks or [None] * len(self.references)), self.target_mask]
        return [
            (image, mask) for image, mask in zip(images, masks, strict=True) if image is not None and mask is not None
        ]


def read_rows(path: Path) -> Iterator[tuple[int, Row | ManifestError]]:
    """Read a manifest's non-blank lines: line number, and its row or error.

    The files that it names are not checked; where one is there under a name that means the same, it has that name.

    Raises:
        ManifestError: no such file, one without a line, or one that is no JSONL.
    """
    if not path.is_file():
        raise ManifestError(f"{path}: no such manifest; give the path of a .jsonl file")
    lines_by_id: dict[str, int] = {}
    try:
        names, number = Names(path.parent), 0
        for number, data in read_json_lines(path):
            try:
                if isinstance(data, ValueError):
                    raise data
                row = _found(row_of(data), names)
                first = lines_by_id.setdefault(row.id, number)
                if first != number:
                    raise ValueError(f"id {row.id!r} is already that of line {first}; ids must be unique")
            except ValueError as error:
                yield number, ManifestError(f"{path}:{number}: {error}")
            else:
                yield number, row
        if not number:
            raise ManifestError(f"{path}: the manifest is empty; it needs one JSON object per line")
    except TextError as error:
        raise ManifestError(str(error)) from error


def sound_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """``read_rows``, but a bad line is raised, with the others that follow it.

    Raises:
        ManifestError: no such file, or lines that are no rows.
    """
    rows = read_rows(path)
    for number, row in rows:
        if isinstance(row, ManifestError):
            raise _together([row, *(other for _, other in rows if isinstance(other, ManifestError))], path)
        yield number, row


def _together(errors: Sequence[ManifestError], path: Path) -> ManifestError:
    if len(errors) == 1:
        return errors[0]
    shown = "\n".join(map(str, errors[:_SHOWN]))
    return ManifestError(
        f"{len(errors):,} lines can't be read; 'customized-grpo data check {path} --usable FILE' lists them and writes "
        f"the others:\n{shown}" + ("\n..." if len(errors) > _SHOWN else "")
    )


def is_nothing(value: Any) -> bool:
    """True for null, NaN, blank text, and what programs write for them into a table: ``nan``, ``None``, ``N/A``."""
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, str) and (is_blank(value) or value.strip().lower() in _NOTHING))


def individuals(extra: Mapping[str, Any]) -> tuple[str, ...]:
    """Individuals that ``extra.subject_id`` names, one or a list; empty if it names none."""
    given = extra.get("subject_id")
    return tuple(str(name) for name in (given if isinstance(given, list) else [given]) if not is_nothing(name))


def fit_mask(mask: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Mask at its image's size, scaled if the aspect ratio is the same, since attention maps are smaller.

    Raises:
        ValueError: it has another aspect ratio.
    """
    if mask.size == size:
        return mask
    if not same_shape(mask.size, size):
        raise ValueError(f"is {_by(mask.size)} but its image is {_by(size)}")
    return mask.resize(size, Image.Resampling.BILINEAR)


def same_shape(mask: tuple[int, int], image: tuple[int, int]) -> bool:
    """True if a mask has its image's aspect ratio, up to rounding to whole pixels."""
    (w, h), (width, height) = mask, image
    scale = min(w / width, h / height)
    return abs(w - width * scale) < 1 and abs(h - height * scale) < 1


def row_of(data: Any) -> Row:
    """A row from JSON.

    Raises:
        ValueError: it isn't one; the message names the key.
    """
    try:
        row = Row.model_validate(data)
    except ValidationError as error:
        raise ValueError(_first_problem(error)) from error
    if is_blank(row.prompt):
        raise ValueError(f"prompt: is empty; given {row.prompt!r}, in which there is nothing to see")
    if row.masks and len(row.masks) != len(row.references):
        raise ValueError(f"{len(row.masks)} masks for {len(row.references)} references; give one or null each")
    if (row.height is None) != (row.width is None):
        given, other = ("height", "width") if row.width is None else ("width", "height")
        raise ValueError(f"{given} without {other}; give both, of the image that the prompt asks for, or none")
    if (row.chosen is None) != (row.rejected is None):
        given, other = ("chosen", "rejected") if row.rejected is None else ("rejected", "chosen")
        raise ValueError(f"{given} without {other}; give both, the better and the worse of two pictures, or none")
    if row.chosen is not None and row.chosen == row.rejected:
        raise ValueError(f"chosen and rejected are one file, {row.chosen!r}; give two pictures")
    if row.target_mask is not None and row.target is None:
        raise ValueError("target_mask without target; give both or none")
    for path in (*row.images(), *(mask for _, mask in row.pairs())):
        if is_url(path):
            raise ValueError(f"{path!r} is a URL; download the file, and give its path in the manifest's folder")
        if not is_inside(path):
            raise ValueError(f"path {path!r} is not inside the manifest's folder; use a relative path without '..'")
    return row


def _found(row: Row, names: Names) -> Row:
    """The row with the names that its files have here (``Names``)."""
    here = {path: names.relative(path) for path in (*row.images(), *(mask for _, mask in row.pairs()))}
    if all(path == name for path, name in here.items()):
        return row

    def renamed(paths: Sequence[str]) -> list[str]:
        return [here[path] for path in paths]

    return row.model_copy(
        update={
            "references": renamed(row.references),
            "views": renamed(row.views),
            "masks": [None if mask is None else here[mask] for mask in row.masks],
            **{
                key: None if (path := getattr(row, key)) is None else here[path]
                for key in ("target", "target_mask", "chosen", "rejected")
            },
        }
    )


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
    given = _shown(first["input"])
    if not first["loc"]:
        return f"is no JSON object but {given}; a line has the keys {allowed}"
    return f"{where}: given {given}; it must be {_FORMS.get(first['type'], 'of another form')}"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=repr).encode(errors="backslashreplace").decode()
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
