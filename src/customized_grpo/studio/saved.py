"""Pictures that a person keeps: a PNG with its recipe inside, from which the command line draws it again."""

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from customized_grpo import __version__
from customized_grpo.atomic import replacing
from customized_grpo.data.images import text_in
from customized_grpo.studio.artist import BASE, Artist, Shown

RECIPE: Final = "customized-grpo"
"""Name of the PNG's text that holds the recipe, as JSON."""


def keep(
    image: Image.Image,
    folder: Path,
    artist: Artist,
    system: str,
    prompt: str,
    references: Sequence[Image.Image],
    shown: Shown,
    scores: Mapping[str, float],
) -> Path:
    """Write a picture, and its references beside it, into a folder of their own.

    Args:
        image: RGB.
        folder: made where it is missing.
        artist: that drew it.
        system: by which.
        prompt: what was asked for.
        references: RGB images of the subject.
        shown: how it was drawn.
        scores: its scores, by the reward's name.

    Returns:
        The picture's file; ``recipe_in`` reads what it holds.
    """
    files = [_kept(one, folder / "references") for one in references]
    weights = artist.weights_of(system)
    made: dict[str, Any] = {
        "prompt": prompt,
        "references": [str(file) for file in files],
        "system": system,
        "weights": None if weights is None else str(weights),
        **asdict(shown),
        "steps": shown.steps or artist.recipe.sampling.steps,
        "size": list(image.size),
        "scores": dict(scores),
        "version": __version__,
    }
    when = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    file = folder / f"{when}-{system.replace('/', '-')}-{shown.seed}.png"
    made["command"] = command(artist, system, prompt, files, shown)
    text = PngInfo()
    text.add_itxt(RECIPE, json.dumps(made, ensure_ascii=False, allow_nan=True))
    with replacing(file) as aside:
        image.save(aside, pnginfo=text)
    return file


def recipe_in(file: Path) -> dict[str, Any]:
    """The recipe of a kept picture.

    Raises:
        ValueError: the picture holds none.
    """
    text = text_in(file, RECIPE)
    if text is None:
        raise ValueError(f"{file}: it holds no recipe ({RECIPE}); only pictures that the studio kept do")
    found: dict[str, Any] = json.loads(text)
    return found


def command(artist: Artist, system: str, prompt: str, references: Sequence[Path], shown: Shown) -> str:
    """The command that draws the same picture, for a shell."""
    if system == BASE:
        words = ["--config", artist.config]
    else:
        run = artist.runs[system]
        words = ["--lora", str(run) if shown.strength == 1 else f"{run}={shown.strength:g}"]
        words += ["--balance", f"{shown.balance:g}"] if system in artist.balanced else []
    for file in references:
        words += ["--reference", str(file)]
    words += ["--prompt", prompt, "--seed", str(shown.seed)]
    words += [] if shown.steps is None else ["--steps", str(shown.steps)]
    return shlex.join(["customized-grpo", "generate", *words, "--out", "again.png"])


def _kept(reference: Image.Image, folder: Path) -> Path:
    """A reference's file, called after its content, so that many pictures share it."""
    name = hashlib.sha256(repr(reference.size).encode() + reference.tobytes()).hexdigest()[:16]
    file = folder / f"{name}.png"
    if not file.is_file():
        with replacing(file) as aside:
            reference.save(aside)
    return file.resolve()
