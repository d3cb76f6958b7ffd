"""The base of every section of a recipe, and the two forms of what is trained: an adapter, or all weights."""

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from customized_grpo.paths import home_expanded

LocalPath: TypeAlias = Annotated[str, AfterValidator(home_expanded)]
"""A file or folder of this machine."""


class Section(BaseModel):
    """A part of a recipe: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


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
    path: str | None = Field(
        default=None,
        description="start from this LoRA, of whatever tool (file, folder, run); a KL goes to the base without it: "
        "base_lora makes it part of the base",
    )
    balance: bool = Field(
        default=False,
        description="train dW_0 + b dW_1 for every b in [-1, 1], from the prompt's side to the identity's: each group "
        "has a b of its own, which moves its axes' weights (advantage.reach)",
    )

    @model_validator(mode="after")
    def _balance_begins_at_the_base(self) -> Self:
        if self.balance and self.path is not None:
            raise ValueError(
                "balance: its two updates begin at the base, so path has none for the second; leave path out, or make "
                "it part of the base as policy.base_lora"
            )
        return self


class FullSettings(Section):
    """Full fine-tuning: the transformer's own weights are trained, in float32; see ``policies.adapters.full``."""

    targets: tuple[str, ...] | None = Field(
        default=None,
        description="modules (with all beneath them) or parameters, by regular expressions that match a full name or "
        "its end; null: all",
    )
    path: str | None = Field(
        default=None,
        description="start from this transformer: a run, checkpoint or folder; a KL goes to policy.model, not to it",
    )
