"""Memory estimate of a recipe, as printed by ``validate`` and ``doctor``. Heavy imports are inside."""

import os
from typing import TYPE_CHECKING

from customized_grpo.commands.tables import table_of
from customized_grpo.console import out, say

if TYPE_CHECKING:
    from customized_grpo.recipe.config import Recipe

_GIB = 2**30


def show_memory(recipe: "Recipe", memory_gb: float | None) -> bool:
    """Print the estimated memory of a training process, and advice if the device is too small.

    Args:
        memory_gb: GiB of a device to judge by; None: the GPU at hand, if there is one.

    Returns:
        True if it fits, or if there is no device to judge by, or the model's shapes are unknown.
    """
    from customized_grpo.memory.fitting import faster, fits
    from customized_grpo.memory.footprint import UnknownModelError, of_recipe

    world = int(os.environ.get("WORLD_SIZE") or 1)
    try:
        found = of_recipe(recipe, world=world)
    except UnknownModelError as error:
        say(f"estimated memory: unknown; {error}")
        return True
    largest = max(found.peaks, key=lambda line: line.bytes)
    rows = [(line.name, _gib(line.bytes), line.note) for line in found.resident]
    rows += [
        (line.name, _gib(line.bytes), line.note if line is largest else f"{line.note} (not at once)")
        for line in found.peaks
    ]
    rows.append(("at most", _gib(found.total), "computed from shapes, not measured"))
    table = table_of("Estimated memory of a process", ("", "", ""), rows)
    table.columns[1].justify = "right"
    table.rows[-1].style = "bold"
    out.print(table)
    if found.elsewhere:
        say(
            f"not on this card: {', '.join(found.elsewhere)}; a server of this machine needs a card of its own "
            "(CUDA_VISIBLE_DEVICES)"
        )
    if found.on_cpu:
        say(f"on the CPU, not on this card: {', '.join(found.on_cpu)}")
    missing = f"not counted: {', '.join(found.unknown)}" if found.unknown else ""
    limit = int(memory_gb * _GIB) if memory_gb is not None else _device_bytes(recipe.run.device)
    if limit is None:
        if missing:
            say(missing)
        return True
    if fits(found, limit):
        if missing:
            say(f"what is counted fits a device of {_gib(limit)}; {missing}", style="yellow")
        else:
            out.print(f"it fits a device of {_gib(limit)}", style="green", highlight=False)
            if less := faster(recipe, limit, world=world):
                out.print(f"{' '.join(less)} would fit too, and compute less again", highlight=False)
        return True
    say(
        f"it does not fit a device of {_gib(limit)} with a twentieth left free" + _with_advice(recipe, limit, world),
        style="yellow",
    )
    if missing:
        say(missing)
    return False


def _with_advice(recipe: "Recipe", limit: int, world: int) -> str:
    """What makes a recipe fit a device, on this card alone and with large rewards on another."""
    from customized_grpo.memory.fitting import changes, exact, fits, served_elsewhere

    overrides, after = changes(recipe, limit, world=world, allowed=_engine_allows)
    here = fits(after, limit)
    told = f"; with these it takes {_gib(after.total)}: {' '.join(overrides)}" if here else ""
    moved, lighter = served_elsewhere(recipe)
    if moved and not (here and exact(overrides)):
        more, after_move = changes(lighter, limit, world=world, allowed=_engine_allows)
        if fits(after_move, limit):
            said = " ".join([*(f"'{one}'" for one in moved), *more])
            return (
                f"{told}; with its large rewards on another card it takes {_gib(after_move.total)}: {said} "
                "(CUDA_VISIBLE_DEVICES=1 customized-grpo serve CONFIG there, see docs/how-to/reward-server.md)"
            )
    if here:
        return told
    told = f"; even with {' '.join(overrides) or 'all that is known'} it takes {_gib(after.total)}: "
    told += "use smaller images, or a larger device"
    if recipe.policy.full is not None:
        told += ", cut it over several by FSDP2, or train an adapter (policy.full=null policy.lora={})"
    return told


def _engine_allows(recipe: "Recipe") -> bool:
    """Whether the engine that the environment says, if it says one, can run a recipe."""
    from customized_grpo.training.engine_limits import check, launched_engine

    engine = launched_engine(os.environ)
    try:
        if engine is not None:
            check(engine, recipe)
    except ValueError:
        return False
    return True


def _gib(size: int) -> str:
    return f"{size / _GIB:.1f} GiB" if size >= _GIB / 10 else f"{size / 2**20:.1f} MiB"


def _device_bytes(device: str) -> int | None:
    """Memory of the smallest GPU."""
    import torch

    if device == "cpu" or not torch.cuda.is_available():
        return None
    return min(torch.cuda.get_device_properties(index).total_memory for index in range(torch.cuda.device_count()))
