"""Registry of plug-ins, with one resolver: built-in table, then entry points, then ``module:attr``.

A plug-in is a class with a nested pydantic ``Config`` (policies, rewards, metrics, data sets), a pydantic model
(importers, plans), or a plain function (aggregators, time weights, dynamics, rewards), whose keyword-only parameters
are its section of a recipe. None registers itself.
"""

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import cache, lru_cache, partial
from importlib.metadata import EntryPoints, entry_points
from typing import Any, Literal, NamedTuple, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, PydanticUserError, create_model

M = TypeVar("M", bound=BaseModel)

Kind = Literal[
    "policies",
    "rewards",
    "metrics",
    "datasets",
    "importers",
    "aggregators",
    "time_weights",
    "dynamics",
    "plans",
]

BUILTIN: Mapping[Kind, Mapping[str, str]] = {
    "policies": {
        "uno": "customized_grpo.policies.flux:UNO",
        "flux-kontext": "customized_grpo.policies.flux:Kontext",
        "flux2": "customized_grpo.policies.flux2:Flux2",
        "flux2-klein": "customized_grpo.policies.flux2:Flux2Klein",
        "qwen-image-edit-plus": "customized_grpo.policies.qwen_image:QwenImageEditPlus",
    },
    "rewards": {
        "dino": "customized_grpo.rewards.dino:Dino",
        "clip_t": "customized_grpo.rewards.clip:ClipT",
        "clip_i": "customized_grpo.rewards.clip:ClipI",
        "hpsv3": "customized_grpo.rewards.hpsv3:HPSv3",
        "pickscore": "customized_grpo.rewards.pickscore:PickScore",
        "siglip": "customized_grpo.rewards.siglip:Siglip",
        "aesthetic": "customized_grpo.rewards.aesthetic:Aesthetic",
        "remote": "customized_grpo.rewards.remote:Remote",
        "vlm": "customized_grpo.rewards.judge.vlm:Vlm",
    },
    "metrics": {"mini_oracle": "customized_grpo.mini.oracle:MiniOracle"},
    "datasets": {
        "manifest": "customized_grpo.data.manifest:ManifestDataset",
        "dreambench": "customized_grpo.data.dreambench:DreamBench",
        "mini": "customized_grpo.mini.dataset:MiniDataset",
    },
    "importers": {
        "syncd": "customized_grpo.prepare.importers.syncd:SynCD",
        "syncd-json": "customized_grpo.prepare.importers.syncd:SynCDJson",
        "subjects200k": "customized_grpo.prepare.importers.hub:Subjects200K",
        "uno": "customized_grpo.prepare.importers.uno:UNO",
        "dreambooth-folder": "customized_grpo.prepare.importers.folders:DreamBoothFolder",
        "imagefolder": "customized_grpo.prepare.importers.folders:ImageFolder",
        "dreambench": "customized_grpo.prepare.importers.dreambench:DreamBench",
        "dreambench++": "customized_grpo.prepare.importers.dreambench:DreamBenchPlus",
        "hub": "customized_grpo.prepare.importers.hub:Hub",
    },
    "aggregators": {
        "sars": "customized_grpo.advantages.aggregators:sars",
        "weighted_sum": "customized_grpo.advantages.aggregators:weighted_sum",
        "minimum": "customized_grpo.advantages.aggregators:minimum",
        "maximum": "customized_grpo.advantages.aggregators:maximum",
        "weighted_minimum": "customized_grpo.advantages.aggregators:weighted_minimum",
        "weighted_maximum": "customized_grpo.advantages.aggregators:weighted_maximum",
        "harmonic": "customized_grpo.advantages.aggregators:harmonic",
        "product": "customized_grpo.advantages.aggregators:product",
    },
    "time_weights": {
        "tdw": "customized_grpo.advantages.time_weights:tdw",
        "constant": "customized_grpo.advantages.time_weights:constant",
        "table": "customized_grpo.advantages.time_weights:table",
    },
    "dynamics": {
        "dance_sde": "customized_grpo.sampling.dynamics:dance_sde",
        "flow_sde": "customized_grpo.sampling.dynamics:flow_sde",
        "cps": "customized_grpo.sampling.dynamics:cps",
    },
    "plans": {
        "all": "customized_grpo.sampling.schedule:AllPlan",
        "fraction": "customized_grpo.sampling.schedule:FractionPlan",
        "window": "customized_grpo.sampling.schedule:WindowPlan",
        "branch": "customized_grpo.sampling.schedule:BranchPlan",
    },
}

# A plain function of these kinds becomes a class of the kind.
_ADAPTERS: Mapping[Kind, str] = {"rewards": "customized_grpo.rewards.function:reward_class"}


class UnknownPluginError(ValueError):
    """No plug-in of that name; the message lists what there is and the nearest match."""


class PluginSection(BaseModel):
    """A plug-in's section of a recipe: a ``type``, and the plug-in's own options."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: str


class _Call(NamedTuple):
    """Signature required of functions of a kind."""

    positional: tuple[str, ...]
    given: tuple[str, ...] = ()
    """Keywords passed by the caller, which are not options."""


_CALLS: Mapping[Kind, _Call] = {
    "aggregators": _Call(("a", "w")),
    "time_weights": _Call(("num_steps",)),
    "dynamics": _Call(("velocity", "x", "sigma", "sigma_next"), ("sigma_max",)),
    "rewards": _Call(("example", "images")),
}


def did_you_mean(given: str, allowed: list[str]) -> str:
    """`` did you mean 'x'?`` if there is a similar name, else an empty string."""
    near = get_close_matches(given, allowed, n=1, cutoff=0.6)
    return f" did you mean {near[0]!r}?" if near else ""


@lru_cache(maxsize=1)
def _entry_points(path: tuple[str, ...]) -> dict[Kind, EntryPoints]:
    """Entry points of all packages on ``sys.path``, read once: it takes 10 ms, and every section of a recipe asks."""
    found = entry_points()
    return {kind: found.select(group=f"customized_grpo.{kind}") for kind in BUILTIN}


def third_party(kind: Kind) -> EntryPoints:
    """Entry points of a kind in other installed packages."""
    return _entry_points(tuple(sys.path))[kind]


def available(kind: Kind) -> dict[str, str]:
    """Name -> ``module:attr`` of every plug-in of a kind; a built-in name can't be taken over by an entry point."""
    return {**{entry.name: entry.value for entry in third_party(kind)}, **BUILTIN[kind]}


def resolve(kind: Kind, name: str) -> Any:
    """The plug-in called ``name``: a known name or ``module:attr``.

    Raises:
        UnknownPluginError: no such name, module or attribute; a broken import is chained.
    """
    # the packages that are installed are searched only for a name that is neither built in nor a place
    target = BUILTIN[kind].get(name) or (name if ":" in name else available(kind).get(name, name))
    if ":" not in target:
        known = available(kind)
        hint = did_you_mean(name, list(known))
        raise UnknownPluginError(
            f"unknown type {name!r} of {kind};{hint} known: {', '.join(sorted(known))}; "
            "or give your own as 'package.module:Name'"
        )
    try:
        plugin = _load(target)
    except (ImportError, AttributeError) as error:
        raise UnknownPluginError(
            f"{kind} plug-in {name!r} can't be loaded from {target!r}: {error}; "
            "is the package installed, and does the module define that name?"
        ) from error
    if inspect.isfunction(plugin) and kind in _ADAPTERS:
        try:
            plugin = _load(_ADAPTERS[kind])(plugin)
        except ValueError as error:
            raise UnknownPluginError(f"{kind} plug-in {name!r} can't be used: {error}") from error
    return plugin


def _load(target: str) -> Any:
    module_name, _, attribute = target.partition(":")
    found: Any = importlib.import_module(module_name)
    for part in attribute.split("."):
        found = getattr(found, part)
    return found


@cache
def config_model(kind: Kind, plugin: Any) -> type[BaseModel]:
    """The pydantic model that reads a plug-in's section of a recipe.

    Raises:
        UnknownPluginError: it declares no options in a form that the kind has.
    """
    if inspect.isclass(plugin) and issubclass(plugin, BaseModel):
        return plugin
    if inspect.isclass(plugin):
        nested = vars(plugin).get("Config")
        if inspect.isclass(nested) and issubclass(nested, BaseModel):
            return nested
        raise UnknownPluginError(
            f"{plugin.__module__}:{plugin.__qualname__} has no nested pydantic class 'Config'; "
            "a plug-in class declares its options there"
        )
    if inspect.isfunction(plugin) and kind in _CALLS:
        try:
            return section_of(kind, plugin, PluginSection)
        except ValueError as error:
            raise UnknownPluginError(str(error)) from error
    raise UnknownPluginError(
        f"{plugin!r} is neither a class nor a function of a kind that takes functions ({', '.join(_CALLS)}), so it "
        f"can't be a plug-in of {kind}"
    )


def section_of(kind: Kind, function: Callable[..., Any], base: type[M]) -> type[M]:
    """The section of a plug-in function: its keyword-only parameters with their annotations and defaults.

    ``Annotated[float, Field(ge=0.0, description="...")]`` sets bounds and a description, as in any pydantic model.

    Raises:
        ValueError: it can't be called as its kind is, or a parameter can't be an option.
    """
    call, place = _CALLS[kind], f"{function.__module__}:{function.__qualname__}"
    parameters = inspect.signature(function).parameters.values()
    options = [one for one in parameters if one.kind is one.KEYWORD_ONLY and one.name not in call.given]
    form = ", ".join(
        [*call.positional, *(["*", *(f"{name}=..." for name in call.given)] if call.given else [])]
    )
    try:
        bound = inspect.signature(function).bind(
            *call.positional, **dict.fromkeys([*call.given, *(one.name for one in options)])
        )
    except TypeError as error:
        raise ValueError(f"{place} can't be called as f({form}): {error}") from error
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    unset = [one.name for one in parameters if one.name not in bound.arguments and one.kind in positional]
    if unset:
        raise ValueError(
            f"{place}: no recipe can set {', '.join(unset)}; make it keyword-only, as in "
            f"f({', '.join(call.positional)}, *, {unset[0]}: float = ...)"
        )
    try:
        hints = get_type_hints(function, include_extras=True)
    except NameError as error:
        raise ValueError(f"{place}: its annotations can't be read: {error}") from error
    for one in options:
        if one.name not in hints:
            raise ValueError(
                f"{place}: the option {one.name} needs an annotation, as in {one.name}: float = ..."
            )
        if one.name in base.model_fields:
            raise ValueError(f"{place}: {one.name} is a key of every section of {kind}; rename the parameter")
    fields: dict[str, Any] = {
        one.name: (hints[one.name], ... if one.default is one.empty else one.default) for one in options
    }
    try:
        return create_model(
            function.__name__,
            __base__=base,
            __doc__=inspect.getdoc(function),
            __module__=function.__module__,
            **fields,
        )
    except (PydanticUserError, NameError) as error:
        raise ValueError(f"{place}: its parameters can't be options: {error}") from error


def build_function(kind: Kind, spec: BaseModel) -> Callable[..., Any]:
    """The callable behind a function-like section (aggregator, time weights, dynamics), its options bound."""
    plugin = resolve(kind, type_of(spec))
    if inspect.isclass(plugin) and issubclass(plugin, BaseModel):
        assert callable(spec)
        return spec
    if inspect.isclass(plugin):
        factory: Any = plugin
        made: Callable[..., Any] = factory(spec)
        return made
    return partial(plugin, **{name: value for name, value in spec if name != "type"})


def type_of(spec: BaseModel) -> str:
    """The ``type`` of a plug-in's section, which may be a model of another package."""
    name = dict(spec)["type"]
    assert isinstance(name, str)
    return name
