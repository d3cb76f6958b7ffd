"""The Dockerfile's instructions, for tests."""

import json
import re
from pathlib import Path

FILE = Path(__file__).parents[2] / "Dockerfile"


def instructions() -> list[tuple[str, str]]:
    """(instruction, its words) in order; comments are dropped, and continued lines joined."""
    lines = [line for line in FILE.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()]


def stages() -> dict[str, list[tuple[str, str]]]:
    """Stage -> its instructions, those of the stages that it stands on included."""
    found: dict[str, list[tuple[str, str]]] = {}
    for name, words in instructions():
        if name == "FROM":
            parent, stage = re.fullmatch(r"(\S+) AS (\S+)", words).groups()  # type: ignore[union-attr]
            found[stage] = list(found.get(parent, [])) if parent != "${BASE}" else []
        elif found:
            found[stage].append((name, words))
    return found


def last(stage: str, instruction: str) -> str:
    return [words for name, words in stages()[stage] if name == instruction][-1]


def exec_form(words: str) -> list[str]:
    """The JSON list at the end of an instruction."""
    found: list[str] = json.loads(words[words.index("[") :])
    return found
