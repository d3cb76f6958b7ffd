"""Scoring a folder of images by any rewards: one row per image, as a table on screen and as CSV or JSON lines.

Each image is scored against an example: its own from a manifest, found by the file's name, or one for all.
"""

import csv
import json
import math
import re
import secrets
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image

from customized_grpo import registry
from customized_grpo.atomic import replacing
from customized_grpo.data.folders import SUFFIXES, look_inside
from customized_grpo.data.images import ImageError, load_image
from customized_grpo.data.manifest import ManifestDataset
from customized_grpo.data.prompts import text_problem
from customized_grpo.data.rows import sound_rows
from customized_grpo.paths import folders_under
from customized_grpo.recipe.fields import RewardField
from customized_grpo.recipe.loading import RecipeError, recipe_of
from customized_grpo.recipe.sections import Section
from customized_grpo.rewards.base import RewardFailure, begin, close
from customized_grpo.scoring.score import load_rewards
from customized_grpo.scoring.scorer import Scorer
from customized_grpo.types import Example

_COLUMNS: Final = ("image", "example", "error")
"""Columns of a written table that are no scores."""
TABLES: Final = (".csv", ".jsonl")
_EXPECTED: Final = (*TABLES, ".json", ".txt", ".caption", ".html", ".md", ".yaml", ".yml")
"""Suffixes of files that lie beside images without being meant as such."""
PLACE: Final = "--reward "
"""What stands before a name in messages and accounts."""
_CHUNK: Final = 32
"""Limit on images of one example and size in memory at a time."""


class Scoring(Section):
    """Rewards given on the command line."""

    rewards: dict[str, RewardField]


@dataclass(frozen=True, slots=True)
class Scored:
    """An image's scores (NaN if a reward can't score it) with reasons; or the reason why the file is not an image."""

    image: str
    example: str
    scores: Mapping[str, float]
    error: str = ""
    broken: bool = False
    """True if the file is not an image."""


@dataclass(frozen=True, slots=True)
class Job:
    """An image and the example that it is scored against."""

    path: Path
    name: str
    key: str
    example: Callable[[], Example]


def read_rewards(types: Sequence[str], options: Sequence[str]) -> Mapping[str, Any]:
    """Sections of rewards from ``--reward`` and ``name.key=value``.

    Args:
        types: ``dino``, ``my_module:f``, or ``name=type`` if a type is used twice; the default name is the type's
            last part.
        options: ``dino.model=mini``.

    Raises:
        RecipeError: an unknown type or option, or a duplicate name.
    """
    chosen: list[str] = []
    names: set[str] = set()
    for text in types:
        name, equals, kind = text.rpartition("=")
        name = name if equals else re.split(r"[:.]", kind)[-1]
        if name in _COLUMNS:
            raise RecipeError(f"--reward {text}: {name!r} is another column of the table; name it: my_{name}={kind}")
        if name in names:
            raise RecipeError(f"--reward {text}: the name {name!r} comes twice; name one: --reward other={kind}")
        names.add(name)
        chosen.append(f"rewards.{name}.type={kind}")
    for option in options:
        if option.lstrip("-").split(".")[0] not in names:
            hint = registry.did_you_mean(option.split(".")[0], sorted(names))
            raise RecipeError(
                f"{option!r}: write an option of a reward as name.key=value;{hint} names: {', '.join(sorted(names))}"
            )
    scoring = recipe_of({"rewards": {}}, [*chosen, *(f"rewards.{one}" for one in options)], Scoring)
    return scoring.rewards


def find_images(folder: Path) -> list[Path]:
    """Images under a folder, or the one file given, in order of their names, without masks of other images.

    Raises:
        ValueError: there is no image.
    """
    if folder.is_file():
        if folder.suffix.lower() not in SUFFIXES:
            raise ValueError(f"{folder}: is no image; give a folder of images, or one of {', '.join(sorted(SUFFIXES))}")
        return [folder]
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no such folder or image")
    found = sorted(path for one in folders_under(folder) for path in look_inside(one).pictures)
    if not found:
        raise ValueError(f"{folder}: there is no image in it; looked for {', '.join(sorted(SUFFIXES))}")
    return found


def not_images(folder: Path) -> list[str]:
    """What ``find_images`` leaves out under a folder, each with the reason; text, tables and web pages are expected."""
    if not folder.is_dir():
        return []
    insides = [look_inside(one) for one in folders_under(folder)]
    masks = [f"{path}: is the mask of another image" for inside in insides for path in inside.masks]
    others = [(path, reason) for inside in insides for path, reason in inside.others.items()]
    return masks + [f"{path}: {why}" for path, why in others if path.suffix.lower() not in _EXPECTED]


def with_one_example(folder: Path, example: Example) -> list[Job]:
    """Every image against the same example.

    Raises:
        ValueError: there is no image, or the example's texts hold special tokens.
    """
    if problem := text_problem(example.prompt, example.subject):
        raise ValueError(problem)
    return [Job(path, _shown(path, folder), example.key, lambda: example) for path in find_images(folder)]


def with_manifest(folder: Path, manifest: Path) -> list[Job]:
    """Each image against its own example: the file is named ``<id>`` or ``<id>-<number>``, or is in a folder ``<id>``.

    Raises:
        ValueError: an image belongs to no example, the manifest can't be used, or a text of it holds special tokens.
    """
    dataset = ManifestDataset(ManifestDataset.Config(type="manifest", path=str(manifest)))
    index = {key: at for at, key in enumerate(dataset.keys())}
    jobs, strange = [], []
    for path in find_images(folder):
        candidates = dict.fromkeys((path.stem, re.sub(r"[-_.]\d+$", "", path.stem), path.parent.name))
        found = [name for name in candidates if name in index]
        if len(found) > 1:
            raise ValueError(
                f"{_shown(path, folder)} may be of example {found[0]!r} or {found[1]!r}, both of {manifest}; put "
                f"it in a folder of its example's name and call it by a number: {found[0]}/0.png"
            )
        key = next(iter(found), None)
        if key is None:
            strange.append(_shown(path, folder))
        else:
            jobs.append(Job(path, _shown(path, folder), key, lambda at=index[key]: dataset[at]))  # type: ignore[misc]
    if strange:
        raise ValueError(
            f"{len(strange)} of {len(strange) + len(jobs)} images are of no example of {manifest}, such as "
            f"{', '.join(strange[:3])}; call a file by its example's id ({next(iter(index))}.png), by id and number "
            f"({next(iter(index))}-0.png), or put it in a folder of that name"
        )
    for at in sorted({index[job.key] for job in jobs}):
        made_of = dataset.sources(at)
        if problem := text_problem(made_of.prompt, made_of.subject):
            raise ValueError(f"{made_of.place}: {problem}")
    return sorted(jobs, key=lambda job: (index[job.key], job.name))


def without_image(jobs: Sequence[Job], manifest: Path) -> list[str]:
    """Ids of a manifest's examples that no image is of."""
    there = {job.key for job in jobs}
    return [row.id for _, row in sound_rows(manifest) if row.id not in there]


def score(jobs: Sequence[Job], scorer: Scorer) -> Iterator[Scored]:
    """Yield rows in the order of ``jobs`` as they are finished. A broken image gets a row with the reason.

    Raises:
        RewardFailure: a reward can't go on; rows yielded before remain valid.
    """
    for _, same in groupby(jobs, key=lambda job: job.key):
        group = list(same)
        example = group[0].example()
        for at in range(0, len(group), _CHUNK):
            yield from _chunk(group[at : at + _CHUNK], example, scorer)


def _chunk(jobs: Sequence[Job], example: Example, scorer: Scorer) -> list[Scored]:
    rows: dict[str, Scored] = {}
    by_size: dict[tuple[int, int], list[tuple[Job, Image.Image]]] = {}
    for job in jobs:
        try:
            image = load_image(job.path)
        except ImageError as error:
            rows[job.name] = Scored(job.name, job.key, dict.fromkeys(scorer.names, math.nan), str(error), True)
        else:
            by_size.setdefault(image.size, []).append((job, image))
    for pairs in by_size.values():
        images = torch.from_numpy(np.stack([np.asarray(image) for _, image in pairs]))
        pending = scorer.submit(example, images)
        for at, ((job, _), row) in enumerate(zip(pairs, pending.result().tolist(), strict=True)):
            why = "; ".join(f"{name}: {said[at]}" for name, said in pending.reasons.items() if said[at])
            rows[job.name] = Scored(job.name, job.key, dict(zip(scorer.names, row, strict=True)), why)
    return [rows[job.name] for job in jobs]


def run(
    jobs: Sequence[Job],
    specs: Mapping[str, Any],
    device: torch.device,
    progress: Callable[[int, int], None],
    name: str | None = None,
) -> tuple[list[Scored], RewardFailure | None]:
    """Score everything, in whose name budgets are counted; after a failure, return it with the rows done before."""
    rewards = load_rewards(specs, device=device, place=PLACE)
    begin(rewards, name or secrets.token_hex(8), PLACE)
    rows: list[Scored] = []
    # A folder may hold nothing that can be scored; here that is for the user to judge.
    with ExitStack() as until_end:
        until_end.callback(close, rewards)
        scorer = until_end.enter_context(Scorer(rewards, max_failed_share=1.0))
        try:
            for row in score(jobs, scorer):
                rows.append(row)
                progress(len(rows), len(jobs))
        except RewardFailure as error:
            return rows, error
    return rows, None


def check_table(path: Path | None) -> None:
    """Refuse a table of unknown format before anything is scored."""
    if path is not None and path.suffix.lower() not in TABLES:
        raise ValueError(f"--out: given {str(path)!r}; end it in {' or '.join(TABLES)}")


def write_table(path: Path, rows: Sequence[Scored], names: Sequence[str]) -> None:
    """CSV or JSON lines by the suffix, complete or absent. Missing values are empty, or null."""
    records = [_record(row, names) for row in rows]
    with replacing(path) as aside, aside.open("w", encoding="utf-8", newline="") as file:
        if path.suffix.lower() == ".csv":
            table = csv.DictWriter(file, ["image", "example", *names, "error"])
            table.writeheader()
            table.writerows(records)
        else:
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def summary(rows: Sequence[Scored], names: Sequence[str]) -> list[tuple[str, ...]]:
    """(reward, n, mean, standard deviation, lowest, highest) per reward over the images that it scored."""
    lines = []
    for name in names:
        values = [row.scores[name] for row in rows if not math.isnan(row.scores[name])]
        numbers = ["-"] * 4
        if values:
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            numbers = [shown(v) for v in (statistics.fmean(values), spread, min(values), max(values))]
        lines.append((name, f"{len(values)} of {len(rows)}", *numbers))
    return lines


def silent(rows: Sequence[Scored], names: Sequence[str]) -> list[str]:
    """Rewards that scored no image at all."""
    return [name for name in names if all(math.isnan(row.scores[name]) for row in rows)]


def shown(value: float) -> str:
    """A score formatted for display."""
    return "-" if math.isnan(value) else f"{value:.4f}"


def _record(row: Scored, names: Sequence[str]) -> dict[str, Any]:
    values = {name: None if math.isnan(row.scores[name]) else row.scores[name] for name in names}
    return {"image": row.image, "example": row.example, **values, "error": row.error}


def _shown(path: Path, folder: Path) -> str:
    return path.name if path == folder else path.relative_to(folder).as_posix()
