"""``customized-grpo doctor``: Python, libraries, devices, memory, disk, the embedded models, extras."""

import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from customized_grpo import __version__
from customized_grpo.commands.arguments import MemoryGb, Overrides
from customized_grpo.commands.brief import brief
from customized_grpo.commands.conformance import failing
from customized_grpo.commands.cost import num_held_out, time_of
from customized_grpo.commands.lacks import lacking
from customized_grpo.commands.memory import show_memory
from customized_grpo.commands.tables import print_rows
from customized_grpo.console import out
from customized_grpo.mini.integrity import check_assets

if TYPE_CHECKING:
    from customized_grpo.recipe.config import Recipe

_FLOORS = {
    "torch": (2, 7),
    "diffusers": (0, 42),
    "transformers": (5, 0),
    "peft": (0, 21),
    "accelerate": (1, 15),
    "pydantic": (2, 12),
    "safetensors": (0, 5),
}
"""Minimum versions, as in pyproject.toml."""
_EXTRAS = ("wandb", "tensorboard", "trackio", "swanlab")
_GIB = 1024**3


class Finding(NamedTuple):
    """One line of the doctor's table; ``advice`` is empty if nothing needs to be done."""

    name: str
    value: str
    advice: str = ""


@brief()
def doctor(
    config: Annotated[
        str | None, typer.Argument(help="a training recipe: will it fit, and how long will it take?")
    ] = None,
    overrides: Overrides = None,
    memory_gb: MemoryGb = None,
) -> None:
    """Look at Python, libraries, devices, memory, disk and the embedded models, and say what to do."""
    from customized_grpo.recipe.loading import load_recipe

    recipe = load_recipe(config, overrides or []) if config is not None else None
    findings = examine(Path.cwd())
    if recipe is not None:
        findings += _needs(recipe)
    print_rows("", ("", "found", "what to do"), findings)
    if recipe is not None:
        evaluated = recipe.evaluate if recipe.train.evaluate_every else None
        examples = None if evaluated is None else num_held_out(evaluated)
        print_rows("Expected time", ("", ""), [*time_of(recipe, examples=examples).items()])
    fits = recipe is None or show_memory(recipe, memory_gb)
    if not fits or any(finding.advice for finding in findings):
        raise typer.Exit(1)
    out.print("nothing to do", style="green")


def examine(folder: Path) -> list[Finding]:
    """Examine this machine and installation; ``folder`` is the folder of runs."""
    return [*_system(), *_libraries(), *_devices(), *_room(folder), *_assets(), _extras()]


def _needs(recipe: "Recipe") -> list[Finding]:
    """What a recipe needs besides: data on this machine, packages, keys, servers, and a card for a large model."""
    from customized_grpo.data.base import load_dataset, missing
    from customized_grpo.memory.needs import lacks_gpu

    sections = {"data": recipe.data} | ({} if recipe.evaluate is None else {"evaluate.data": recipe.evaluate.data})
    found = []
    for place, section in sections.items():
        if (path := missing(section)) is not None:
            advice = f"make it (customized-grpo data download, import, split), or give {place}.path=..."
            found.append(Finding(place, f"{path} is not here", advice))
    found += [Finding(place, lack.what, lack.advice) for place, lack in lacking(recipe, ask=True).items()]
    data = load_dataset(recipe.data, "data") if missing(recipe.data) is None else None
    mend = "mend it; customized_grpo.testing has the check, for tests of your own"
    found += [Finding(place, said, mend) for place, said in failing(recipe, data).items()]
    if why := lacks_gpu(recipe):
        found.append(Finding("device", why, "run it on a machine with a GPU, or the miniature: customized-grpo demo"))
    return found


def _system() -> list[Finding]:
    fits = (3, 11) <= sys.version_info[:2] < (3, 14)
    return [
        Finding("customized-grpo", __version__),
        Finding("python", platform.python_version(), "" if fits else "use Python 3.11, 3.12 or 3.13"),
        Finding("system", f"{platform.system()} {platform.release()}, {platform.machine()}"),
    ]


def _libraries() -> list[Finding]:
    findings = []
    for name, floor in _FLOORS.items():
        needed = ".".join(map(str, floor))
        try:
            found = version(name)
        except PackageNotFoundError:
            findings.append(Finding(name, "missing", f"pip install '{name}>={needed}'"))
            continue
        old = tuple(int(part) for part in found.split("+")[0].split(".")[:2] if part.isdigit()) < floor
        findings.append(Finding(name, found, f"pip install -U '{name}>={needed}'" if old else ""))
    return findings


def _devices() -> list[Finding]:
    try:
        import torch
    except ImportError as error:
        return [Finding("devices", "unknown", f"torch can't be imported ({error}); install it again")]
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    threads = torch.get_num_threads()
    crowded = "more threads than cores: set OMP_NUM_THREADS" if threads > cores else ""
    findings = [Finding("CPU", f"{cores} cores, {threads} threads", crowded)]
    if not torch.cuda.is_available():
        built = "no usable driver or device" if torch.version.cuda else "this torch is built without CUDA"
        advice = "a GPU driver is there: install a CUDA build of torch" if shutil.which("nvidia-smi") else ""
        return [*findings, Finding("GPU", f"none ({built}); the miniature needs none", advice)]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        value = f"{properties.name}, {properties.total_memory / _GIB:.0f} GiB, CUDA {torch.version.cuda}"
        findings.append(
            Finding(f"GPU {index}", value, "" if properties.major >= 8 else "slow in bf16: use run.precision=no")
        )
    return findings


def _room(folder: Path) -> list[Finding]:
    import psutil

    memory, free = psutil.virtual_memory().available / _GIB, shutil.disk_usage(folder).free / _GIB
    return [
        Finding(
            "memory",
            f"{memory:.1f} GiB available",
            "" if memory >= 3 else "the embedded run needs up to 3 GiB",
        ),
        Finding(
            "disk",
            f"{free:.1f} GiB free at {folder}",
            "" if free >= 1 else "free some: a run needs about 1 GiB",
        ),
    ]


def _assets() -> list[Finding]:
    problems = check_assets()
    if not problems:
        return [Finding("embedded models", "whole")]
    advice = "reinstall customized-grpo, or rebuild them in a checkout: make assets"
    return [Finding("embedded models", problem, advice) for problem in problems]


def _extras() -> Finding:
    # Only the name is looked up: importing a tracker may open files and connections.
    found = [name for name in _EXTRAS if find_spec(name) is not None]
    others = [name for name in _EXTRAS if name not in found]
    value = f"installed: {', '.join(found) or 'none'}"
    return Finding(
        "trackers",
        value + (f"; pip install 'customized-grpo[{','.join(others)}]' for others" if others else ""),
    )
