"""From whatever makes images to scored rows on disk: the part of an evaluation that knows nothing of policies.

An example's images are made and scored by one rank, in the same batches everywhere (blocks of examples stay together),
so neither its pixels nor its values know of other ranks. Finished examples are kept as they come, so that a killed
evaluation goes on where it was.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps
from torch import Tensor

from customized_grpo.config import Evaluate
from customized_grpo.data.base import Dataset
from customized_grpo.evaluation.metrics import Scorer, score
from customized_grpo.evaluation.summary import Row, write_atomically
from customized_grpo.types import Example

Draw = Callable[[int, Example], UInt8[Tensor, "g h w 3"]]
"""(index of the example, example) to its images."""
Gather = Callable[[list[Row]], list[Row]]
"""This rank's rows to all ranks' rows, on every rank (accelerate's ``gather_object``)."""
Progress = Callable[[str, int, int], None]
"""(label, examples done by this rank, examples of this rank)."""

_REFERENCE_SIDE = 512


def quiet(label: str, done: int, total: int) -> None:
    """Progress for nobody."""


def alone(rows: list[Row]) -> list[Row]:
    """The gather of a single process."""
    return rows


def reference_copies(height: int, width: int) -> Draw:
    """The baseline that keeps the identity and ignores the prompt: the first reference, in the output's size."""

    def draw(index: int, example: Example) -> Tensor:
        copy = ImageOps.fit(example.references[0], (width, height), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(copy.convert("RGB")))[None]

    return draw


def evaluate_images(
    draw: Draw,
    dataset: Dataset,
    metrics: Mapping[str, Scorer],
    spec: Evaluate,
    *,
    made_by: Mapping[str, Any],
    rank: int,
    world: int,
    folder: Path,
    label: str,
    block: int = 1,
    gather: Gather = alone,
    progress: Progress = quiet,
) -> list[Row]:
    """Score whatever ``draw`` makes; see ``evaluate_policy``.

    ``made_by`` says what made the images, as JSON; ``block`` consecutive examples are drawn by one rank.
    """
    total = min(len(dataset), spec.limit or len(dataset))
    mine = [index for index in range(total) if index // block % world == rank]
    fingerprint = _fingerprint(spec, made_by)
    parts = folder / ".parts" / label
    kept = _kept(
        folder, [folder / f"{label}.jsonl", *sorted(parts.glob("*.jsonl"))], fingerprint, spec.save_images
    )
    parts.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    with (parts / f"{rank:05d}.jsonl").open("a", encoding="utf-8") as part:
        part.write("\n")  # ends the line that a killed process may have left half written
        for done, index in enumerate(mine):
            progress(label, done, len(mine))
            if index not in kept:
                made = _one_example(draw, index, dataset[index], metrics, spec, folder, label, fingerprint)
                part.write("".join(json.dumps(row, allow_nan=False) + "\n" for row in made))
                part.flush()
                kept[index] = made
            rows += kept[index]
        progress(label, len(mine), len(mine))
    everything = sorted(gather(rows), key=lambda row: (row["index"], row["image"]))
    if rank == 0:
        lines = "".join(json.dumps(row, allow_nan=False) + "\n" for row in everything)
        write_atomically(folder / f"{label}.jsonl", lines)
        for path in parts.glob("*.jsonl"):
            path.unlink()
    return everything


def _one_example(
    draw: Draw,
    index: int,
    example: Example,
    metrics: Mapping[str, Scorer],
    spec: Evaluate,
    folder: Path,
    label: str,
    fingerprint: str,
) -> list[Row]:
    images = draw(index, example)
    columns = score(metrics, example, images)
    name = file_name(example.key)
    files: list[str | None] = [None] * len(images)
    reference = None
    if index < spec.save_images:
        reference = f"references/{name}.png"
        _save(folder / reference, _strip(example.references))
        for i, image in enumerate(images):
            files[i] = f"images/{label}/{name}-{i}.png"
            _save(folder / f"images/{label}/{name}-{i}.png", Image.fromarray(image.numpy()))
    return [
        {
            "key": example.key,
            "prompt": example.prompt,
            "subject": example.subject,
            "index": index,
            "image": i,
            "values": {
                column: values[i] if math.isfinite(values[i]) else None for column, values in columns.items()
            },
            "file": files[i],
            "reference": reference,
            "of": len(images),
            "fingerprint": fingerprint,
        }
        for i in range(len(images))
    ]


def _fingerprint(spec: Evaluate, made_by: Mapping[str, Any]) -> str:
    # How many examples and pictures are kept changes no row, so a larger limit goes on from the rows that are there.
    recipe = spec.model_dump(mode="json", exclude={"limit", "save_images", "protocol", "steps"})
    text = json.dumps({"recipe": recipe, "made_by": dict(made_by)}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _kept(folder: Path, files: Sequence[Path], fingerprint: str, save_images: int) -> dict[int, list[Row]]:
    """Finished examples of an earlier, perhaps killed, evaluation: each image has a row, and a picture if asked for."""
    found: dict[int, dict[int, Row]] = {}
    for path in files:
        if not path.is_file():
            continue
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
                if row["fingerprint"] == fingerprint:
                    found.setdefault(row["index"], {})[row["image"]] = row
            except (ValueError, KeyError, TypeError):  # empty, or what a killed process was writing
                continue
    complete = {}
    for index, images in found.items():
        rows = [images[i] for i in sorted(images)]
        pictures = index >= save_images or all(
            row["file"] and (folder / row["file"]).is_file() for row in rows
        )
        if len(rows) == rows[0]["of"] and pictures:
            complete[index] = rows
    return complete


def file_name(key: str) -> str:
    """A key as a file's name: itself where it is plain, else its plain letters and a hash, so that no two keys meet."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", key).lstrip(".")[:96]
    if plain and plain == key:
        return key
    return f"{plain}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"


def _strip(references: Sequence[Image.Image]) -> Image.Image:
    """All references side by side at one height."""
    height = min(_REFERENCE_SIDE, max(image.height for image in references))
    scaled = [
        image.resize((max(1, round(image.width * height / image.height)), height), Image.Resampling.LANCZOS)
        if image.height != height
        else image
        for image in references
    ]
    strip = Image.new("RGB", (sum(image.width for image in scaled), height), "white")
    left = 0
    for image in scaled:
        strip.paste(image, (left, 0))
        left += image.width
    return strip


def _save(path: Path, image: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.tmp")
    image.save(aside, format="PNG")
    aside.replace(path)
