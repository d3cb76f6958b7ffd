"""``customized-grpo plugins``: every plug-in by name, package, purpose and options."""

import inspect
from dataclasses import dataclass
from typing import Annotated, Any, get_args

import typer
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from customized_grpo import registry
from customized_grpo.commands.brief import brief
from customized_grpo.commands.tables import print_rows

KINDS: tuple[registry.Kind, ...] = get_args(registry.Kind)


@dataclass(frozen=True, slots=True)
class Described:
    """A plug-in; ``purpose`` is the error of one that can't be loaded."""

    name: str
    package: str
    purpose: str
    options: str


@brief()
def plugins(
    kind: Annotated[str | None, typer.Argument(help="show one kind only: rewards, policies, ...")] = None,
) -> None:
    """List every plug-in: built-in, and of other installed packages."""
    if kind is not None and kind not in KINDS:
        raise ValueError(f"KIND: given {kind!r}; allowed: {', '.join(KINDS)}")
    for one in KINDS if kind is None else (kind,):
        rows = [(found.name, found.package, found.purpose, found.options) for found in describe(one)]
        print_rows(one, ("type", "package", "what it is", "options (defaults)"), rows)


def describe(kind: registry.Kind) -> list[Described]:
    """Every known plug-in of a kind, the built-in ones first."""
    packages = {
        entry.name: entry.dist.name if entry.dist is not None else entry.value
        for entry in registry.third_party(kind)
    }
    own = registry.BUILTIN[kind]
    names = [*own, *sorted(registry.available(kind).keys() - own.keys())]
    return [_describe(kind, name, "customized-grpo" if name in own else packages[name]) for name in names]


def _describe(kind: registry.Kind, name: str, package: str) -> Described:
    try:
        plugin = registry.resolve(kind, name)
        return Described(name, package, _purpose(plugin), _options(registry.config_model(kind, plugin)))
    except registry.UnknownPluginError as error:
        return Described(name, package, f"can't be loaded: {error}", "")


def _purpose(plugin: Any) -> str:
    """The first sentence of its docstring."""
    return " ".join((inspect.getdoc(plugin) or "").split("\n\n")[0].split()).replace("``", "")


def _options(model: type[BaseModel]) -> str:
    fields = {name: field for name, field in model.model_fields.items() if name != "type"}
    return ", ".join(
        name if field.is_required() else f"{name} ({_short(field.get_default(call_default_factory=True))})"
        for name, field in fields.items()
    )


def _short(default: Any) -> str:
    if default is None or default is PydanticUndefined:
        return "null"
    return "..." if isinstance(default, BaseModel) else str(default)
