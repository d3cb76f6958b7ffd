"""Generate, score and save images example by example: the part of an evaluation independent of policies.

An example's images are made and scored by one rank, in the same batches everywhere (blocks of examples stay together),
so neither pixels nor values depend on the other ranks. Finished examples are saved at once, so that a killed
evaluation continues where it stopped.
"""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from customized_grpo.atomic import replacing
from customized_grpo.console import OnProgress
from customized_grpo.data.base import Dataset
from customized_grpo.data.content import contents
from customized_grpo.data.images import load_image
from customized_grpo.evaluation.metrics import AnyMetric, Scores, score
from customized_grpo.evaluation.protocols import group_of
from customized_grpo.evaluation.standing import Earlier, Standing, StandsOn
from customized_grpo.evaluation.statistics import finite
from customized_grpo.evaluation.summary import Row, write_atomically
from customized_grpo.identity.hashes import FileHashes, file_hash, pixel_hash
from customized_grpo.paths import matching
from customized_grpo.recipe.config import Evaluate
from customized_grpo.rewards.base import AsyncGroupReward, AsyncReward
from customized_grpo.types import Example

Draw = Callable[[int, Example], UInt8[Tensor, "g h w 3"]]
"""Maps (index of the example, example) to its images."""
Gather = Callable[[list[Row]], list[Row]]
"""Gathers the rows of all ranks on every rank (accelerate's ``gather_object``)."""

_REFERENCE_SIDE = 256
_log = logging.getLogger(__name__)


def quiet(label: str, done: int, total: int) -> None:
    """Progress callback that does nothing."""


def alone(rows: list[Row]) -> list[Row]:
    """Identity gather, for one process."""
    return rows


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Output folder, the same on all ranks, and process context of an evaluation."""

    folder: Path
    rank: int = 0
    world: int = 1
    gather: Gather = alone
    progress: OnProgress = quiet
    hashes: FileHashes = field(default_factory=FileHashes)


def evaluate_images(
    draw: Draw,
    dataset: Dataset,
    metrics: Mapping[str, AnyMetric],
    spec: Evaluate,
    site: Site,
    label: str,
    *,
    made_by: Mapping[str, Any],
    judged: Callable[[Example], Example],
    total: int,
    block: int = 1,
) -> list[Row]:
    """Score whatever ``draw`` makes of the first ``total`` examples; see ``evaluate_policy``.

    Args:
        made_by: what made the images, by name, as JSON. Rows that stand on the same are kept (``standing``); if only
            what scores them changed, the images on disk are scored again.
        judged: maps an example to the one that metrics see, whose references may differ from the policy's.
        block: number of consecutive examples that one rank generates together.
    """
    mine = [index for index in range(total) if index // block % site.world == site.rank]
    standing = Standing.of(spec, metrics, made_by, site.hashes)
    folder, parts = site.folder, site.folder / ".parts" / label
    files = [folder / f"{label}.jsonl", *matching(parts, "*.jsonl")]
    earlier = Earlier(folder, files, spec.save_images, site.hashes)
    # All of them only where there is something to say about them.
    known = contents(dataset, range(total) if earlier and site.rank == 0 else mine, site.hashes)
    stand_on = {index: standing.row(one) for index, one in known.items()}
    if earlier and site.rank == 0:
        _say_news(label, earlier, stand_on, standing)
    parts.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    said: set[str] = set()
    names: dict[str, int] = {}
    with (parts / f"{site.rank:05d}.jsonl").open("a", encoding="utf-8") as part:
        part.write("\n")  # ends a line that a killed process may have left half written
        for done, index in enumerate(mine):
            site.progress(label, done, len(mine))
            found = earlier.kept(index, stand_on[index])
            answers = _answered(found, metrics) if found is not None and spec.retry_failed else None
            if found is None or answers is not None:
                example = dataset[index]
                there = earlier.files(index, stand_on[index], standing)
                images = draw(index, example) if there is None else _pictures(folder, there)
                scores = score(metrics, judged(example), images, runs=spec.runs, products=spec.products, known=answers)
                _say_once(scores.errors, example, label, said)
                saved = _save_pictures(folder, label, example, images) if index < spec.save_images else None
                found = _rows(index, example, scores, saved, len(images), stand_on[index])
                part.write("".join(json.dumps(row, allow_nan=False) + "\n" for row in found))
                part.flush()
            _check_names(found, names)
            rows += found
        site.progress(label, len(mine), len(mine))
    everything = sorted(site.gather(rows), key=lambda row: (row["index"], row["image"]))
    _check_names(everything, {})
    if site.rank == 0:
        lines = "".join(json.dumps(row, allow_nan=False) + "\n" for row in everything)
        write_atomically(folder / f"{label}.jsonl", lines)
        for path in matching(parts, "*.jsonl"):
            path.unlink()
        site.hashes.save()
    return everything


def _check_names(rows: Sequence[Row], names: dict[str, int]) -> None:
    """Check that a key is that of one example, whose index is noted in ``names``: it pairs rows and names pictures."""
    for row in rows:
        if (other := names.setdefault(row["key"], row["index"])) != row["index"]:
            raise ValueError(
                f"evaluate.data: examples {other} and {row['index']} are both called {row['key']!r}; a data set gives "
                "each example a key of its own, by which rows are paired and pictures named"
            )


def _say_once(errors: Mapping[str, str], example: Example, label: str, said: set[str]) -> None:
    """Log the first reason why a metric skipped an image; the summary's n says how many remain."""
    for name in errors.keys() - said:
        _log.warning("%s: %s could not score an image of %r: %s (said once)", label, name, example.key, errors[name])
    said.update(errors)


@dataclass(frozen=True, slots=True)
class _Saved:
    """Names in the folder of an example's pictures, with the hashes of the images' files."""

    reference: str
    files: Sequence[str]
    hashes: Sequence[str]


def _rows(
    index: int, example: Example, scores: Scores, saved: _Saved | None, count: int, stands_on: StandsOn
) -> list[Row]:
    found: list[Row] = []
    for i in range(count):
        row: Row = {
            "key": example.key,
            "prompt": example.prompt,
            "subject": example.subject,
            "group": group_of(example),
            "index": index,
            "image": i,
            "values": {column: finite(values[i]) for column, values in scores.values.items()},
            "file": saved.files[i] if saved else None,
            "picture": saved.hashes[i] if saved else None,
            "reference": saved.reference if saved else None,
            "of": count,
            "stands_on": stands_on,
        }
        if scores.runs:
            row["runs"] = {column: [finite(v) for v in values[i]] for column, values in scores.runs.items()}
        found.append(row)
    return found


def _say_news(label: str, earlier: Earlier, stand_on: Mapping[int, StandsOn], standing: Standing) -> None:
    if news := earlier.news(stand_on, standing):
        _log.warning("%s: %s", label, news)


def _answered(rows: Sequence[Row], metrics: Mapping[str, AnyMetric]) -> dict[str, list[list[float]]] | None:
    """Answers of judges and servers to keep when only the failed ones are requested again.

    Returns:
        Metric name to one list of runs per image; None if nothing failed. What a local model can't measure doesn't
        count as a failure, since asking again would change nothing.
    """
    answers = {
        name: [row.get("runs", {}).get(name, [row["values"].get(name)]) for row in rows]
        for name, metric in metrics.items()
        if isinstance(metric, AsyncReward | AsyncGroupReward)
    }
    whole = {name: runs for name, runs in answers.items() if not any(None in one for one in runs)}
    return whole if len(whole) < len(answers) else None


def _pictures(folder: Path, files: Sequence[str]) -> UInt8[Tensor, "g h w 3"]:
    return torch.stack([torch.from_numpy(np.array(load_image(folder / file))) for file in files])


def _save_pictures(folder: Path, label: str, example: Example, images: UInt8[Tensor, "g h w 3"]) -> _Saved:
    """Save the policy's references side by side, and each image."""
    name, strip = file_name(example.key), _strip(example.references)
    # Named by its content: all prompts of a subject share one file.
    reference = f"references/{pixel_hash(strip)[:16]}.png"
    if not (folder / reference).is_file():
        _save(folder / reference, strip)
    files = [f"images/{label}/{name}-{i}.png" for i in range(len(images))]
    hashes = [_save(folder / file, Image.fromarray(image.numpy())) for file, image in zip(files, images, strict=True)]
    return _Saved(reference, files, hashes)


def file_name(key: str) -> str:
    """File name for a key: the key itself if it is plain, else its plain letters and a hash against collisions."""
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


def _save(path: Path, image: Image.Image) -> str:
    """Write a PNG; returns its file's hash."""
    with replacing(path) as aside:
        image.save(aside, format="PNG", compress_level=1)
        return file_hash(aside)
