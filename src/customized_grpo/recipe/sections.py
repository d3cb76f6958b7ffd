"""What recipes are made of: a frozen section, and a field that is read by the ``Config`` of a plug-in."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, SerializeAsAny, WithJsonSchema

from customized_grpo import registry


class Section(BaseModel):
    """A part of a recipe: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _reader(kind: registry.Kind) -> Callable[[Any], BaseModel]:
    def read(section: Any) -> BaseModel:
        if isinstance(section, BaseModel):
            return section
        known = ", ".join(sorted(registry.available(kind)))
        if not isinstance(section, dict) or not isinstance(section.get("type"), str):
            raise ValueError(
                f"this section needs a 'type' (one of: {known}), as in {{type: ...}}; given: {section!r}"
            )
        return registry.config_model(registry.resolve(kind, section["type"])).model_validate(section)

    return read


def plugin_section(kind: registry.Kind) -> Any:
    """A field read by the ``Config`` of the plug-in that its ``type`` names.

    Its JSON schema says only that much; ``recipe_schema`` puts the built-in plug-ins' own schemas in its place.
    """
    return Annotated[
        SerializeAsAny[BaseModel],
        BeforeValidator(_reader(kind)),
        WithJsonSchema({"type": "object", "required": ["type"], "x-plugin": kind}),
    ]


SHIFT_RULES = ("dynamic", "uno")


def _read_shift(value: Any) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if (number and 0 < value < float("inf")) or value in SHIFT_RULES:
        return value
    hint = registry.did_you_mean(value, list(SHIFT_RULES)) if isinstance(value, str) else ""
    raise ValueError(f"given {value!r};{hint} allowed: a number above 0, 'dynamic' or 'uno'")


Shift: TypeAlias = Annotated[float | Literal["dynamic", "uno"], BeforeValidator(_read_shift)]
"""A number, or a rule that makes one of the image's size; see ``policies.shifts``."""

if TYPE_CHECKING:  # to a type checker they are what the plug-in's Config makes of them
    PolicySpec: TypeAlias = Any
    DataSpec: TypeAlias = Any
    RewardSpec: TypeAlias = Any
    DynamicsSpec: TypeAlias = Any
    PlanSpec: TypeAlias = Any
    AggregatorSpec: TypeAlias = Any
    TimeWeightsSpec: TypeAlias = Any
else:
    PolicySpec = plugin_section("policies")
    DataSpec = plugin_section("datasets")
    RewardSpec = plugin_section("rewards")
    DynamicsSpec = plugin_section("dynamics")
    PlanSpec = plugin_section("plans")
    AggregatorSpec = plugin_section("aggregators")
    TimeWeightsSpec = plugin_section("time_weights")


def _read_metric(section: Any) -> BaseModel:
    """A metric's type is looked up among the metrics first, then among the rewards: every reward is a metric too."""
    name = section.get("type") if isinstance(section, dict) else None
    kind: registry.Kind = "metrics" if name in registry.available("metrics") else "rewards"
    return _reader(kind)(section)


MetricSpec = Annotated[
    SerializeAsAny[BaseModel],
    BeforeValidator(_read_metric),
    WithJsonSchema({"type": "object", "required": ["type"], "x-plugin": "metrics"}),
]
