"""Pictures that a training leaves: groups of its rollouts, and fixed prompts drawn from fixed noise as it goes on.

``samples/step-000010.png`` is a group that was learnt from. ``samples/fixed/step-000050/0.png`` is the first fixed
prompt as the adapter of that step draws it, ``step-000050.json`` beside it says what it is and what it scores, and
``samples/fixed/progress.png`` lays the steps side by side. Everything but the trained weights is the same every time.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from customized_grpo.atomic import replacing
from customized_grpo.data.captions import cut, fold, font
from customized_grpo.data.images import ImageError, load_image, save_image
from customized_grpo.report.samples import FIXED, records_of, title
from customized_grpo.sampling.rollout import sample_images
from customized_grpo.sampling.schedule import sigma_grid
from customized_grpo.seeding import generator
from customized_grpo.training.distributed import any_rank
from customized_grpo.training.parts import Fixed, Parts
from customized_grpo.training.tracking import is_every
from customized_grpo.types import Example, Rollout

_SMALLEST, _LARGEST = 144, 384
"""Sides of a picture on the sheet, in pixels: the miniature's are enlarged, others made smaller."""


def save_group(
    path: Path, example: Example, images: UInt8[Tensor, "g h w 3"], values: Mapping[str, Sequence[float]]
) -> None:
    """A group as a picture, its first reference on the left, and the samples' values as JSON (NaN as null)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = images.shape[1:3]
    gap = max(2, width // 16)
    strip = Image.new("RGB", ((width + gap) * len(images) + width + gap, height), "white")
    strip.paste(ImageOps.fit(example.references[0], (width, height)), (0, 0))
    for column, image in enumerate(np.asarray(images)):
        strip.paste(Image.fromarray(image), ((width + gap) * (column + 1) + gap, 0))
    strip.save(path)
    rows = {"key": example.key, "prompt": example.prompt} | {
        name: [_rounded(v) for v in of] for name, of in values.items()
    }
    path.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def save_sampled(parts: Parts, done: int, group: Rollout, values: Callable[[], Mapping[str, Sequence[float]]]) -> None:
    """The main process's first group, if it is due after ``done`` steps: of the first step and every N."""
    every = parts.recipe.train.save_samples_every
    if parts.accelerator.is_main_process and (is_every(every, done) or (every > 0 and done == 1)):
        file = parts.folder / "samples" / f"{_label(done)}.png"
        save_group(file, group.example, group.images, values())


def is_due(parts: Parts, done: int) -> bool:
    """Whether the fixed prompts are drawn after ``done`` steps: before the first one, every N, and after the last."""
    every = parts.recipe.samples.every
    return parts.fixed is not None and (is_every(every, done) or done == parts.recipe.train.steps)


def is_owed(parts: Parts, start: int) -> bool:
    """Whether a run that starts at ``start`` lacks its pictures of that step; all ranks agree: they draw together.

    Those of the untrained policy may be of an earlier try in the same folder, so they are always drawn.
    """
    return is_due(parts, start) and (start == 0 or any_rank(parts.accelerator, _asked(parts) != _shown(parts, start)))


def draw_fixed(parts: Parts, done: int) -> dict[str, float]:
    """Draw, score and save the fixed prompts after ``done`` steps, by the adapter as it would be saved now.

    All ranks draw all of them, because a sharded model needs all ranks in each forward; the main one scores and saves.

    Returns:
        Metrics: the time that it took.
    """
    fixed = parts.fixed
    assert fixed is not None
    examples = [fixed.examples[index] for index in range(len(fixed.examples))]
    with parts.clock.phase("samples"):
        with parts.averaged():
            images = [_drawn(parts, fixed, *one) for one in enumerate(examples)]
        if parts.accelerator.is_main_process:
            rows = [_saved(parts, done, *one) for one in zip(range(len(images)), examples, images, strict=True)]
            with replacing(_record(parts.folder, done)) as aside:
                aside.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
            _write_progress(parts.folder / FIXED, done)
    return {"time/samples": parts.clock.drain()["time/samples"]}


def captioned(parts: Parts, done: int) -> list[tuple[Image.Image, str]]:
    """The fixed prompts' pictures after ``done`` steps with prompt and scores, for trackers; none where none are."""
    record = _record(parts.folder, done)
    if not (parts.fixed and parts.accelerator.is_main_process and parts.accelerator.trackers and record.is_file()):
        return []
    rows = json.loads(record.read_text(encoding="utf-8"))
    return [(load_image(record.parent / row["file"]), caption(row["prompt"], row["values"])) for row in rows]


def caption(prompt: str, values: Mapping[str, float | None]) -> str:
    """A picture's prompt and its scores by the run's rewards."""
    scores = ", ".join(f"{name} {value:.3g}" for name, value in values.items() if value is not None)
    return f"{prompt} | {scores}" if scores else prompt


def _saved(parts: Parts, done: int, index: int, example: Example, image: UInt8[Tensor, "1 h w 3"]) -> dict[str, Any]:
    """Score and save one picture, and its reference; returns its row of the record."""
    folder = parts.folder / FIXED
    scores = parts.scorer.beside(example, image) if parts.recipe.rewards else {}
    name, reference = f"{_label(done)}/{index}.png", f"reference-{index}.png"
    _save(folder / name, Image.fromarray(image[0].numpy()))
    _save(folder / reference, ImageOps.contain(example.references[0], (_LARGEST, _LARGEST)))
    values = {key: _rounded(one) for key, (one,) in scores.items()}
    return {"key": example.key, "prompt": example.prompt, "file": name, "reference": reference, "values": values}


def _label(done: int) -> str:
    """Name of what was made after ``done`` steps."""
    return f"step-{done:06d}"


@torch.no_grad()
def _drawn(parts: Parts, fixed: Fixed, index: int, example: Example) -> UInt8[Tensor, "1 h w 3"]:
    """One fixed prompt from its fixed noise, by the deterministic sampler."""
    recipe = parts.recipe
    if fixed.held_out:
        policy, section = parts.held_out_policy(), recipe.evaluated
    else:
        policy, section = parts.objective_of(example).policy, parts.buckets.of(example.size)
    sigmas = sigma_grid(section, recipe.sampling.shift, recipe.picture_steps, policy.latent_shape[0])
    noise = torch.randn(1, *policy.latent_shape, generator=generator(recipe.samples.seed, "samples", 0, index))
    return sample_images(policy, fixed.encode(example), noise, sigmas).cpu()


def _asked(parts: Parts) -> list[list[str]]:
    """Key and prompt of each fixed prompt of the recipe."""
    examples = () if parts.fixed is None else map(parts.fixed.examples.__getitem__, range(len(parts.fixed.examples)))
    return [[one.key, one.prompt] for one in examples]


def _shown(parts: Parts, done: int) -> list[list[str]]:
    """Key and prompt of each picture after ``done`` steps; empty where none is."""
    record = _record(parts.folder, done)
    rows = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else []
    return [[row["key"], row["prompt"]] for row in rows]


def _record(folder: Path, done: int) -> Path:
    return folder / FIXED / f"{_label(done)}.json"


def _save(path: Path, image: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(image, path)


def _rounded(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def _write_progress(folder: Path, done: int) -> None:
    """Lay the pictures of some steps up to ``done`` side by side, a row for each prompt, with its scores under each."""
    records = records_of(folder, _label(done))
    newest = records[max(records)]
    columns: dict[str, list[Mapping[str, Any]]] = {"reference": [{"file": one["reference"]} for one in newest]}
    columns |= {title(step): rows for step, rows in records.items()}
    side = min(_LARGEST, max(_SMALLEST, *load_image(folder / newest[0]["file"]).size))
    gap, line, head = 10, 18, 28
    scores = max(len(row["values"]) for row in newest)
    sheet = Image.new(
        "RGB", (gap + len(columns) * (side + gap), head + len(newest) * (side + (3 + scores) * line)), "white"
    )
    pen = ImageDraw.Draw(sheet)
    for column, (head_of, cells) in enumerate(columns.items()):
        left = gap + column * (side + gap)
        pen.text((left, 6), cut(head_of, 14, side), "black", font(14))
        for row, cell in enumerate(cells[: len(newest)]):
            top = head + row * (side + (3 + scores) * line) + 2 * line
            try:
                picture = load_image(folder / cell["file"])
            except ImageError:  # somebody tidied up
                continue
            picture = ImageOps.contain(picture, (side, side), Image.Resampling.LANCZOS)
            sheet.paste(picture, (left, top))
            for at, (name, value) in enumerate(cell.get("values", {}).items()):
                shown = "none" if value is None else f"{value:.3g}"
                pen.text((left, top + side + 2 + at * line), cut(f"{name} {shown}", 12, side), "black", font(12))
    for row, cell in enumerate(newest):
        lines = fold(cell["prompt"], 13, sheet.width - 2 * gap, most=2)
        for at, text in enumerate(lines, start=2 - len(lines)):
            pen.text((gap, head + row * (side + (3 + scores) * line) + at * line), text, "black", font(13))
    save_image(sheet, folder / "progress.png")
