"""A run as a folder that is ready for the hub: weights, card, recipe and pictures, and nothing of this machine."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from customized_grpo import __version__
from customized_grpo.data.base import load_dataset
from customized_grpo.identity.private import is_path
from customized_grpo.policies.adapters import full, tuning
from customized_grpo.policies.adapters.full import TransformerFolder
from customized_grpo.policies.adapters.lora import slope_of
from customized_grpo.policies.adapters.lora_files import WEIGHTS_NAME, newest_complete, write_update
from customized_grpo.policies.adapters.lora_reader import LoraFile, read_lora
from customized_grpo.policies.balance import BALANCE
from customized_grpo.policies.export import lora_of
from customized_grpo.publish.card import Contents, card
from customized_grpo.publish.licences import base_of, is_local, licence_of
from customized_grpo.publish.loading import Form
from customized_grpo.publish.pictures import data_of, write_gallery
from customized_grpo.publish.private import leaks, public_recipe
from customized_grpo.publish.results import Evaluated, evaluations_of
from customized_grpo.publish.statements import facts, limits
from customized_grpo.recipe.config import Recipe
from customized_grpo.recipe.loading import RecipeError, load_any, load_recipe
from customized_grpo.recipe.yaml_source import dump
from customized_grpo.report.folders import read_runs

_ABOUT: Final = ("base_hash", "base_lora", "step", "holds", BALANCE)
"""Entries of a checkpoint's header that are kept: what a loader checks. The recipe in it names paths."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the author says of a publication; see ``customized-grpo publish --help``."""

    repo: str | None = None
    base: str | None = None
    licence: str | None = None
    licence_link: str | None = None
    pictures: bool | None = None
    with_base: bool = False
    balance: float | None = None
    evaluations: tuple[Path, ...] = ()


def publish(given: Path, out: Path, options: Options) -> list[str]:
    """Write the folder.

    Args:
        given: a training run's folder, of which the newest complete checkpoint is published, or one of its checkpoints.
        out: the folder, new or empty; it is complete or not there.
        options: what its author says.

    Returns:
        Sentences on what was left out, and how to include it.

    Raises:
        ValueError: no run or checkpoint, no licence or public base, a base LoRA that nobody else has, an evaluation of
            another adapter, or ``out`` is taken.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ValueError(f"--out: {out} is taken; give a new or empty folder")
    run, checkpoint = _places(given)
    step = int(checkpoint.name.removeprefix("step-"))
    tuned = tuning.read(checkpoint)
    recipe = _recipe(checkpoint if (checkpoint / "config.yaml").is_file() else run)
    base = base_of(recipe.policy, options.base)
    licence = licence_of(base, options.licence, options.licence_link)
    joined = _joins(recipe, tuned, options)
    secrets = _secrets(run, out, recipe)
    form = Form(
        repo=options.repo or out.resolve().name,
        base=base,
        full=isinstance(tuned, TransformerFolder),
        balanced=isinstance(tuned, LoraFile) and options.balance is None and slope_of(tuned.path).is_file(),
        joined=joined,
    )
    config = public_recipe(recipe.model_dump(mode="json"), base, joined=joined)
    (read,) = read_runs([run])
    title = form.repo.rpartition("/")[2]
    read = replace(read, name=title, config=config, config_text="")
    said: list[str] = []
    with _aside(out) as folder:
        modules = _weights(tuned, folder, base, recipe, options)
        evaluated = evaluations_of(read, run, step, base, options.evaluations)
        pictures, withheld = _pictures(evaluated, folder, options.pictures)
        said += [withheld] if withheld else []
        text = f"# The resolved recipe, without what is of its author's machine.\n{dump(config)}"
        (folder / "config.yaml").write_text(text, encoding="utf-8")
        said += _loads(folder / "config.yaml", options)
        contents = Contents(
            title=title,
            recipe=recipe,
            form=form,
            licence=licence,
            run=read,
            modules=modules,
            results=[one.result for one in evaluated],
            facts=facts(read, recipe, step),
            limits=limits(read, recipe, step, evaluated, form, options.balance),
            warnings=[str(one) for one in read.suspicions(until=step)],
            pictures=pictures,
            pictures_of="Held-out examples, chosen by the rule over each table: reference, untrained base, and tuned.",
            pictures_withheld=withheld and "Not published: the pictures are of the author's data.",
            data=data_of(config["data"], count=_count(recipe)),
        )
        (folder / "README.md").write_text(card(contents), encoding="utf-8")
        if found := leaks(folder, secrets):
            raise ValueError(
                f"{', '.join(found)}: a path of this machine would be published (such as {secrets[0]}); take it out of "
                "the recipe's texts, such as a rubric or a plug-in's options"
            )
    if not evaluated:
        said.append("the card says 'Not evaluated': the run has no held-out evaluation (evaluate RECIPE lora=RUN)")
    return said


def _places(given: Path) -> tuple[Path, Path]:
    """The run's folder, and the checkpoint that is published."""
    if not given.is_dir():
        raise ValueError(f"{given} is not a folder; give a run's, or one of its checkpoints")
    if given.resolve().parent.name == "checkpoints":
        if not (given / "manifest.json").is_file():
            raise ValueError(f"{given} is no complete checkpoint (no manifest.json); give another")
        return given.resolve().parents[1], given
    found = newest_complete(given, WEIGHTS_NAME) or newest_complete(given, f"{full.FOLDER}/config.json")
    if found is None:
        raise ValueError(
            f"{given} has no complete checkpoint, so there is nothing to publish; give the folder of a training run "
            "that has written one (train.checkpoint_every, or its end), or a checkpoint in it"
        )
    return given, found.parent if found.name == WEIGHTS_NAME else found.parents[1]


def _recipe(folder: Path) -> Recipe:
    return load_recipe(folder / "config.yaml")


def _joins(recipe: Recipe, tuned: tuning.Tuned, options: Options) -> bool:
    """Whether the base LoRA is in the published weights; refused where the adapter is nothing without a local file."""
    beneath = dict(recipe.policy).get("base_lora")
    whole = isinstance(tuned, TransformerFolder)
    if options.with_base and (beneath is None or whole):
        raise ValueError("--with-base: there is no policy.base_lora apart from these weights; leave it out")
    if beneath is not None and is_local(beneath.path) and not options.with_base and not whole:
        raise ValueError(
            f"policy.base_lora is {beneath.path!r}, on this machine, and the adapter is nothing without it; add "
            "--with-base, which publishes both as one LoRA for the stock base"
        )
    if options.balance is not None and whole:
        raise ValueError("--balance: it is of a balanced adapter, and this run trained the transformer in full")
    return options.with_base or (whole and beneath is not None)


def _weights(tuned: tuning.Tuned, folder: Path, base: str, recipe: Recipe, options: Options) -> list[str]:
    """Write the weights; the names of the layers that a LoRA has."""
    if isinstance(tuned, TransformerFolder):
        target = folder / full.FOLDER
        target.mkdir()
        for file in [*tuned.files, *tuned.path.glob("*.index.json")]:
            shutil.copyfile(file, target / file.name)
        config = json.loads((tuned.path / "config.json").read_text(encoding="utf-8"))
        config.pop("_name_or_path", None)
        (target / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        return []
    slope = slope_of(tuned.path)
    files = {folder / WEIGHTS_NAME: tuned if options.balance is None else tuning.at_balance(tuned, options.balance)}
    if options.balance is None and slope.is_file():
        files[folder / BALANCE / WEIGHTS_NAME] = read_lora(slope)
    for file, one in files.items():
        beneath = options.with_base and file.parent == folder
        update, about = lora_of(one, with_base=beneath, recipe=recipe if beneath else None)
        kept = {name: about[name] for name in _ABOUT if name in about}
        if options.balance is not None:
            kept[BALANCE] = f"{options.balance:g}"
        write_update(file, update, kept | {"base_model": base, "made_by": f"customized-grpo {__version__}"})
    return sorted(read_lora(folder / WEIGHTS_NAME).factors)


def _pictures(evaluated: Sequence[Evaluated], folder: Path, wanted: bool | None) -> tuple[str, str]:
    """Markdown of all galleries that may be shown, and a sentence on those that were left out."""
    shown, withheld = [], []
    for one in evaluated:
        if not one.gallery:
            continue
        if wanted or (wanted is None and one.result.data.licence):
            shown.append(write_gallery(one.gallery, folder))
        elif wanted is None:
            withheld.append(one.result.data.name)
    if not withheld:
        return "\n".join(shown), ""
    return "\n".join(shown), (
        f"left out: the pictures and prompts of {' and '.join(dict.fromkeys(withheld))}, as no licence allows to show "
        "them; where you may, add --pictures"
    )


def _loads(config: Path, options: Options) -> list[str]:
    try:
        load_any(config)
    except RecipeError as error:
        first = str(error).splitlines()[0].replace(str(config), config.name)
        return [f"config.yaml does not load by itself ({first}); say a --config to generate with this folder"]
    return []


def _count(recipe: Recipe) -> int | None:
    """Number of training examples, if the data are still there."""
    try:
        return len(load_dataset(recipe.data))
    except (ValueError, OSError):
        return None


def _secrets(run: Path, out: Path, recipe: Recipe) -> list[str]:
    """Paths of this machine that must not be in a published file."""
    named = [text for text in _texts(recipe.model_dump(mode="json")) if is_path(text) and Path(text).is_absolute()]
    places = [run.resolve(), out.resolve().parent, Path.home(), Path.cwd()]
    return list(dict.fromkeys([*map(str, places), *named]))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts(one)


@contextmanager
def _aside(out: Path) -> Iterator[Path]:
    """A folder that becomes ``out`` when the block ends without an error; anybody may read its files."""
    out.resolve().parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.resolve().parent))
    try:
        yield folder
        folder.chmod(0o755)
        for path in folder.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        os.replace(folder, out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
