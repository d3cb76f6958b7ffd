"""The sections of a recipe: frozen models, the typed bases of plug-ins' sections, and fields that a plug-in reads."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Final, Literal, Self, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    SerializeAsAny,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from customized_grpo import registry
from customized_grpo.paths import home_expanded, model_path
from customized_grpo.recipe.limits import PolicyLimits
from customized_grpo.recipe.scorers import MetricSpec as MetricSpec
from customized_grpo.recipe.scorers import ModelRewardSpec as ModelRewardSpec
from customized_grpo.recipe.scorers import RewardSpec as RewardSpec

LocalPath: TypeAlias = Annotated[str, AfterValidator(home_expanded)]
"""A file or folder of this machine."""


class Section(BaseModel):
    """A part of a recipe: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True, slots=True)
class Shift:
    """Shift of an even grid of noise levels; see ``sampling.schedule.shifted_sigmas``."""

    value: float
    terminal: float | None = None
    """Last level before 0, to which the grid is stretched."""


ShiftRule = Callable[[int, int], Shift]
"""Maps an image's number of tokens and the number of steps to a shift; see ``policies.shifts``."""


class LoraSettings(Section):
    """The trained adapter: peft's LoRA, by way of diffusers' ``add_adapter``."""

    rank: PositiveInt = 64
    alpha: PositiveFloat | None = Field(
        default=None, allow_inf_nan=False, description="scale is alpha / rank; null means alpha = rank"
    )
    init: Literal["gaussian", "kaiming"] = "gaussian"
    targets: tuple[str, ...] | None = Field(
        default=None,
        description="module name suffixes, regular expressions, or names of the policy's presets (FLUX: uno); null: "
        "the policy's own default",
    )
    qkv: Literal["separate", "shared"] = Field(
        default="separate",
        description="shared: q, k and v of a layer have one A, as in UNO's LoRA, which it is exported to without loss",
    )
    path: str | None = Field(default=None, description="start from this LoRA, of whatever tool (file, folder, run)")


class FullSettings(Section):
    """Full fine-tuning: the transformer's own weights are trained, in float32; see ``policies.adapters.full``."""

    targets: tuple[str, ...] | None = Field(
        default=None,
        description="modules (with all beneath them) or parameters, by regular expressions that match a full name or "
        "its end; null: all",
    )
    path: str | None = Field(default=None, description="start from this transformer: a run, checkpoint or folder")


class PolicySpec(registry.PluginSection, PolicyLimits):
    """The typed base of every policy's ``Config``; each policy adds its own fields.

    Attributes:
        not_encoded: fields that don't affect ``Policy.encode``; all others are in a cached conditioning's key.
        embedded: the package's miniature model that ``model: mini`` stands for.
        shift_rules: named rules for ``sampling.shift``; ``dynamic`` is the model's own rule by the image's size.
    """

    not_encoded: ClassVar[frozenset[str]] = frozenset(
        {"lora", "full", "gradient_checkpointing", "quantization", "attention", "compile"}
    )
    embedded: ClassVar[str] = "flux"
    shift_rules: ClassVar[Mapping[str, ShiftRule]] = {}

    model: str
    height: PositiveInt = 512
    width: PositiveInt = 512
    lora: LoraSettings | None = Field(default=LoraSettings(), description="train an adapter; null where full is given")
    full: FullSettings | None = Field(
        default=None, description="train the transformer itself instead of an adapter; {}: all of its weights"
    )
    gradient_checkpointing: bool | Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        default=False,
        description="recompute activations in the backward pass, to store less; of all blocks, or of a share",
    )
    quantization: Literal["none", "8bit", "4bit"] = Field(
        default="none",
        description="weights of the frozen transformer by bitsandbytes: LLM.int8 or NF4; needs a GPU",
    )
    attention: str | None = Field(
        default=None,
        description="diffusers' attention backend, such as flash or _native_cudnn; null: its own",
    )
    compile: bool = Field(default=False, description="torch.compile the transformer's repeated blocks")

    @field_validator("attention")
    @classmethod
    def _known_backend(cls, name: str | None) -> str | None:
        if name is not None:
            from diffusers.models.attention_dispatch import AttentionBackendName  # slow to import

            known = [backend.value for backend in AttentionBackendName]
            if name not in known:
                hint = registry.did_you_mean(name, known)
                raise ValueError(f"given {name!r};{hint} allowed: {', '.join(known)}")
        return name

    @model_validator(mode="before")
    @classmethod
    def _full_takes_the_place_of_lora(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("full") is not None:
            return {"lora": None, **given}
        return given

    @model_validator(mode="after")
    def _one_form_of_training(self) -> Self:
        if self.lora is None and self.full is None:
            raise ValueError("lora: null leaves nothing to train; give full: {} to train the transformer itself")
        if self.full is None:
            return self
        if self.lora is not None:
            raise ValueError(
                "full: it trains the transformer itself, and lora an adapter on it; leave one out (lora: null)"
            )
        if self.quantization != "none":
            raise ValueError(
                f"full: weights that are held in {self.quantization} can't be trained; use quantization: none, or lora"
            )
        return self

    def source(self) -> str:
        """The folder or hub id that the weights are read from."""
        return model_path(self.model, self.embedded)

    def shift(self, given: float | str, *, tokens: int, steps: int) -> Shift:
        """Resolve ``sampling.shift`` for an image of ``tokens`` tokens in ``steps`` steps.

        Raises:
            ValueError: the name of a rule that this policy doesn't have.
        """
        if not isinstance(given, str):
            return Shift(float(given))
        if given not in self.shift_rules:
            hint = registry.did_you_mean(given, list(self.shift_rules))
            known = "".join(f", or {rule}" for rule in self.shift_rules)
            raise ValueError(
                f"sampling.shift: given {given!r};{hint} policy.type {self.type} allows: a number above 0{known}"
            )
        return self.shift_rules[given](tokens, steps)

    def num_forwards(self) -> int:
        """Forwards of the transformer in one velocity, at most: 2 with classifier-free guidance."""
        return 1

    def latent_shape(self) -> tuple[int, int] | None:
        """(S, C) of one sample if known without loading the model, for ``validate``; else None."""
        return None

    def reference_side(self) -> int | None:
        """Long side of a reference in pixels as the policy reads it, for an estimate of memory; None: unknown."""
        return None

    def prompt_tokens(self) -> int | None:
        """Text tokens of a prompt at most, for an estimate of memory; None: unknown."""
        return None


class DataSpec(registry.PluginSection):
    """The typed base of every data set's ``Config``; each data set adds its own fields."""


_BASES: Final[Mapping[registry.Kind, type[BaseModel]]] = {
    "policies": PolicySpec, "rewards": RewardSpec, "datasets": DataSpec,
}  # fmt: skip


def _reader(kind: registry.Kind, base: type[BaseModel]) -> Callable[[Any], BaseModel]:
    """Reads a section by the ``Config`` of the plug-in that its ``type`` names."""

    def read(section: Any) -> BaseModel:
        if isinstance(section, BaseModel):
            return section
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


def _read_metric(section: Any) -> BaseModel:
    """A metric's type is looked up among the metrics first, then among the rewards: every reward is a metric too."""
    name = section.get("type") if isinstance(section, dict) else None
    kind: registry.Kind = "metrics" if name in registry.available("metrics") else "rewards"
    return _reader(kind, BaseModel)(section)


def _stub(kind: registry.Kind) -> WithJsonSchema:
    """Placeholder schema of a plug-in's section; ``recipe_schema`` replaces it by the built-in plug-ins' schemas."""
    return WithJsonSchema({"type": "object", "required": ["type"], "x-plugin": kind})


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
    SerializeAsAny[BaseModel], BeforeValidator(_reader("dynamics", BaseModel)), _stub("dynamics")
]
PlanField: TypeAlias = Annotated[
    SerializeAsAny[BaseModel], BeforeValidator(_reader("plans", BaseModel)), _stub("plans")
]
AggregatorField: TypeAlias = Annotated[
    SerializeAsAny[BaseModel], BeforeValidator(_reader("aggregators", BaseModel)), _stub("aggregators")
]
TimeWeightsField: TypeAlias = Annotated[
    SerializeAsAny[BaseModel], BeforeValidator(_reader("time_weights", BaseModel)), _stub("time_weights")
]
