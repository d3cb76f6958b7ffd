"""Images of one reference set and one prompt: ``generate`` for a notebook, ``draw`` for the command of that name.

Dimensions: n images, S latent tokens, C latent channels, H x W pixels.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageDraw, ImageFont, ImageOps, PngImagePlugin
from torch import Tensor

from customized_grpo import registry
from customized_grpo.conditioning.cache import release
from customized_grpo.conditioning.drawing import check_drawing
from customized_grpo.console import err, say
from customized_grpo.devices import open_device
from customized_grpo.identity.private import public
from customized_grpo.policies.adapters import other_base, tuning
from customized_grpo.policies.base import Policy, load_policy
from customized_grpo.recipe.config import Base, EvaluateRecipe, Recipe
from customized_grpo.recipe.drawn import at_size, guided, on_base
from customized_grpo.sampling.rollout import sample_images
from customized_grpo.sampling.schedule import sigma_grid
from customized_grpo.seeding import generator
from customized_grpo.types import Conditioning

ABOUT = "customized-grpo generate"
"""Key of a PNG's text that says what a picture was drawn from, as JSON; the studio's pictures have one of their own."""
_BATCH = 4
_LABEL = 28
"""Height of a row's name in a grid, in pixels."""
_LEAST = 240
"""Width of a grid in pixels, at least, so that a prompt can be read above small images."""


def generate(
    policy: Policy,
    recipe: Recipe | EvaluateRecipe,
    prompt: str,
    references: Sequence[Image.Image] = (),
    *,
    num: int = 1,
    seed: int = 0,
    steps: int | None = None,
) -> list[Image.Image]:
    """Draw ``num`` images of one prompt; image i depends on (seed, i) alone, and policies get the same noise.

    Args:
        policy: from ``load_policy``; with ``load_tuned`` it draws with what a run trained.
        recipe: the policy's; says the noise levels.
        prompt: what to draw.
        references: RGB images of the subject, as ``load_image`` reads them.
        num: number of images, at least 1.
        seed: of the initial noise.
        steps: of the sampler; None: the recipe's.

    Returns:
        RGB images of the recipe's size.

    Raises:
        ValueError: the policy can't take these references, or ``num`` or ``steps`` is below 1.

    Example:
        ``generate(load_policy(recipe), recipe, "a backpack in the snow", [load_image("backpack.jpg")], num=4)``
    """
    images = images_of(policy, recipe, policy.encode(prompt, references), seed=seed, num=num, steps=steps)
    return [Image.fromarray(image.numpy()) for image in images]


def draw(
    recipe: Recipe | EvaluateRecipe,
    adapter: str | Sequence[str] | None,
    references: Sequence[Image.Image],
    prompt: str,
    file: Path,
    *,
    steps: int | None,
    seed: int,
    num: int,
    grid: Path | None,
    base: Base | None = None,
    height: int | None = None,
    width: int | None = None,
    balance: float | None = None,
    guidance: float | None = None,
) -> list[Path]:
    """Write ``num`` images; image i depends on (seed, i) alone.

    Args:
        recipe: says the policy, the device, and the sampler.
        adapter: a run, a checkpoint, an adapter's folder or file, a LoRA's hub id, or a transformer's folder; several
            add up, each may say a scale (``WHERE=0.8``). None or nothing: what the recipe's training starts from
            (``policy.lora.path`` or ``policy.full.path``), and without them the base alone.
        references: images of the subject.
        prompt: what to draw.
        file: the image to write; several get -0, -1, ... before the suffix.
        steps: of the sampler; None: the recipe's.
        seed: of the initial noise.
        num: number of images.
        grid: another picture to write: references, the base's images, and the adapter's of the same noise below them.
        base: another base of the recipe's architecture to draw with, on purpose; None: the recipe's own ``base``, if it
            is an evaluation's and has one.
        height: of the images, in pixels; None: the recipe's.
        width: of the images, in pixels; None: the recipe's.
        balance: b of a balanced adapter, in [-1, 1]; None: 0.
        guidance: of the policy; None: the recipe's.

    Returns:
        The files written.

    Raises:
        ValueError: the adapter is missing or doesn't fit, the policy can't be loaded, or can't take the size or the
            references.
    """
    files = [file] if num == 1 else [file.with_stem(f"{file.stem}-{i}") for i in range(num)]
    if grid is not None and grid.resolve() in {one.resolve() for one in files}:
        raise ValueError(f"--grid: {grid} is a file of --out, too, and would replace it; give another")
    if balance is not None and not adapter:
        raise ValueError("--balance: it is of a balanced adapter, and none is given; give --lora")
    tuned = tuning.read_all(adapter, balance) if adapter else tuning.read_start(recipe.policy)
    trained = recipe.policy
    if base is None and isinstance(recipe, EvaluateRecipe):
        base = recipe.base
    if base is not None:
        if not tuned:
            raise ValueError(
                f"base: {base.model!r} is another base for an adapter, and none is given; give --lora, or a --config "
                "whose policy.model it is"
            )
        other_base.check_adapters(tuned)
        recipe = recipe.model_copy(update={"policy": on_base(trained, base)})
    sized = at_size(recipe.policy, height, width, "--")
    recipe = recipe.model_copy(update={"policy": guided(sized, guidance, "--guidance")})
    device = open_device(recipe.run.device)
    for line in check_drawing(recipe.policy, prompt, references):
        say(line, style="yellow", on=err)
    with other_base.explained(base, trained):
        cond, policy = _encode_then_load(recipe, device, prompt, references)
    if base is not None:
        for line in other_base.notices(tuned, policy, trained, recipe.policy, steps=steps or recipe.sampling.steps):
            say(line, style="yellow", on=err)
    rows: dict[str, UInt8[Tensor, "n h w 3"]] = {}
    if not tuned or grid is not None:
        rows["base"] = images_of(policy, recipe, cond, seed=seed, num=num, steps=steps)
    if tuned:
        with other_base.explained(base, trained):
            tuning.apply_all(policy, tuned, other_base=base is not None)
        rows["tuned"] = images_of(policy, recipe, cond, seed=seed, num=num, steps=steps)
    shown = [adapter] if isinstance(adapter, str) else list(adapter or ())
    about = {
        "prompt": prompt,
        "seed": seed,
        "steps": steps or recipe.sampling.steps,
        "model": recipe.policy.model,
        "lora": shown,
        "size": [recipe.policy.height, recipe.policy.width],
    }
    about |= {} if balance is None else {"balance": balance}
    about |= {} if guidance is None else {"guidance": guidance}
    for number, (path, image) in enumerate(zip(files, next(reversed(rows.values())), strict=True)):
        _save(Image.fromarray(image.numpy()), path, about | {"number": number})
    if grid is not None:
        _save(side_by_side(references, rows, prompt), grid, about)
        files.append(grid)
    return files


def _encode_then_load(
    recipe: Recipe | EvaluateRecipe, device: torch.device, prompt: str, references: Sequence[Image.Image]
) -> tuple[Conditioning, Policy]:
    """The conditioning, and a policy without its text encoders, freed before the transformer was loaded."""
    section, precision = recipe.policy, recipe.run.precision
    if not registry.resolve("policies", registry.type_of(section)).encoders:
        policy = load_policy(section, device=device, precision=precision)
        return policy.encode(prompt, references), policy
    encoder = load_policy(section, device=device, precision=precision, parts="encoders")
    cond = encoder.encode(prompt, references)
    del encoder
    release(device)
    return cond, load_policy(section, device=device, precision=precision, parts="all but encoders")


def images_of(
    policy: Policy,
    recipe: Recipe | EvaluateRecipe,
    cond: Conditioning,
    *,
    seed: int,
    num: int = 1,
    steps: int | None = None,
) -> UInt8[Tensor, "n h w 3"]:
    """``generate`` of a prompt that is encoded already."""
    if num < 1:
        raise ValueError(f"num: given {num}; allowed: at least 1 image")
    num_steps = recipe.sampling.steps if steps is None else steps
    sigmas = sigma_grid(recipe.policy, recipe.sampling.shift, num_steps, policy.latent_shape[0])
    noise = torch.stack(
        [torch.randn(policy.latent_shape, generator=generator(seed, "generate", 0, i)) for i in range(num)]
    )
    return torch.cat([sample_images(policy, cond, batch, sigmas) for batch in noise.split(_BATCH)])


def _save(image: Image.Image, path: Path, about: Mapping[str, object]) -> None:
    """Write a picture, and into it what it was drawn from: text of a PNG, the comment of Exif elsewhere."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        say(f"{path} was there, and is replaced", style="yellow", on=err)
    text = json.dumps(public(about))  # in ASCII, as Exif's description is
    if path.suffix.lower() == ".png":
        info = PngImagePlugin.PngInfo()
        info.add_text(ABOUT, text)
        image.save(path, pnginfo=info)
        return
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = text
    image.save(path, exif=exif)


def side_by_side(
    references: Sequence[Image.Image], rows: Mapping[str, UInt8[Tensor, "n h w 3"]], prompt: str = ""
) -> Image.Image:
    """A picture of named rows below the prompt: the references, whole and as high as the images, then each of ``rows``.

    Images are shown pixel by pixel.
    """
    height, width = next(iter(rows.values())).shape[1:3]
    tiles = {"references": [ImageOps.pad(one, (width, height), color="white") for one in references]}
    tiles |= {name: [Image.fromarray(np.asarray(one)) for one in images] for name, images in rows.items()}
    shown = {name: row for name, row in tiles.items() if row}
    gap, font = max(4, width // 32), ImageFont.load_default(16)
    across = max(gap + (width + gap) * max(len(row) for row in shown.values()), _LEAST)
    lines = _lines(prompt, across - 2 * gap, font)
    above = _LABEL * len(lines)
    sheet = Image.new("RGB", (across, above + (_LABEL + height + gap) * len(shown)), "white")
    pen = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        pen.text((gap, _LABEL * number + 4), line, "black", font)
    for at, (name, row) in enumerate(shown.items()):
        top = above + (_LABEL + height + gap) * at
        pen.text((gap, top + 4), name, "black", font)
        for column, tile in enumerate(row):
            sheet.paste(tile, (gap + (width + gap) * column, top + _LABEL))
    return sheet


def _lines(text: str, width: int, font: Any) -> list[str]:
    """A text in lines that are at most so many pixels wide; a longer word has a line of its own."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
