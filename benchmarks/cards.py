"""What to set on which card: the tables of docs/performance.md, computed from shapes by the estimate of ``validate``.

    python benchmarks/cards.py            # prints the tables
    python benchmarks/cards.py --write    # puts them into the page; a test holds the page to them

Each recipe starts as fast as it can be - encoded prompts and references cached, no activations computed again, a whole
step of the group in one backward pass - and takes the advice of ``validate`` until it fits. Nothing is measured.
"""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

from customized_grpo.memory.fitting import changes, fits
from customized_grpo.memory.footprint import GIB, UnknownModelError
from customized_grpo.recipe.loading import load_recipe

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
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
BEGIN, END = "<!-- cards.py -->\n", "<!-- end of cards.py -->\n"


def rows(recipe: str, rank: int) -> Iterator[str]:
    """One row a card and number of GPUs."""
    for card in CARDS:
        cells = []
        for world in WORLDS:
            start = load_recipe(recipe, [*FASTEST, f"policy.lora.rank={rank}", "policy.lora.alpha=null"])
            overrides, found = changes(start, card * GIB, world=world)
            said = "<br>".join(f"`{one}`" for one in overrides) or "nothing more"
            cells += [f"{said}" if fits(found, card * GIB) else "does not fit", f"{found.total / GIB:.1f}"]
        yield f"| {card} GB | {' | '.join(cells)} |"


def tables() -> str:
    """Of every recipe whose model's shapes are known, and the names of those that are left out."""
    lines, unknown = [], []
    for recipe in RECIPES:
        for rank in RANKS:
            try:
                found = list(rows(recipe, rank))
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


def page_with(text: str, made: str) -> str:
    """The page with the tables put between their marks."""
    return re.sub(
        f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: f"{BEGIN}\n{made}{END}", text, flags=re.DOTALL
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true")
    made = tables()
    if parser.parse_args().write:
        PAGE.write_text(page_with(PAGE.read_text(encoding="utf-8"), made), encoding="utf-8")
    else:
        print(made)


if __name__ == "__main__":
    main()
