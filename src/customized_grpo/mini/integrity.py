"""Integrity of the embedded models: hashes of their files, written by a build and checked by ``doctor``."""

import json
from pathlib import Path

from customized_grpo.identity.hashes import file_hash
from customized_grpo.paths import ASSETS

MANIFEST = "manifest.json"
EXPECTED = ("flux", "dino", "clip", "judges/dino", "judges/clip")
"""Folders that the embedded recipes need."""


def check_assets(folder: Path = ASSETS) -> list[str]:
    """Problems of the embedded models, as sentences; empty if there are none."""
    missing = [name for name in EXPECTED if not (folder / name).is_dir()]
    if missing:
        return [f"missing: {', '.join(missing)}"]
    try:
        hashes: dict[str, str] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return [f"{MANIFEST} is missing or damaged, so the files can't be checked"]
    gone = sorted(name for name in hashes if not (folder / name).is_file())
    changed = sorted(name for name in hashes if name not in gone and file_hash(folder / name) != hashes[name])
    return [f"missing: {name}" for name in gone] + [f"changed since it was built: {name}" for name in changed]
