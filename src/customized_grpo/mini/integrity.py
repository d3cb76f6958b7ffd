"""Integrity of the embedded models: hashes of their files, written by a build and checked by ``doctor``."""

import json
from pathlib import Path

from customized_grpo.atomic import file_hash
from customized_grpo.paths import ASSETS

MANIFEST = "manifest.json"
EXPECTED = ("flux", "dino", "clip", "judges/dino", "judges/clip")
"""Folders that the embedded recipes need."""


def write_manifest(folder: Path = ASSETS) -> Path:
    """Write the sha256 of every file under ``folder``, at the end of a build."""
    target = folder / MANIFEST
    hashes = {name: file_hash(folder / name) for name in _files(folder)}
    target.write_text(json.dumps(hashes, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return target


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


def _files(folder: Path) -> list[str]:
    found = (path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    return sorted(path.relative_to(folder).as_posix() for path in found)
