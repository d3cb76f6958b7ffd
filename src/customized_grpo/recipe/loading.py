"""Recipes from YAML files and ``key.sub=value`` overrides, with every error located by file, line and key."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, final, overload

import yaml
from pydantic import BaseModel, ValidationError

from customized_grpo import registry
from customized_grpo.atomic import replacing
from customized_grpo.recipe.config import EvaluateRecipe, Recipe
from customized_grpo.recipe.problems import (
    RecipeError,
    converted,
    dotted,
    explain,
    not_meant,
    repeated,
    what_is_allowed,
)
from customized_grpo.recipe.schema import Location, Place, recipe_schema, shown
from customized_grpo.recipe.supervised import supervise
from customized_grpo.recipe.yaml_source import construct, dump, read_yaml, yaml_problem

__all__ = [
    "RecipeError",
    "find_recipe",
    "is_server",
    "load_any",
    "load_recipe",
    "load_supervised",
    "recipe_of",
    "recipe_schema",
    "run_config",
    "save_recipe",
    "shipped_recipes",
    "undone",
]

M = TypeVar("M", bound=BaseModel)

_PACKAGE = Path(__file__).parents[1]
_FOLDERS = (_PACKAGE / "recipes", _PACKAGE.parents[1] / "config")
"""Folders of recipes: in a wheel, and in a checkout."""


@final
@dataclass(frozen=True, slots=True)
class _Override:
    text: str
    location: Location
    value: Any


@final
@dataclass(frozen=True, slots=True)
class _Source:
    """Origin of each value of a recipe."""

    name: str
    lines: Mapping[Location, int]
    overrides: Sequence[_Override]

    def place(self, location: Location) -> str:
        """``file.yaml:3: `` or ``override 'a.b=1': `` of the value, or of what is nearest above it."""
        for override in reversed(self.overrides):
            if location[: len(override.location)] == override.location:
                return f"override {repeated(override.text)!r}: "
        above = next((location[:n] for n in range(len(location), 0, -1) if location[:n] in self.lines), ())
        for override in reversed(self.overrides):  # a section that only overrides made
            if location[: len(above) + 1] == override.location[: len(above) + 1]:
                return f"override {repeated(override.text)!r}: "
        return f"{self.name}:{self.lines.get(above, 1)}: "


@overload
def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe: ...
@overload
def load_recipe(path: str | Path, overrides: Sequence[str], model: type[M]) -> M: ...
def load_recipe(path: str | Path, overrides: Sequence[str] = (), model: type[BaseModel] = Recipe) -> BaseModel:
    """Read a recipe.

    Args:
        path: a YAML file, or the name of a recipe that is shipped (``mini_customized``).
        overrides: ``key.sub=value``, applied in order; the value is read as YAML.
        model: ``Recipe``, ``EvaluateRecipe`` or ``ServerConfig``.

    Raises:
        RecipeError: every problem that was found, one per line.
    """
    file = find_recipe(path)
    data, lines = read_yaml(file)
    return _validated(str(file), data, lines, overrides, model)


def load_supervised(path: str | Path, overrides: Sequence[str], kind: str) -> tuple[Recipe, list[str]]:
    """A recipe as that of a supervised run (``supervised.supervise``), with overrides on top.

    Args:
        path: see ``load_recipe``.
        overrides: see ``load_recipe``.
        kind: ``sft`` or ``dpo``.

    Returns:
        The recipe, and what of the file was left aside.

    Raises:
        RecipeError: every problem that was found, one per line.
    """
    file = find_recipe(path)
    data, lines = read_yaml(file)
    aside = supervise(data, kind)
    return _validated(str(file), data, lines, overrides, Recipe), aside


def recipe_of(data: dict[str, Any], overrides: Sequence[str], model: type[M]) -> M:
    """A recipe without a file: ``data`` and, on top of it, all that the user wrote, as overrides.

    Raises:
        RecipeError: every problem that was found, one per line.
    """
    return _validated("command line", data, {}, overrides, model)


def _validated(
    name: str,
    data: dict[str, Any],
    lines: Mapping[Location, int],
    overrides: Sequence[str],
    model: type[M],
) -> M:
    problems: list[str] = []
    applied = []
    for text in overrides:
        try:
            override = _parse(text)
            _apply(data, override, model)
            applied.append(override)
        except RecipeError as error:
            problems.append(str(error))
    source = _Source(name, lines, applied)
    recipe: M | None = None
    try:
        recipe = registry.read_section(model, data)
    except ValidationError as error:
        for one in error.errors(include_url=False):
            location, text = explain(one, model, data)
            problems.append(f"{source.place(location)}{dotted(location)}{text}")
    if recipe is not None:
        for location, text in converted(data, recipe.model_dump(), ()):
            allowed = what_is_allowed(Place.find(model, data, location))
            problems.append(f"{source.place(location)}{dotted(location)}{text}; {allowed}")
        for location, text in not_meant(recipe.model_dump(), ()):
            problems.append(f"{source.place(location)}{dotted(location)}{text}")
    if recipe is None or problems:
        raise RecipeError("\n".join(dict.fromkeys(problems)))
    return recipe


def load_any(path: str | Path, overrides: Sequence[str] = ()) -> Recipe | EvaluateRecipe:
    """Read a recipe of either kind: one with rewards or a train section is for training."""
    data, _ = read_yaml(find_recipe(path))
    training = "evaluate" not in data or not data.keys().isdisjoint({"rewards", "train", "advantage", "objective"})
    return load_recipe(path, overrides) if training else load_recipe(path, overrides, EvaluateRecipe)


def is_server(path: str | Path) -> bool:
    """True if a file configures a reward server: it has rewards, but no sections of a run."""
    data, _ = read_yaml(find_recipe(path))
    return "rewards" in data and data.keys().isdisjoint({"run", "policy", "data", "train", "evaluate"})


def run_config(adapter: str | Path) -> Path:
    """The ``config.yaml`` of the run that an adapter belongs to: the run itself, a checkpoint of it, or a file in one.

    Raises:
        RecipeError: the path isn't there, or is not part of a run.
    """
    given = Path(adapter).expanduser()
    if not given.exists():
        raise RecipeError(
            f"{adapter}: no such file or folder; give a run, a checkpoint, or an adapter's folder or file"
        )
    folder = given.resolve()
    for candidate in (folder, *list(folder.parents)[:3]):
        if (candidate / "config.yaml").is_file():
            return candidate / "config.yaml"
    raise RecipeError(
        f"{adapter}: there is no config.yaml of a run above it; say which policy it is for with --config RECIPE"
    )


def save_recipe(recipe: BaseModel, path: Path) -> None:
    """Write a resolved recipe, every default included, complete or not at all. It loads back to an equal recipe.

    Secrets never reach it: what a plug-in declares as a pydantic secret is written as asterisks.
    """
    text = dump(recipe.model_dump(mode="json"))
    with replacing(path) as aside:
        aside.write_text("# The resolved recipe, defaults included.\n" + text, encoding="utf-8")


def shipped_recipes() -> dict[str, Path]:
    """Name to file of every recipe that comes with the package."""
    kinds = ("train", "eval", "serve")  # beside them lie accelerate's own
    return {file.stem: file for folder in _FOLDERS for kind in kinds for file in sorted(folder.glob(f"{kind}/*.yaml"))}


def find_recipe(path: str | Path) -> Path:
    """The file of a recipe, given as a path or as a shipped recipe's name.

    Raises:
        RecipeError: no such recipe; the message suggests a similar name.
    """
    file = Path(path).expanduser()
    if file.is_file():
        return file
    if file.is_dir():
        inside = ", ".join(sorted(found.name for found in file.glob("*.yaml"))[:8])
        raise RecipeError(f"{path}: is a folder; give a recipe's file" + (f", one of: {inside}" if inside else ""))
    given = str(path)
    if "/" in given or os.sep in given:
        near = [str(other) for other in file.parent.glob("*.y*ml")]
        hint = registry.did_you_mean(str(file), near)
        raise RecipeError(f"{path}: there is no such file;{hint} give a YAML file or a shipped recipe's name")
    shipped = shipped_recipes()
    name = given.removesuffix(".yaml")
    if name in shipped:
        return shipped[name]
    near = [*shipped, *(str(other) for other in Path().glob("*.y*ml"))]
    hint = registry.did_you_mean(name, near)
    raise RecipeError(
        f"{path}: there is no such file and no such recipe;{hint} shipped recipes: {', '.join(sorted(shipped))}"
    )


def undone(overrides: Sequence[str]) -> list[str]:
    """A line for each override that a later one of the same key, or of a section around it, makes void."""
    keys = [(_key(text.partition("=")[0]), text) for text in overrides if "=" in text]
    lines = []
    for at, (key, text) in enumerate(keys):
        later = next((other for place, other in keys[at + 1 :] if place == key[: len(place)]), text)
        if later != text:
            lines.append(f"override {repeated(text)!r}: without effect, since {repeated(later)!r} comes after it")
    return lines


def _key(text: str) -> list[str]:
    return text.strip().removeprefix("--").split(".")


def _parse(text: str) -> _Override:
    key, equals, value = text.partition("=")
    parts = _key(key)
    if not equals or not all(re.fullmatch(r"[^\s.]+", part) for part in parts):
        raise RecipeError(f"override {text!r}: write it as key.sub=value, for example train.steps=100")
    try:
        node, read = construct(value)
    except yaml.YAMLError as error:
        raise RecipeError(
            f"override {repeated(text)!r}: the value{yaml_problem(error)}; put a text with special signs in quotes"
        ) from error
    rest = value if node is None else value[node.end_mark.index :]
    if rest.strip():  # a comment in YAML, which nobody means on a command line
        raise RecipeError(
            f"override {repeated(text)!r}: what follows the space and '#' would be a comment; put the value in quotes "
            f"inside the shell's: {key}='\"...\"'"
        )
    return _Override(text, tuple(parts), read)


def _apply(data: dict[str, Any], override: _Override, model: type[BaseModel]) -> None:
    section: Any = data
    *above, last = override.location
    for depth, part in enumerate(above, start=1):
        if section.get(part) is None:
            # An option of a plug-in that the recipe leaves to its default belongs to that default.
            default = Place.find(model, data, override.location[:depth]).node.get("default")
            section[part] = dict(default) if isinstance(default, dict) and last != "type" else {}
        section = section[part]
        if not isinstance(section, dict):
            where = ".".join(map(str, override.location[:depth]))
            raise RecipeError(
                f"override {repeated(override.text)!r}: {where} is {shown(section)} and no section, "
                f"so it has no key {override.location[depth]!r}"
            )
    section[last] = override.value
