"""``customized-grpo plugins``: every plug-in by name, package, purpose and options."""

import inspect
from collections.abc import Iterator
from typing import Annotated, Any, get_args

import typer
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from customized_grpo import registry
from customized_grpo.commands.brief import brief
from customized_grpo.commands.tables import print_rows

KINDS: tuple[registry.Kind, ...] = get_args(registry.Kind)


@brief()
def plugins(
    kind: Annotated[str | None, typer.Argument(help="show one kind only: rewards, policies, ...")] = None,
) -> None:
    """List every plug-in: built-in, and of other installed packages."""
    if kind is not None and kind not in KINDS:
        raise ValueError(f"KIND: given {kind!r}; allowed: {', '.join(KINDS)}")
    for one in KINDS if kind is None else (kind,):
        print_rows(one, ("type", "package", "what it is", "options (defaults)"), [*_described(one)])


def _described(kind: registry.Kind) -> Iterator[tuple[str, str, str, str]]:
    """A row for every known plug-in of a kind, the built-in ones first."""
    packages = {
        entry.name: entry.dist.name if entry.dist is not None else entry.value for entry in registry.third_party(kind)
    }
    own = registry.BUILTIN[kind]
    for name in [*own, *sorted(registry.available(kind).keys() - own.keys())]:
        package = "customized-grpo" if name in own else packages[name]
        try:
            plugin = registry.resolve(kind, name)
            yield name, package, _purpose(plugin), _options(registry.config_model(kind, plugin))
        except registry.UnknownPluginError as error:
            yield name, package, f"can't be loaded: {error}", ""


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
