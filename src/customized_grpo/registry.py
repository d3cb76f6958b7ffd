"""One resolver for every plug-in: built-in table, then entry points, then ``module:attr``.

A plug-in is a class with a nested pydantic ``Config`` (policies, rewards, metrics, data sets), a pydantic model that
can be called (importers, aggregators, time weights, dynamics, plans), or a plain function without options. None
registers itself.
"""

import importlib
import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from importlib.metadata import entry_points
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

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
    "metrics": {"mini_oracle": "customized_grpo.mini.metric:MiniOracle"},
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
        "sars": "customized_grpo.advantages.aggregators:SARS",
        "weighted_sum": "customized_grpo.advantages.aggregators:WeightedSum",
        "minimum": "customized_grpo.advantages.aggregators:Minimum",
        "maximum": "customized_grpo.advantages.aggregators:Maximum",
        "harmonic": "customized_grpo.advantages.aggregators:Harmonic",
        "product": "customized_grpo.advantages.aggregators:Product",
    },
    "time_weights": {
        "tdw": "customized_grpo.advantages.time_weights:TDW",
        "constant": "customized_grpo.advantages.time_weights:Constant",
        "table": "customized_grpo.advantages.time_weights:Table",
    },
    "dynamics": {
        "dance_sde": "customized_grpo.sampling.dynamics:DanceSDE",
        "flow_sde": "customized_grpo.sampling.dynamics:FlowSDE",
        "cps": "customized_grpo.sampling.dynamics:CPS",
    },
    "plans": {
        "all": "customized_grpo.sampling.schedule:AllPlan",
        "fraction": "customized_grpo.sampling.schedule:FractionPlan",
        "window": "customized_grpo.sampling.schedule:WindowPlan",
        "branch": "customized_grpo.sampling.schedule:BranchPlan",
    },
}

# A plain function of these kinds becomes a class of the form that the kind has.
_ADAPTERS: Mapping[Kind, str] = {"rewards": "customized_grpo.rewards.function:reward_class"}


class UnknownPluginError(ValueError):
    """No plug-in of that name; the message lists what there is and the nearest match."""


class PlainConfig(BaseModel):
    """The section of a plug-in that is a plain function: a type and no options."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: str


def did_you_mean(given: str, allowed: list[str]) -> str:
    """`` did you mean 'x'?`` where something is near, else an empty string."""
    near = get_close_matches(given, allowed, n=1, cutoff=0.6)
    return f" did you mean {near[0]!r}?" if near else ""


def available(kind: Kind) -> dict[str, str]:
    """Name -> ``module:attr`` of every plug-in of a kind; a built-in name can't be taken over by an entry point."""
    third_party = {entry.name: entry.value for entry in entry_points(group=f"customized_grpo.{kind}")}
    return {**third_party, **BUILTIN[kind]}


def resolve(kind: Kind, name: str) -> Any:
    """The plug-in called ``name``: a known name or ``module:attr``.

    Raises:
        UnknownPluginError: no such name, module or attribute; a broken import is chained.
    """
    known = available(kind)
    target = known.get(name, name)
    if ":" not in target:
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


def config_model(plugin: Any) -> type[BaseModel]:
    """The pydantic model that reads a plug-in's section of a recipe."""
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
    if inspect.isfunction(plugin):
        return PlainConfig
    raise UnknownPluginError(f"{plugin!r} is neither a class nor a function, so it can't be a plug-in")


def build_function(kind: Kind, spec: BaseModel) -> Callable[..., Any]:
    """The callable behind a function-like section (aggregator, time weights, dynamics)."""
    plugin = resolve(kind, type_of(spec))
    if inspect.isclass(plugin) and issubclass(plugin, BaseModel):
        assert callable(spec)
        return spec
    if inspect.isclass(plugin):
        factory: Any = plugin
        made: Callable[..., Any] = factory(spec)
        return made
    function: Callable[..., Any] = plugin
    return function


def type_of(spec: BaseModel) -> str:
    """The ``type`` of a plug-in's section."""
    name = spec.model_dump(include={"type"})["type"]
    assert isinstance(name, str)
    return name
