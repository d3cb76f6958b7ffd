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
from dataclasses import dataclass
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
from customized_grpo.data.images import load_image
from customized_grpo.evaluation.metrics import AnyMetric, Scores, score
from customized_grpo.evaluation.protocols import group_of
from customized_grpo.evaluation.statistics import finite
from customized_grpo.evaluation.summary import Row, write_atomically
from customized_grpo.recipe.config import Evaluate
from customized_grpo.rewards.base import AsyncGroupReward, AsyncReward, transport_of
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
        made_by: description of what made the images, as JSON. Rows of the same images and metrics are kept; if only the
            metrics changed, the images on disk are scored again.
        judged: maps an example to the one that metrics see, whose references may differ from the policy's.
        block: number of consecutive examples that one rank generates together.
    """
    mine = [index for index in range(total) if index // block % site.world == site.rank]
    drawn, fingerprint = _fingerprints(spec, made_by)
    folder, parts = site.folder, site.folder / ".parts" / label
    earlier = _complete(folder, [folder / f"{label}.jsonl", *sorted(parts.glob("*.jsonl"))], spec.save_images)
    parts.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    said: set[str] = set()
    with (parts / f"{site.rank:05d}.jsonl").open("a", encoding="utf-8") as part:
        part.write("\n")  # ends a line that a killed process may have left half written
        for done, index in enumerate(mine):
            site.progress(label, done, len(mine))
            found = earlier.get((index, fingerprint))
            known = _answered(found, metrics) if found is not None and spec.retry_failed else None
            if found is None or known is not None:
                example = dataset[index]
                images = _pictures(folder, [rows for (i, _), rows in earlier.items() if i == index], drawn)
                if images is None:
                    images = draw(index, example)
                scores = score(metrics, judged(example), images, runs=spec.runs, products=spec.products, known=known)
                _say_once(scores.errors, example, label, said)
                files = _save_pictures(folder, label, example, images) if index < spec.save_images else None
                found = _rows(index, example, scores, files, len(images), drawn, fingerprint)
                part.write("".join(json.dumps(row, allow_nan=False) + "\n" for row in found))
                part.flush()
            rows += found
        site.progress(label, len(mine), len(mine))
    everything = sorted(site.gather(rows), key=lambda row: (row["index"], row["image"]))
    if site.rank == 0:
        lines = "".join(json.dumps(row, allow_nan=False) + "\n" for row in everything)
        write_atomically(folder / f"{label}.jsonl", lines)
        for path in parts.glob("*.jsonl"):
            path.unlink()
    return everything


def _say_once(errors: Mapping[str, str], example: Example, label: str, said: set[str]) -> None:
    """Log the first reason why a metric skipped an image; the summary's n says how many remain."""
    for name in errors.keys() - said:
        _log.warning("%s: %s could not score an image of %r: %s (said once)", label, name, example.key, errors[name])
    said.update(errors)


def _rows(
    index: int,
    example: Example,
    scores: Scores,
    files: tuple[str, Sequence[str]] | None,
    count: int,
    drawn: str,
    fingerprint: str,
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
            "file": files[1][i] if files else None,
            "reference": files[0] if files else None,
            "of": count,
            "drawn": drawn,
            "fingerprint": fingerprint,
        }
        if scores.runs:
            row["runs"] = {column: [finite(v) for v in values[i]] for column, values in scores.runs.items()}
        found.append(row)
    return found


def _fingerprints(spec: Evaluate, made_by: Mapping[str, Any]) -> tuple[str, str]:
    """Fingerprints of all settings that decide the pixels, and of those plus the ones that decide the scores."""
    # The number of examples and saved pictures changes no row, so a larger limit continues from existing rows.
    scored = spec.model_dump(mode="json", exclude={"limit", "save_images", "steps", "retry_failed"})
    for name, section in spec.metrics.items():
        for field in transport_of(section):
            scored["metrics"][name].pop(field, None)
    pixels = {name: scored[name] for name in ("data", "images_per_prompt", "batch", "seed")}
    texts = (json.dumps({"recipe": one, "made_by": dict(made_by)}, sort_keys=True) for one in (pixels, scored))
    drawn, fingerprint = (hashlib.sha256(text.encode()).hexdigest()[:16] for text in texts)
    return drawn, fingerprint


def _complete(folder: Path, files: Sequence[Path], save_images: int) -> dict[tuple[int, str], list[Row]]:
    """Examples that an earlier, perhaps killed, evaluation finished, by index and fingerprint.

    Finished means that every image has its row, and its picture if pictures are saved.
    """
    found: dict[tuple[int, str], dict[int, Row]] = {}
    for path in files:
        if not path.is_file():
            continue
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
                found.setdefault((row["index"], row["fingerprint"]), {})[row["image"]] = row
            except (ValueError, KeyError, TypeError):  # empty, or half written by a killed process
                continue
    complete = {}
    for (index, fingerprint), images in found.items():
        rows = [images[i] for i in sorted(images)]
        pictures = index >= save_images or all(row["file"] and (folder / row["file"]).is_file() for row in rows)
        if len(rows) == rows[0]["of"] and pictures:
            complete[index, fingerprint] = rows
    return complete


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


def _pictures(folder: Path, earlier: Sequence[Sequence[Row]], drawn: str) -> UInt8[Tensor, "g h w 3"] | None:
    """An example's images from disk, if the same weights and sampler made them for other metrics."""
    for rows in earlier:
        files = [row["file"] for row in rows]
        if rows[0].get("drawn") == drawn and all(file and (folder / file).is_file() for file in files):
            return torch.stack([torch.from_numpy(np.array(load_image(folder / file))) for file in files])
    return None


def _save_pictures(
    folder: Path, label: str, example: Example, images: UInt8[Tensor, "g h w 3"]
) -> tuple[str, list[str]]:
    """Save the policy's references side by side, and each image; returns their names in the folder."""
    name, strip = file_name(example.key), _strip(example.references)
    # Named by its content: all prompts of a subject share one file.
    digest = hashlib.sha256(f"{strip.width} ".encode() + strip.tobytes()).hexdigest()[:16]
    reference = f"references/{digest}.png"
    if not (folder / reference).is_file():
        _save(folder / reference, strip)
    files = [f"images/{label}/{name}-{i}.png" for i in range(len(images))]
    for file, image in zip(files, images, strict=True):
        _save(folder / file, Image.fromarray(image.numpy()))
    return reference, files


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


def _save(path: Path, image: Image.Image) -> None:
    with replacing(path) as aside:
        image.save(aside, format="PNG", compress_level=1)
