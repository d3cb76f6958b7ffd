"""Registry of plug-ins, with one resolver: built-in table, then entry points, then ``module:attr``.

A plug-in is a class with a nested pydantic ``Config`` (policies, rewards, metrics, data sets,
objectives), a pydantic model
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
from typing import Any, TypeVar

from pydantic import BaseModel

from customized_grpo.registry.kinds import CALLS
from customized_grpo.registry.kinds import Kind as Kind
from customized_grpo.registry.signature import PluginSection as PluginSection
from customized_grpo.registry.signature import options_model

M = TypeVar("M", bound=BaseModel)

BUILTIN: Mapping[Kind, Mapping[str, str]] = {
    "policies": {
        "uno": "customized_grpo.policies.flux:UNO",
        "flux-kontext": "customized_grpo.policies.flux:Kontext",
        "flux2": "customized_grpo.policies.flux2:Flux2",
        "flux2-klein": "customized_grpo.policies.flux2:Flux2Klein",
        "flux3-klein": "customized_grpo.policies.flux3:Flux3Klein",
        "qwen-image-edit-plus": "customized_grpo.policies.qwen_image:QwenImageEditPlus",
        "qwen-image-2.1": "customized_grpo.policies.qwen_image21:QwenImage21",
    },
    "rewards": {
        "dino": "customized_grpo.rewards.dino:Dino",
        "subjects": "customized_grpo.rewards.subjects:Subjects",
        "structure_diversity": "customized_grpo.rewards.structure:StructureDiversity",
        "style": "customized_grpo.rewards.style:Style",
        "face": "customized_grpo.rewards.face:Face",
        "clip_t": "customized_grpo.rewards.clip:ClipT",
        "clip_i": "customized_grpo.rewards.clip:ClipI",
        "hpsv3": "customized_grpo.rewards.hpsv3:HPSv3",
        "pickscore": "customized_grpo.rewards.pickscore:PickScore",
        "siglip": "customized_grpo.rewards.siglip:Siglip",
        "aesthetic": "customized_grpo.rewards.aesthetic:Aesthetic",
        "remote": "customized_grpo.rewards.remote:Remote",
        "vlm": "customized_grpo.rewards.judge.vlm:Vlm",
        "vlm_pairwise": "customized_grpo.rewards.judge.pairwise:Pairwise",
    },
    "metrics": {
        "mini_oracle": "customized_grpo.mini.oracle:MiniOracle",
        "copy": "customized_grpo.evaluation.copies:Copy",
    },
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
        "dreambooth-folder": "customized_grpo.prepare.importers.subjects:DreamBoothFolder",
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
    "objectives": {
        "grpo": "customized_grpo.objectives.grpo:GRPO",
        "nft": "customized_grpo.objectives.nft:NFT",
        "awm": "customized_grpo.objectives.awm:AWM",
        "sft": "customized_grpo.objectives.sft:SFT",
        "dpo": "customized_grpo.objectives.dpo:DPO",
    },
}

# A plain function of these kinds becomes a class of the kind.
_ADAPTERS: Mapping[Kind, str] = {"rewards": "customized_grpo.rewards.function:reward_class"}


class UnknownPluginError(ValueError):
    """No plug-in of that name; the message lists what there is and the nearest match."""


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
    """Name -> ``module:attr`` of every plug-in of a kind; see ``resolve`` for a name that is given twice."""
    return {**{entry.name: entry.value for entry in third_party(kind)}, **BUILTIN[kind]}


def resolve(kind: Kind, name: str) -> Any:
    """The plug-in called ``name``: a known name or ``module:attr``.

    Raises:
        UnknownPluginError: no such name, module or attribute; a broken import is chained. Or another package has given
            the name of a built-in plug-in to its own.
    """
    target = name if ":" in name else available(kind).get(name, name)
    others = [] if ":" in name else [one.value for one in third_party(kind).select(name=name) if one.value != target]
    if others:
        raise UnknownPluginError(
            f"two plug-ins of {kind} are called {name!r}: {target}, {', '.join(others)}; say which by its place, as in "
            f"type: {others[0]!r}, or uninstall the package of the other"
        )
    if ":" not in target:
        known = available(kind)
        hint = did_you_mean(name, list(known))
        raise UnknownPluginError(
            f"unknown type {name!r} of {kind};{hint} known: {', '.join(sorted(known))}; "
            "or give your own as 'package.module:Name'"
        )
    try:
        plugin = _load(target)
    except Exception as error:  # whatever a module of another package does while it is imported
        raise UnknownPluginError(
            f"{kind} plug-in {name!r} can't be loaded from {target!r}: {type(error).__name__}: {error}; "
            + _what_to_do(target, error)
        ) from error
    if inspect.isfunction(plugin) and kind in _ADAPTERS:
        try:
            plugin = _load(_ADAPTERS[kind])(plugin)
        except ValueError as error:
            raise UnknownPluginError(f"{kind} plug-in {name!r} can't be used: {error}") from error
    return plugin


def _what_to_do(target: str, error: Exception) -> str:
    """Advice where a plug-in of another module can't be loaded."""
    module, _, attribute = target.partition(":")
    if module.endswith(".py"):
        return f"give the module without its ending: '{module.removesuffix('.py')}:{attribute}'"
    if isinstance(error, ModuleNotFoundError) and error.name == module.split(".")[0]:
        return (
            "a file of your own must be in the current folder, or in one of PYTHONPATH: PYTHONPATH=FOLDER "
            "customized-grpo ..."
        )
    if isinstance(error, AttributeError) and module in sys.modules:
        names = [one for one in vars(sys.modules[module]) if not one.startswith("_")]
        return f"the module defines no such name;{did_you_mean(attribute, names)} look at how it is written there"
    if isinstance(error, SyntaxError):
        return f"mend line {error.lineno} of {error.filename}"
    return "is the package installed, and does the module define that name?"


def _load(target: str) -> Any:
    module_name, _, attribute = target.partition(":")
    found: Any = importlib.import_module(module_name)
    for part in attribute.split("."):
        found = getattr(found, part)
    return found


def config_model(kind: Kind, plugin: Any) -> type[BaseModel]:
    """The pydantic model that reads a plug-in's section of a recipe.

    Raises:
        UnknownPluginError: it declares no options in a form that the kind has.
    """
    if inspect.isfunction(plugin) and kind in CALLS:
        try:
            return _section_of(kind, plugin)
        except ValueError as error:
            raise UnknownPluginError(str(error)) from error
    if not inspect.isclass(plugin):
        raise UnknownPluginError(
            f"a {type(plugin).__name__} can't be a plug-in of {kind}; give a class"
            + (", or a function (def) that calls it" if kind in CALLS else "")
        )
    place = f"{plugin.__module__}:{plugin.__qualname__}"
    model = plugin if issubclass(plugin, BaseModel) else vars(plugin).get("Config")
    if not (inspect.isclass(model) and issubclass(model, BaseModel)):
        raise UnknownPluginError(
            f"{place} has no nested pydantic class 'Config'; a plug-in class declares its options there"
        )
    if "type" not in model.model_fields:
        raise UnknownPluginError(f"{place}: its section needs a field 'type', as in type: str")
    if kind in CALLS and "__call__" not in dir(plugin):
        raise UnknownPluginError(f"{place} can't be called, as a plug-in of {kind} must be")
    return model


def read_section(model: type[M], given: Any) -> M:
    """Validate a section; unknown keys are refused in it and beneath it, which a plain pydantic model would drop.

    Raises:
        ValidationError: a key or a value is not allowed.
    """
    asked = model.model_config.get("extra")
    return model.model_validate(given, extra=asked if asked in ("allow", "ignore") else "forbid")


def section_of(kind: Kind, function: Callable[..., Any], base: type[M]) -> type[M]:
    """The section of a plug-in function, see ``signature.options_model``; it is pickled by its kind and values."""
    model = options_model(CALLS[kind], function, base)

    def reduced(section: BaseModel) -> tuple[Any, ...]:
        return _unpickled, (kind, dict(section))

    model.__reduce__ = reduced  # type: ignore[method-assign, assignment]
    return model


@cache
def _section_of(kind: Kind, function: Callable[..., Any]) -> type[BaseModel]:
    return section_of(kind, function, PluginSection)


def _unpickled(kind: Kind, values: dict[str, Any]) -> BaseModel:
    return config_model(kind, resolve(kind, values["type"])).model_validate(values)


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
