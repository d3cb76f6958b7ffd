"""Tiny sources in the layouts that importers read."""

import json
from pathlib import Path
from typing import Any

from PIL import Image

DREAMBENCH = Path(__file__).parents[3] / "shared" / "data" / "dreambench"


def draw(path: Path, colour: Any = "red", size: tuple[int, int] = (32, 32), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)
    return path


def syncd(folder: Path, *, views: int = 3, objects: int = 2) -> list[dict[str, Any]]:
    """``<object>/<view>.png``, masks of a sixteenth of the pixels for the first object, and metadata.json."""
    entries = []
    for number in range(objects):
        name = f"{17 + number}"
        for view in range(views):
            draw(folder / name / f"{view}.png", (50 * number, 60 * view, 9))
            if number == 0:
                draw(folder / name / "masks" / f"{view}.jpg", 255, (8, 8), "L")
        entries.append(
            {
                "filenames": [f"{name}/{view}.png" for view in range(views)],
                "prompts": [f"a bag {number} in place {view}" for view in range(views)],
                "category": "rigid" if number == 0 else "deformable",
                "category_description": "a red bag.",
                "objaverse_id": "",
                "dino_scores": [[0.0, 0.9, 0.5], [0.0, 0.0, 0.99], [0.0, 0.0, 0.0]],
                "aesthetics_scores": {str(view): 5.0 + view for view in range(views)},
            }
        )
    (folder / "metadata.json").write_text(json.dumps(entries))
    return entries


def read(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]


def rejected(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "rejected.jsonl").read_text(encoding="utf-8").splitlines()]
