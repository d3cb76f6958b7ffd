"""The manifest: a JSONL data set, one object per line, with image paths relative to the manifest's folder.

``{"id": "bag-03", "prompt": "a bag in the snow", "references": ["bag/03.jpg"], "subject": "bag"}``,
and optionally ``masks`` (one path or null per reference), ``target`` and ``target_mask`` (the picture that the prompt
describes, which ``sft`` learns from), ``chosen`` and ``rejected`` (the better and the worse of two pictures, which
``dpo`` learns from), ``height`` and ``width`` (in pixels, of the image that the prompt asks for, where a recipe has
``train.buckets``), ``views`` (further pictures of the subject, for evaluation only) and ``extra`` (an object that
only plug-ins read; ``extra.subject_id`` names the individual, see ``prepare.split``). Reinforcement learning reads no
picture but the references.
"""

from pathlib import Path
from typing import final

from PIL import Image
from pydantic import Field, PositiveInt

from customized_grpo.data.base import KEYS, DatasetConfig, Sources
from customized_grpo.data.images import ImageError, load_image, load_mask
from customized_grpo.data.rows import ManifestError, Row, fit_mask, sound_rows
from customized_grpo.types import Example


@final
class ManifestDataset:
    """Examples of a JSONL manifest. Lines are checked at once; images are read on access."""

    @final
    class Config(DatasetConfig):
        """The ``data`` section of a recipe with ``type: manifest``."""

        path: str = Field(min_length=1, description="the .jsonl file; image paths are relative to its folder")
        limit: PositiveInt | None = Field(default=None, description="number of lines to use, from the first; null: all")

    def __init__(self, config: Config) -> None:
        self._path = Path(config.path).expanduser()
        self._root = self._path.parent
        self._rows: list[tuple[int, Row]] = []
        there: set[str] = set()
        for number, row in sound_rows(self._path):
            # Checked now: a missing file should stop a run at its start, not hours later.
            for name in (*row.references, *(mask for mask in row.masks if mask is not None)):
                if name not in there and not (self._root / name).is_file():
                    raise self._error(number, f"no such file: {self._root / name}")
                there.add(name)
            self._rows.append((number, row))
            if len(self._rows) == config.limit:
                break

    def __len__(self) -> int:
        return len(self._rows)

    def keys(self) -> list[str]:
        """Ids of all examples, in order; no image is read."""
        return [row.id for _, row in self._rows]

    def sources(self, index: int) -> Sources:
        """Text and files of one example; no image is read."""
        return sources(self._path, *self._rows[index])

    def targets(self, index: int, number: int) -> tuple[Image.Image, ...]:
        """The target of a line (number 1), or its chosen and its rejected picture (2)."""
        line, row = self._rows[index]
        try:
            return tuple(load_image(self._root / getattr(row, key)) for key in KEYS[number])
        except ImageError as error:
            raise self._error(line, str(error)) from error

    def lacking(self, number: int) -> list[str]:
        """Ids of the lines without these.

        Raises:
            ManifestError: a line names a file that isn't there.
        """
        lacking = []
        for line, row in self._rows:
            names = [getattr(row, key) for key in KEYS[number]]
            if None in names:
                lacking.append(row.id)
            elif gone := [name for name in names if not (self._root / name).is_file()]:
                raise self._error(line, f"no such file: {self._root / gone[0]}")
        return lacking

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self._rows):
            raise IndexError(f"example {index} of {len(self._rows)}")
        number, row = self._rows[index]
        try:
            references = tuple(load_image(self._root / path) for path in row.references)
            masks = tuple(None if path is None else load_mask(self._root / path) for path in row.masks)
        except ImageError as error:
            raise self._error(number, str(error)) from error
        fitted: list[Image.Image | None] = []
        for path, reference, mask in zip(row.masks, references, masks, strict=False):
            try:
                fitted.append(None if mask is None else fit_mask(mask, reference.size))
            except ValueError as error:
                raise self._error(number, f"mask {path!r} {error}") from error
        views = {"views": tuple(self._root / path for path in row.views)} if row.views else {}
        return Example(
            key=row.id,
            prompt=row.prompt,
            references=references,
            subject=row.subject,
            masks=tuple(fitted),
            size=row.size,
            extra={**row.extra, **views},
        )

    def _error(self, number: int, problem: str) -> ManifestError:
        return ManifestError(f"{self._path}:{number}: {problem}")


def sources(manifest: Path, number: int, row: Row) -> Sources:
    """What the row of a line names."""
    return Sources(
        root=manifest.parent,
        key=row.id,
        prompt=row.prompt,
        references=tuple(row.references),
        subject=row.subject,
        masks=tuple(row.masks),
        views=tuple(row.views),
        size=row.size,
        learnable={key: path for keys in KEYS.values() for key in keys if (path := getattr(row, key)) is not None},
        extra=row.extra,
        place=f"{manifest}:{number}",
    )
