"""Importing a list of pairs as long as Customized-GRPO's: wall time, CPU time, memory, and what the report counts.

    python benchmarks/imports.py --entries 6924

The list and its pictures are made up, in the layout of ``train_1w_syncd_embedding.json`` over the folders of SynCD,
with masks for every other object; one entry in 500 is broken, in one of four ways. Each import is the real command in a
process of its own: pixels read or heads alone, linked or copied, by one worker or by as many as there are cores. The
same rows must come of all. The result goes to benchmarks/results/imports.json.
"""

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from page_parts import table
from PIL import Image

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "imports.json"
VIEWS = 3
PLACES = ("on a beach", "in the snow", "on a wooden table", "in a library", "at night")
BREAKS = ("no text", "no file", "truncated picture", "outside")
OPTIONS: dict[str, tuple[str, ...]] = {
    "one worker": ("--workers", "1"),
    "all cores": ("--workers", str(os.cpu_count() or 1)),
    "heads alone": ("--workers", "1", "--no-decode"),
    "copied": ("--workers", "1", "--images", "copy"),
}


def synthesise(folder: Path, entries: int, side: int) -> Path:
    """The list, and under ``images/`` the views of as many objects as it needs."""
    images, listed = folder / "images", []
    every = min(500, max(1, entries // len(BREAKS)))  # a short list has each kind once, too
    for number in range(entries):
        item, pair = divmod(number, VIEWS)
        reference, target = pair, (pair + 1) % VIEWS
        if pair == 0:
            _draw(images / str(item), item, side)
        entry = {
            "id": str(number),
            "category": "rigid" if item % 5 else "deformable",
            "category_description": f"a thing of kind {item % 97}.",
            "ref_img": f"{item}/{reference}.png",
            "img": f"{item}/{target}.png",
            "ref_prompt": f"A thing of kind {item % 97} {PLACES[reference]}.",
            "text": f"A thing of kind {item % 97} {PLACES[(item + target) % len(PLACES)]}.",
            "txt_save_path": f"text/{number}.pt",
            "vec_save_path": f"vector/{number}.pt",
        }
        listed.append(_broken(entry, images, number // every) if number % every == every - 1 else entry)
    path = folder / "train.json"
    path.write_text(json.dumps(listed), encoding="utf-8")
    return path


def _draw(folder: Path, item: int, side: int) -> None:
    """Three pictures of noise in the colour of the object, which PNG can't shrink; masks of every other object."""
    (folder / "masks").mkdir(parents=True)
    noise = np.random.default_rng(item)
    colour = noise.integers(0, 200, 3)
    for view in range(VIEWS):
        pixels = (colour + noise.integers(0, 56, (side, side, 3))).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{view}.png", compress_level=1)
        if item % 2:
            Image.new("L", (side // 4, side // 4), 255).save(folder / "masks" / f"{view}.jpg")


def _broken(entry: dict[str, str], images: Path, which: int) -> dict[str, str]:
    match BREAKS[which % len(BREAKS)]:
        case "no text":
            return entry | {"text": " "}
        case "no file":
            return entry | {"img": "nowhere/0.png"}
        case "truncated picture":
            whole = images / entry["ref_img"]
            half = whole.with_name("half.png")
            half.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
            return entry | {"ref_img": half.relative_to(images).as_posix()}
        case _:
            return entry | {"ref_img": "../../secret.png"}


def imported(source: Path, out: Path, options: Sequence[str]) -> dict[str, Any]:
    """One import in a process of its own: seconds, memory, and the counts of its report."""
    command = [sys.executable, "-m", "customized_grpo", "data", "import", "syncd-json", str(source)]
    command += ["--out", str(out), f"images={source.parent / 'images'}", *options]
    log = out.with_suffix(".log")
    began = time.monotonic()
    with log.open("w") as file:
        variables = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        job = subprocess.Popen(command, env=variables, stdout=file, stderr=file)
        _, status, used = os.wait4(job.pid, 0)
    seconds = time.monotonic() - began
    if status:
        raise RuntimeError(log.read_text()[-3000:])
    report = json.loads((out / "import.json").read_text(encoding="utf-8"))
    lines = (out / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [[row["id"], row["prompt"], row["subject"]] for row in map(json.loads, lines)]
    return {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 2),  # its workers' too
        "peak_mib": round(used.ru_maxrss / 1024, 1),  # of the largest of its processes
        "report": {key: report[key] for key in ("rows", "rejected", "masks_dropped", "images", "problems")},
        "rows_sha256": hashlib.sha256(json.dumps(texts).encode()).hexdigest(),
    }


def page(result: dict[str, Any]) -> str:
    """A line an import."""
    head = ["Import", "Wall s", "CPU s", "Peak MiB", "Rows", "Rejected", "Images"]
    return table(
        head,
        [
            [
                name,
                f"{one['seconds']:.1f}",
                f"{one['cpu_seconds']:.1f}",
                f"{one['peak_mib']:.0f}",
                *(str(one["report"][key]) for key in ("rows", "rejected", "images")),
            ]
            for name, one in result["imports"].items()
        ],
    )


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=6924)
    parser.add_argument("--side", type=int, default=128, help="pixels of a picture's side")
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args(arguments)
    result: dict[str, Any] = {
        "entries": given.entries,
        "side": given.side,
        "machine": {
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "system": platform.platform(),
        },
        "imports": {},
    }
    with tempfile.TemporaryDirectory() as name:
        source = synthesise(Path(name), given.entries, given.side)
        result["list_bytes"] = source.stat().st_size
        for kind, options in OPTIONS.items():
            result["imports"][kind] = imported(source, Path(name) / kind.replace(" ", "-"), options)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(page(result) + "\n")
    # heads alone may not show that a picture is cut off, so that import may have a row more
    same = {one["rows_sha256"] for kind, one in result["imports"].items() if kind != "heads alone"}
    return int(len(same) != 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
