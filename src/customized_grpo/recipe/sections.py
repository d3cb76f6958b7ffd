"""The sections of a recipe: frozen models, and the typed bases of plug-ins' sections."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from customized_grpo import registry
from customized_grpo.paths import model_path
from customized_grpo.recipe.limits import PolicyLimits
from customized_grpo.recipe.scorers import MetricSpec as MetricSpec
from customized_grpo.recipe.scorers import ModelRewardSpec as ModelRewardSpec
from customized_grpo.recipe.scorers import RewardSpec as RewardSpec
from customized_grpo.recipe.tuned import FullSettings as FullSettings
from customized_grpo.recipe.tuned import LocalPath as LocalPath
from customized_grpo.recipe.tuned import LoraSettings as LoraSettings
from customized_grpo.recipe.tuned import Section as Section


@dataclass(frozen=True, slots=True)
class Shift:
    """Shift of an even grid of noise levels; see ``sampling.schedule.shifted_sigmas``."""

    value: float
    terminal: float | None = None
    """Last level before 0, to which the grid is stretched."""


ShiftRule = Callable[[int, int], Shift]
"""Maps an image's number of tokens and the number of steps to a shift; see ``policies.shifts``."""


class PolicySpec(registry.PluginSection, PolicyLimits):
    """The typed base of every policy's ``Config``; each policy adds its own fields.

    Attributes:
        not_encoded: fields that don't affect ``Policy.encode``; all others are in a cached conditioning's key.
        embedded: the package's miniature model that ``model: mini`` stands for.
        shift_rules: named rules for ``sampling.shift``; ``dynamic`` is the model's own rule by the image's size.
        of_model: fields that belong to one model, and say nothing of another that takes its place.
        resizes: whether an opened policy also draws at another size; see ``Policy.resized``.
        distilled: hub ids of published models that are step-distilled.
        distilled_steps: number of steps that these were made for.
        caches: types of ``sampling.cache`` that work with its transformer; see ``sampling.caching``.
        prefix: whether text and references pass once for all samples of a forward, as they attend to no image.
    """

    not_encoded: ClassVar[frozenset[str]] = frozenset(
        {"lora", "full", "gradient_checkpointing", "recompute", "quantization", "attention", "norms", "compile"}
    )
    embedded: ClassVar[str] = "flux"
    shift_rules: ClassVar[Mapping[str, ShiftRule]] = {}
    of_model: ClassVar[frozenset[str]] = frozenset({"model"})
    resizes: ClassVar[bool] = False
    distilled: ClassVar[frozenset[str]] = frozenset()
    distilled_steps: ClassVar[int | None] = None
    caches: ClassVar[tuple[str, ...]] = ()
    prefix: ClassVar[bool] = False

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
    recompute: Literal["all", "cheap"] = Field(
        default="all",
        description="what a checkpointed block computes again: all of it, or only cheap operators (norms, casts, "
        "activations), so that products and attention are stored",
    )
    quantization: Literal["none", "8bit", "4bit"] = Field(
        default="none",
        description="weights of the frozen transformer by bitsandbytes: LLM.int8 or NF4; needs a GPU",
    )
    attention: str | None = Field(
        default=None,
        description="diffusers' attention backend, such as flash or _native_cudnn; null: its own",
    )
    norms: Literal["float32", "half"] = Field(
        default="float32",
        description="what a GPU's norms read and write within blocks: float32, as autocast has it, or half precision, "
        "as diffusers' pipelines have it, which moves less; needs run.precision=bf16",
    )
    compile: bool | Literal["dynamic"] = Field(
        default=False,
        description="torch.compile the transformer's repeated blocks; true: code for each shape; dynamic: from the "
        "second shape on code for all. With run.cache it is kept there",
    )

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
    def _recomputes_something(self) -> Self:
        if self.recompute == "all":
            return self
        if not self.gradient_checkpointing:
            raise ValueError(
                f"recompute: given {self.recompute!r}, but gradient_checkpointing is off, so nothing is recomputed; "
                "set gradient_checkpointing: true, or leave recompute out"
            )
        if self.compile:
            raise ValueError(
                f"recompute: given {self.recompute!r}, which looks at each operator of a block, and compile: true "
                "makes one piece of code of them; use one of the two"
            )
        return self

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

    def step_distilled(self) -> bool:
        """Whether the model is known to be distilled to few steps, as far as this machine can say."""
        return self.model in self.distilled

    def num_forwards(self) -> int:
        """Forwards of the transformer in one velocity, at most: 2 with classifier-free guidance."""
        return 1

    def kept_tokens(self, references: int, text: int) -> int:
        """Number of a prompt's tokens whose keys and values a rollout keeps in every block; see ``Policy.prefill``.

        Args:
            references: tokens of its references.
            text: tokens of its text.
        """
        return 0

    def latent_shape(self) -> tuple[int, int] | None:
        """(S, C) of one sample if known without loading the model, for ``validate``; else None."""
        return None

    def reference_side(self) -> int | None:
        """Long side of a reference in pixels as the policy reads it, for an estimate of memory; None: unknown."""
        return None

    def prompt_tokens(self) -> int | None:
        """Text tokens of a prompt at most, for an estimate of memory; None: unknown."""
        return None


class ObjectiveSpec(registry.PluginSection):
    """The typed base of every objective's ``Config``; each objective adds its own fields.

    Attributes:
        transitions: whether it needs the sampler's stochastic transitions; else final latents suffice, by any solver.
        compares: whether it has a ratio to the policy that sampled, on which ``train.ratio_guard`` looks.
        lossy: whether a rollout may be computed otherwise than its loss computes, as ``sampling.cache`` does.
        targets: number of pictures of an example that it learns from, instead of samples and rewards: 1 the target, 2
            the chosen and the rejected; 0 of reinforcement learning.
    """

    transitions: ClassVar[bool] = True
    compares: ClassVar[bool] = True
    lossy: ClassVar[bool] = False
    targets: ClassVar[int] = 0

    kl: NonNegativeFloat = Field(default=0.0, description="weight of the KL to the frozen base (adapter off)")
    step_weighting: Literal["none", "equal"] = Field(
        default="none",
        description="equal: every trained level pulls alike at equal advantages (and, on the forward process, errors)",
    )

    @property
    def compares_means(self) -> bool:
        """Whether a rollout records the mean of every trained transition, too."""
        return False

    @property
    def needs_base(self) -> bool:
        """Whether a loss computes the base's velocities, too."""
        return self.kl > 0

    @property
    def keeps_average(self) -> bool:
        """Whether it keeps a policy that lags behind: a second copy of the trained weights."""
        return False

    def unused(self, updates: int) -> str:
        """A key that has no effect at so many updates per rollout, and why; empty if there is none."""
        return ""

    def compared_shares(self, updates: int) -> float:
        """Forwards without gradient for what a loss compares with, for each pair, at so many updates per rollout."""
        return 0.0

    def num_levels(self, num_steps: int) -> int:
        """K, of an objective without transitions."""
        return num_steps - 1

    def last_place(self, num_steps: int) -> int:
        """The sampler's step up to which levels are trained: a transition to the data has no noise to learn from."""
        return num_steps - 2


class DataSpec(registry.PluginSection):
    """The typed base of every data set's ``Config``; each data set adds its own fields."""
