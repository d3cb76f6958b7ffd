"""Settings per card: the tables of docs/performance.md, computed from shapes by the estimate of ``validate``.

Each recipe starts as fast as it can be - encoded prompts and references cached, no activations computed again, a whole
step of the group in one backward pass - and takes the advice of ``validate`` until it fits. Nothing is measured.
"""

from customized_grpo.memory.fitting import changes, fits
from customized_grpo.memory.footprint import GIB, UnknownModelError
from customized_grpo.recipe.loading import load_recipe

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
FASTEST = ("run.cache=cache", "policy.gradient_checkpointing=false", "train.microbatch=null")


def row(recipe: str, rank: int, card: int) -> str:
    """Settings for a card, alone and as one of several."""
    cells = []
    for world in WORLDS:
        start = load_recipe(recipe, [*FASTEST, f"policy.lora.rank={rank}", "policy.lora.alpha=null"])
        overrides, found = changes(start, card * GIB, world=world)
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
