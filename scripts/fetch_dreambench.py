#!/usr/bin/env python3
"""Fetch DreamBench from its public repository: ``scripts/fetch_dreambench.py FOLDER`` (112 MB, 161 files).

Nothing else of this project downloads it. A file that is there and whole is kept, a half-fetched one goes on where it
stopped, and each is checked against its git blob hash at a pinned commit (``scripts/dreambench_files.txt``). Licence:
CC BY 4.0; about half of the photos are under the Unsplash licence (``dataset/references_and_licenses.txt``).
"""

import argparse
import hashlib
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

FILES = Path(__file__).with_name("dreambench_files.txt")
COMMIT = "4f887af7970a06fc0cd3adaa1d0b368547d6a1d0"
SOURCE = f"https://raw.githubusercontent.com/google/dreambooth/{COMMIT}"
TRIES = 4
TIMEOUT_S = 60
CHUNK = 1 << 16


def read_files(path: Path = FILES) -> list[tuple[str, int, str]]:
    """(git blob hash, bytes, path) of every file."""
    lines = [
        line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")
    ]
    return [(digest, int(size), name) for digest, size, name in (line.split(" ", 2) for line in lines)]


def blob_hash(path: Path) -> str:
    """The hash under which git stores a file of this content."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def fetch(source: str, target: Path, size: int, digest: str) -> bool:
    """Bring one file, unless it is there and whole; whether anything was fetched.

    Raises:
        ValueError: what came is not the file, on every try.
        OSError: the source can't be reached, on every try.
    """
    if target.is_file() and target.stat().st_size == size and blob_hash(target) == digest:
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    problem: OSError | ValueError = ValueError(f"{source}: nothing came")
    for attempt in range(TRIES):
        if attempt:
            time.sleep(0.5 * 2**attempt)
        try:
            _download(source, part, size)
            if part.stat().st_size != size or blob_hash(part) != digest:
                part.unlink()
                raise ValueError(
                    f"{source}: what came is not the file that was pinned; is a proxy in between?"
                )
            part.replace(target)
            return True
        except urllib.error.HTTPError as error:
            if error.code in (401, 403, 404, 410):
                raise
            problem = error
        except (OSError, ValueError) as error:
            problem = error
    raise problem


def _download(source: str, part: Path, size: int) -> None:
    """Append to ``part`` what is missing of it; a source that can't go on in the middle sends all of it again."""
    have = part.stat().st_size if part.is_file() else 0
    if have >= size:
        part.unlink()
        have = 0
    request = urllib.request.Request(source, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
        resumed = have and answer.status == 206
        with part.open("ab" if resumed else "wb") as file:
            while chunk := answer.read(CHUNK):
                file.write(chunk)


def main() -> int:
    """Fetch all files, showing each; 0 when everything is there and whole."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where to; give it to a recipe as evaluate.data.path")
    parser.add_argument("--source", default=SOURCE, help="a mirror with the same files")
    parser.add_argument("--files", type=Path, default=FILES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    files = read_files(given.files)
    for number, (digest, size, name) in enumerate(files, start=1):
        try:
            fetched = fetch(f"{given.source}/{name}", given.folder / name, size, digest)
        except (OSError, ValueError) as error:
            print(f"error: {name}: {error}; run this again to go on from here", file=sys.stderr)
            return 1
        print(f"{number}/{len(files)} {name}{'' if fetched else ' (there)'}", flush=True)
    print(f"{given.folder}: complete and checked")
    return 0


if __name__ == "__main__":
    sys.exit(main())
