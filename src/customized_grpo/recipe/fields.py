"""Fields of a recipe that a plug-in's own ``Config`` reads, by the section's ``type``."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, TypeAlias

from pydantic import BaseModel, BeforeValidator, Field, SerializeAsAny, WithJsonSchema

from customized_grpo import registry
from customized_grpo.recipe.sections import DataSpec, ObjectiveSpec, PolicySpec, RewardSpec

DEFAULT_TYPES: Final[Mapping[registry.Kind, str]] = {"objectives": "grpo"}
"""Types that a section may leave out: recipes from when there was no other objective."""
_BASES: Final[Mapping[registry.Kind, type[BaseModel]]] = {
    "policies": PolicySpec, "rewards": RewardSpec, "datasets": DataSpec, "objectives": ObjectiveSpec,
}  # fmt: skip


def _reader(kind: registry.Kind, base: type[BaseModel]) -> Callable[[Any], BaseModel]:
    """Reads a section by the ``Config`` of the plug-in that its ``type`` names."""

    def read(section: Any) -> BaseModel:
        if isinstance(section, BaseModel):
            return section
        if isinstance(section, dict) and kind in DEFAULT_TYPES:
            section = {"type": DEFAULT_TYPES[kind], **section}
        known = ", ".join(sorted(registry.available(kind)))
        if not isinstance(section, dict) or not isinstance(section.get("type"), str):
            raise ValueError(f"this section needs a 'type' (one of: {known}), as in {{type: ...}}; given: {section!r}")
        model = registry.config_model(kind, registry.resolve(kind, section["type"]))
        if not issubclass(model, base):
            raise registry.UnknownPluginError(
                f"{kind} plug-in {section['type']!r}: its Config must derive from {base.__module__}.{base.__name__}"
                + "".join(f", but it is one of {other}" for other, of in _BASES.items() if issubclass(model, of))
            )
        return registry.read_section(model, section)

    return read


def needs_transitions(section: Any) -> bool:
    """Whether a recipe's ``objective``, not validated yet, trains a sampler's transitions; true if it is unknown."""
    model = _objective(section)
    return model is None or model.transitions


def targets_of(section: Any) -> int:
    """Number of pictures that a recipe's ``objective``, not validated yet, learns from; 0 if it is unknown."""
    model = _objective(section)
    return 0 if model is None else model.targets


def _objective(section: Any) -> type[ObjectiveSpec] | None:
    """The ``Config`` that will read it; None if there is none, which the section's own reader says."""
    if isinstance(section, ObjectiveSpec):
        return type(section)
    given = section if isinstance(section, dict) else {}
    name = given.get("type", DEFAULT_TYPES["objectives"])
    try:
        model = registry.config_model("objectives", registry.resolve("objectives", str(name)))
    except registry.UnknownPluginError:
        return None
    return model if issubclass(model, ObjectiveSpec) else None


def _read_metric(section: Any) -> BaseModel:
    """A metric's type is looked up among the metrics first, then among the rewards: every reward is a metric too."""
    name = section.get("type") if isinstance(section, dict) else None
    kind: registry.Kind = "metrics" if name in registry.available("metrics") else "rewards"
    return _reader(kind, BaseModel)(section)


def _or_null(read: Callable[[Any], BaseModel]) -> Callable[[Any], BaseModel | None]:
    def read_or_null(section: Any) -> BaseModel | None:
        return None if section is None else read(section)

    return read_or_null


def _stub(kind: registry.Kind, *, null: bool = False) -> WithJsonSchema:
    """Placeholder schema of a plug-in's section; ``recipe_schema`` replaces it by the built-in plug-ins' schemas."""
    return WithJsonSchema({"type": "object", "required": ["type"], "x-plugin": kind, "x-null": null})


def _read_shift(value: Any) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if (number and 0 < value < float("inf")) or isinstance(value, str):
        return value  # the policy itself checks the name of the rule
    raise ValueError(f"given {value!r}; allowed: a number above 0, or a rule of the policy's, such as 'dynamic'")


_SHIFT: Final = "shift of the noise; dynamic: the model's own rule by image size; uno: UNO's variant of FLUX.1's"
ShiftSetting: TypeAlias = Annotated[float | str, BeforeValidator(_read_shift), Field(description=_SHIFT)]
"""A number, or the name of a policy's rule that makes one from the image's size; see ``policies.shifts``."""

PolicyField: TypeAlias = Annotated[
    SerializeAsAny[PolicySpec], BeforeValidator(_reader("policies", PolicySpec)), _stub("policies")
]
DataField: TypeAlias = Annotated[
    SerializeAsAny[DataSpec], BeforeValidator(_reader("datasets", DataSpec)), _stub("datasets")
]
RewardField: TypeAlias = Annotated[
    SerializeAsAny[RewardSpec], BeforeValidator(_reader("rewards", RewardSpec)), _stub("rewards")
]
MetricField: TypeAlias = Annotated[SerializeAsAny[BaseModel], BeforeValidator(_read_metric), _stub("metrics")]
DynamicsField: TypeAlias = Annotated[
    SerializeAsAny[BaseModel] | None,
    BeforeValidator(_or_null(_reader("dynamics", BaseModel))),
    _stub("dynamics", null=True),
]
PlanField: TypeAlias = Annotated[
    SerializeAsAny[BaseModel] | None,
    BeforeValidator(_or_null(_reader("plans", BaseModel))),
    _stub("plans", null=True),
]
ObjectiveField: TypeAlias = Annotated[
    SerializeAsAny[ObjectiveSpec], BeforeValidator(_reader("objectives", ObjectiveSpec)), _stub("objectives")
]
AggregatorField: TypeAlias = Annotated[
    SerializeAsAny[BaseModel], BeforeValidator(_reader("aggregators", BaseModel)), _stub("aggregators")
]
TimeWeightsField: TypeAlias = Annotated[
    SerializeAsAny[BaseModel], BeforeValidator(_reader("time_weights", BaseModel)), _stub("time_weights")
]
