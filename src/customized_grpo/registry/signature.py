"""The section of a plug-in function: a pydantic model made from its keyword-only parameters."""

import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, PydanticUserError, ValidationError, create_model

M = TypeVar("M", bound=BaseModel)


class PluginSection(BaseModel):
    """A plug-in's section of a recipe: a ``type``, and the plug-in's own options."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: str


class Call(NamedTuple):
    """The call that a function of some kind has to answer."""

    positional: tuple[str, ...]
    given: tuple[str, ...] = ()
    """Keywords that the caller gives, so that they are not options."""
    optional: tuple[str, ...] = ()
    """Arguments behind the positional ones that a function gets if it has parameters of these names."""

    def form(self, *options: str) -> str:
        """``f(a, w, *, gamma: float = ...)``, for people."""
        keywords = [*(f"{name}=..." for name in self.given), *(f"{name}: float = ..." for name in options)]
        return f"f({', '.join([*self.positional, *(['*', *keywords] if keywords else [])])})"


def options_model(call: Call, function: Callable[..., Any], base: type[M]) -> type[M]:
    """A model of a function's keyword-only parameters, with their annotations and defaults, on top of ``base``.

    ``Annotated[float, Field(ge=0.0, description="...")]`` sets bounds and words, as in any pydantic model.

    Raises:
        ValueError: it can't be called as ``call`` says, or a parameter can't be an option.
    """
    place = f"{function.__module__}:{function.__qualname__}"
    signature = inspect.signature(function)
    parameters = signature.parameters.values()
    options = [one for one in parameters if one.kind is one.KEYWORD_ONLY and one.name not in call.given]
    try:
        keywords = [*call.given, *(one.name for one in options)]
        asked = [one.name for one in parameters if one.name in call.optional and one.kind is one.POSITIONAL_OR_KEYWORD]
        bound = signature.bind(*call.positional, *asked, **dict.fromkeys(keywords)).arguments
    except TypeError as error:
        raise ValueError(f"{place} can't be called as {call.form()}: {error}") from error
    if wrong := [name for name in asked if bound[name] != name]:
        raise ValueError(f"{place}: {wrong[0]} must stand behind {', '.join(call.positional)}")
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    unset = [one.name for one in parameters if one.kind in positional and one.name not in bound]
    if unset:
        raise ValueError(
            f"{place}: no recipe can set {', '.join(unset)}; make it keyword-only, as in "
            f"{call.form(*(name for name in unset if name not in call.given))}"
        )
    try:
        fields: dict[str, Any] = {one.name: _field(function, one, base) for one in options}
        return create_model(
            function.__name__,
            __base__=base,
            __doc__=inspect.getdoc(function),
            __module__=function.__module__,
            **fields,
        )
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def _field(function: Callable[..., Any], option: inspect.Parameter, base: type[BaseModel]) -> tuple[Any, Any]:
    """The annotation and the default of an option, which is validated as a recipe's value is."""
    name = option.name
    if name.startswith("_") or name in base.model_fields or name in dir(base):
        raise ValueError(f"an option can't be called {name}, as the section itself uses that; rename it")
    if option.annotation is option.empty:
        raise ValueError(f"the option {name} needs an annotation, as in {name}: float = ...")
    try:
        stub = type("Options", (), {"__annotations__": {name: option.annotation}})
        names = inspect.unwrap(function).__globals__
        annotation = get_type_hints(stub, globalns=names, include_extras=True)[name]
        fields: dict[str, Any] = {name: (annotation, ...)}
        alone = create_model("Option", **fields)
    except (NameError, AttributeError, SyntaxError, TypeError, PydanticUserError) as error:
        said = str(error).splitlines()[0]
        raise ValueError(
            f"the annotation of {name} can't be an option's: {said}; use types of Python or pydantic, imported outside "
            "TYPE_CHECKING"
        ) from error
    if alone.model_fields[name].alias or alone.model_fields[name].exclude:
        raise ValueError(f"the option {name}: Field(alias=...) and Field(exclude=...) don't fit a recipe")
    if option.default is option.empty:
        return annotation, ...
    try:
        default = dict(alone.model_validate({name: option.default}))[name]
    except ValidationError as error:
        raise ValueError(
            f"the default of {name}, {option.default!r}, is not what its annotation allows: {error.errors()[0]['msg']}"
        ) from error
    if isinstance(default, float) and not math.isfinite(default):
        raise ValueError(f"the default of {name} is {default}, which is not finite")
    return annotation, default
