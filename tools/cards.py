"""Settings per card, computed from shapes by the estimate of ``validate``; nothing is measured.

docs/how-to/memory.md: every recipe of a real model as it is shipped, and what ``validate`` advises where it is big.
docs/performance.md: some of them as fast as they can be - encoded prompts and references cached, nothing computed
again, a whole step of the group in one backward pass, large rewards elsewhere - with that advice until they fit.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from customized_grpo.memory.fitting import changes, exact, fits, served_elsewhere
from customized_grpo.memory.footprint import GIB, UnknownModelError, of_recipe
from customized_grpo.recipe.config import Recipe
from customized_grpo.recipe.loading import load_recipe

CONFIG = Path(__file__).parents[1] / "config/train"
SHIPPED = tuple(sorted(path.stem for path in CONFIG.glob("*.yaml") if not path.stem.startswith("mini_")))

RECIPES = (
    "uno_customized_grpo",
    "kontext_customized_grpo",
    "flux2_klein_customized_grpo",
    "qwen_edit_customized_grpo",
)
RANKS = (64, 512)
CARDS = (24, 48, 80, 141)
"""GB by name, taken as GiB of which a twentieth stays free."""
WORLDS = (1, 8)
FASTEST = (
    "run.cache=cache", "policy.gradient_checkpointing=false", "train.microbatch=null", "sampling.batch=null",
)  # fmt: skip


def row(recipe: str, rank: int, card: int) -> str:
    """Settings for a card, alone and as one of several."""
    cells = []
    for world in WORLDS:
        start = load_recipe(recipe, [*FASTEST, f"policy.lora.rank={rank}", "policy.lora.alpha=null"])
        overrides, found = changes(served_elsewhere(start)[1], card * GIB, world=world)
        said = "<br>".join(f"`{one}`" for one in overrides) or "nothing more"
        cells += [f"{said}" if fits(found, card * GIB) else "does not fit", f"{found.total / GIB:.1f}"]
    return f"| {card} GB | {' | '.join(cells)} |"


def tables() -> str:
    """One for every recipe whose model's shapes are known and every rank; the other recipes are named."""
    lines, unknown = [], []
    for recipe in RECIPES:
        for rank in RANKS:
            try:
                found = [row(recipe, rank, card) for card in CARDS]
            except UnknownModelError:
                unknown.append(recipe)
                break
            lines += [
                f"**`{recipe}`, rank {rank}**", "",
                "| Card | One GPU: set besides | GiB | Each of eight: set besides | GiB |",
                "|---|---|---|---|---|", *found, "",
            ]  # fmt: skip
    if unknown:
        named = " and ".join(f"`{one}`" for one in unknown)
        lines += [f"Not in the table, because their shapes are not known offline: {named}.", ""]
    return "\n".join(lines)


def header(name: str) -> str:
    """The comment at a recipe's top, in one line."""
    text = (CONFIG / f"{name}.yaml").read_text(encoding="utf-8")
    return " ".join(line.lstrip("# ").rstrip("\\ ") for line in text.partition("\nrun:")[0].splitlines())


def as_its_header_says(name: str) -> tuple[Recipe, int]:
    """The recipe with the overrides of its command, and the number of its processes, one a card."""
    said = re.search(r"(?:\.yaml |--num_processes )(\d+)((?: [\w.]+=\S+)*)", header(name))
    if said is None and f"customized-grpo train {name} " in header(name):
        return load_recipe(name), 1
    assert said is not None, f"{name}: its header has no command"
    return load_recipe(name, said[2].split()), int(said[1])


def shipped() -> str:
    """A row for every recipe of a real model."""
    heads = [f"{card} GB" for card in CARDS]
    lines = [
        f"| Recipe, cards | On each card | Elsewhere | GiB | {' | '.join(heads)} |",
        "|---" * (4 + len(CARDS)) + "|",
    ]
    for name in SHIPPED:
        recipe, world = as_its_header_says(name)
        found = of_recipe(recipe, world=world)
        scorers = [line.name.rpartition(".")[2] for line in found.resident if line.name.startswith("rewards.")]
        here = ["policy", *(["text encoders"] if recipe.run.cache is None else []), *scorers]
        there = [one.rpartition(".")[2] for one in found.elsewhere]
        cells = [on_card(recipe, world, card) for card in CARDS]
        lines.append(
            f"| `{name}`, {world} | {', '.join(here)} | {', '.join(there) or '-'} | {found.total / GIB:.1f} | "
            f"{' | '.join(cells)} |"
        )
    return "\n".join(lines)


def on_card(recipe: Recipe, world: int, card: int) -> str:
    """What makes a recipe fit cards of some size: on them alone, and with large rewards on another one."""
    limit = card * GIB
    overrides, found = changes(recipe, limit, world=world)
    here = fits(found, limit)
    said = [_said(overrides, found.total)] if here else []
    moved, lighter = served_elsewhere(recipe)
    if moved and not (here and exact(overrides)):
        overrides, found = changes(lighter, limit, world=world)
        names = ", ".join(one.partition("=")[0].rpartition(".")[2] for one in moved)
        if fits(found, limit):
            said.append(f"**{names} on another card:** {_said(overrides, found.total)}")
    return "<br>or ".join(said) or "does not fit"


def _said(overrides: Sequence[str], total: int) -> str:
    return f"{' '.join(f'`{one}`' for one in overrides) or 'as it is'} ({total / GIB:.1f})"
