"""A synthetic run's folder, made from numbers alone, with everything that the report reads."""

import json
import math
from pathlib import Path

import numpy as np
import yaml
from PIL import Image, ImageDraw

from customized_grpo.evaluation.summary import Row
from customized_grpo.evaluation.tables import summarize

COLUMNS = ("identity_accuracy", "prompt_accuracy", "identity_all", "prompt_all", "both", "copy")
PLACES = {
    "on the beach": (238, 214, 160),
    "in the snow": (226, 236, 245),
    "at night": (38, 42, 78),
    "on the grass": (120, 178, 96),
}
COLOURS = ((201, 72, 60), (60, 120, 200), (222, 170, 40), (120, 80, 170))


def picture(colour: tuple[int, int, int], place: tuple[int, int, int], x: float, side: int = 64) -> Image.Image:
    """A round critter somewhere."""
    image = Image.new("RGB", (side * 4, side * 4), place)
    draw = ImageDraw.Draw(image)
    cx, cy, r = x * side * 4, side * 2.4, side
    draw.ellipse((cx - r, cy - r, cx + r, cy + r), fill=colour)
    for dx in (-0.35, 0.35):
        draw.ellipse((cx + dx * r - 18, cy - 40, cx + dx * r + 18, cy - 4), fill="white")
        draw.ellipse((cx + dx * r - 8, cy - 30, cx + dx * r + 8, cy - 14), fill=(20, 20, 26))
    return image.resize((side, side), Image.Resampling.LANCZOS)


def evaluation_rows(
    folder: Path,
    label: str,
    quality: float,
    n: int,
    seed: int = 0,
    prompt: str | None = None,
    save: bool = True,
) -> list[Row]:
    """Per-image rows whose values grow with ``quality``, with pictures."""
    rng, later = np.random.default_rng(seed), np.random.default_rng(seed + abs(int(1000 * quality)))
    rows: list[Row] = []
    for i in range(n):
        difficulty = rng.normal(size=2) * 0.18
        noise = later.normal(size=2) * 0.07
        identity, following = np.clip(
            np.array([0.52 + 0.16 * quality, 0.66 + 0.09 * quality]) + difficulty + noise, 0, 1
        )
        place = list(PLACES)[i % len(PLACES)]
        key = f"critter-{i:03d}"
        file = f"images/{label}/{key}-0.png"
        reference = f"references/{key}.png"
        if save:
            for path, image in (
                (
                    file,
                    picture(COLOURS[(i + (quality < identity * 0.4)) % 4], PLACES[place], 0.3 + 0.4 * following),
                ),
                (reference, picture(COLOURS[i % 4], PLACES[list(PLACES)[(i + 1) % 4]], 0.5)),
            ):
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                image.save(folder / path)
        values = {
            "identity_accuracy": identity,
            "prompt_accuracy": following,
            "identity_all": float(identity > 0.7),
            "prompt_all": float(following > 0.75),
            "both": float(identity > 0.7 and following > 0.75),
            "copy": float(following < 0.5),
        }
        rows.append(
            {
                "key": key,
                "prompt": prompt or f"a big ball wearing a red hat {place} on the left",
                "subject": "ball",
                "index": i,
                "image": 0,
                "values": {name: float(value) for name, value in values.items()},
                "file": file if save else None,
                "reference": reference if save else None,
                "of": 1,
                "fingerprint": "f",
            }
        )
    return rows


def write_rows(folder: Path, label: str, rows: list[Row]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{label}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_run(
    path: Path,
    *,
    steps: int = 60,
    planned: int = 60,
    n: int = 24,
    gain: float = 1.0,
    evaluate: bool = True,
    summary: bool = True,
    prompt: str | None = None,
    seed: int = 0,
    aggregator: str = "sars",
) -> Path:
    """A run of ``steps`` steps out of ``planned``."""
    path.mkdir(parents=True)
    config = {
        "run": {"dir": str(path), "seed": 42},
        "policy": {"type": "uno", "model": "mini"},
        "sampling": {"steps": 10, "shift": 3.0},
        "rewards": {
            "clip_t": {"type": "clip_t", "axis": "prompt"},
            "dino": {"type": "dino", "axis": "identity"},
        },
        "advantage": {"aggregator": {"type": aggregator}, "time_weights": {"type": "tdw"}},
        "train": {"steps": planned, "group_size": 12, "groups_per_step": 4, "evaluate_every": 20},
        "evaluate": {"metrics": {"oracle": {"type": "mini_oracle"}}},
    }
    (path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    rng = np.random.default_rng(seed)
    lines = []
    for step in range(1, steps + 1):
        u = step / planned
        line: dict[str, float | None] = {
            "step": step,
            "reward/clip_t/mean": 0.24 + 0.03 * gain * u + 0.012 * rng.normal(),
            "reward/clip_t/std": 0.03,
            "reward/dino/mean": 0.55 + 0.1 * gain * u + 0.03 * rng.normal(),
            "reward/dino/std": 0.08,
            "advantage/correlation": -0.42 + 0.2 * u + 0.06 * rng.normal(),
            "advantage/bonus_mean": -0.02 + 0.02 * rng.normal(),
            "advantage/share_synergy": 0.2 + 0.08 * u + 0.02 * rng.normal(),
            "advantage/share_conflict": 0.58 - 0.1 * u + 0.02 * rng.normal(),
            "advantage/share_both_down": 0.22 + 0.01 * rng.normal(),
            "reward/clip_t/zero_variance_share": 0.0,
            "reward/prompt/mean": 0.24,
            "reward/identity/mean": 0.55,
            "ratio/max_abs_log": abs(0.004 * rng.normal()) + 1e-4,
            "ratio/clip_share": 0.2 + 0.05 * rng.normal(),
            "grad/norm": None if step == 7 else 0.5 + 0.1 * rng.normal(),
            "time/encode": 0.02,
            "time/rollout": 1.1 + 0.1 * rng.random(),
            "time/decode": 0.08,
            "time/score": 0.21,
            "time/replay": 2.4,
            "time/optimizer": 0.04,
            "time/other": 0.03,
            "time/step": 3.9,
        }
        for k in rng.permutation(9)[:6]:
            prompt_weight = 0.7 if k < 3 else 0.3 + 0.4 / (1 + math.exp(20 * (k / 10 - 0.4))) if k < 8 else 0.5
            line |= {
                f"weight/prompt/step_{k:02d}": prompt_weight,
                f"weight/identity/step_{k:02d}": 1 - prompt_weight,
            }
            pull = (k + 4) / 8
            line |= {f"weight_effective/prompt/step_{k:02d}": prompt_weight * pull}
            line |= {f"weight_effective/identity/step_{k:02d}": (1 - prompt_weight) * pull}
        lines.append(line)
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if evaluate:
        folder = path / "evaluation"
        by_label = {}
        for step in range(0, steps + 1, 20):
            quality = gain * step / planned
            by_label[step] = evaluation_rows(folder, f"step-{step:06d}", quality, n, seed=3, prompt=prompt)
            write_rows(folder, f"step-{step:06d}", by_label[step])
        if summary:
            copies = [
                row
                | {
                    "values": row["values"]
                    | {"identity_accuracy": 0.97, "prompt_accuracy": 0.35 + 0.01 * (i % 5), "copy": 1.0}
                }
                for i, row in enumerate(by_label[0])
            ]
            summarize(
                folder,
                "heldout",
                {"base": by_label[0], "tuned": by_label[steps // 20 * 20], "copy_reference": copies},
            )
    return path
