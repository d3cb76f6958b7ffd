"""The sections that built-in code reads: run, sampling, advantage, train, evaluate. Their keys are public surface."""

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from customized_grpo import registry
from customized_grpo.advantages.axes import AXES
from customized_grpo.recipe.axes import check_axis_of_metric
from customized_grpo.recipe.fields import (
    AggregatorField,
    DataField,
    DynamicsField,
    MetricField,
    PlanField,
    ShiftSetting,
    TimeWeightsField,
)
from customized_grpo.recipe.rules import Rules
from customized_grpo.recipe.sections import LocalPath, RewardSpec, Section

AxisName: TypeAlias = Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$")]
"""It becomes a part of the metrics' names."""
Beta: TypeAlias = Annotated[float, Field(ge=0.0, lt=1.0)]


class Run(Section):
    """Output folder, seed, precision and other settings of a run."""

    dir: LocalPath = Field(min_length=1, description="the run's folder; must be new or empty unless resuming")
    seed: NonNegativeInt = 42
    resume: LocalPath | None = Field(default=None, description="'latest', or a checkpoint folder")
    trackers: tuple[Literal["wandb", "tensorboard", "trackio", "swanlab"], ...] = ()
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["no", "bf16"] = Field(
        default="bf16", description="compute and storage dtype of the frozen model"
    )
    threads: NonNegativeInt = Field(default=0, description="CPU threads per process; 0 leaves torch's choice")
    cache: LocalPath | None = Field(
        default=None,
        min_length=1,
        description="folder of encoded prompts and references; completed first, after which no text encoder is loaded",
    )
    timeout_s: PositiveInt = Field(
        default=1800, description="seconds that a process waits for the others before the job ends"
    )
    ask_first: bool = Field(
        default=True,
        description="whether each judge and reward server is asked one small question before a model is loaded; false "
        "waits for a reward server that starts together with the run",
    )


class Cache(Section):
    """A cache of the transformer's blocks while a group is sampled; see ``sampling.caching``."""

    type: Literal["first_block", "taylorseer"] = Field(
        description="first_block: the others are skipped where the first one's output hardly moved; taylorseer: the "
        "whole velocity is extrapolated at most steps"
    )
    threshold: PositiveFloat = Field(
        default=0.1, description="first_block: relative change, a mean over a forward's batch, below which it skips"
    )
    warmup: PositiveInt = Field(default=3, description="taylorseer: steps at the beginning that are computed")
    interval: int = Field(default=3, ge=2, description="taylorseer: every how many steps one is computed afterwards")
    order: NonNegativeInt = Field(default=1, description="taylorseer: of the Taylor series; 0 repeats the last step")

    @model_validator(mode="after")
    def _keys_are_used(self) -> Self:
        own = {"threshold": "first_block"} | dict.fromkeys(("warmup", "interval", "order"), "taylorseer")
        for key, of in own.items():
            if of != self.type and dict(self)[key] != Cache.model_fields[key].default:
                raise ValueError(f"{key} has no effect with type {self.type!r}; it belongs to {of}")
        return self

    def computed_steps(self, num_steps: int) -> list[int] | None:
        """Steps that ``taylorseer`` computes, as diffusers counts them; None where samples decide."""
        if self.type == "first_block":
            return None
        first = self.warmup + 1  # diffusers extrapolates one step before it begins to count
        return [k for k in range(num_steps) if k < self.warmup or (k - first) % self.interval == 0]


class Sampling(Section):
    """Sampling of groups in training."""

    steps: int = Field(default=25, ge=2, description="T; the last step is deterministic, so at least 2")
    shift: ShiftSetting = 3.0
    dynamics: DynamicsField = Field(default={"type": "dance_sde", "eta": 0.4}, validate_default=True)
    plan: PlanField = Field(default={"type": "fraction", "fraction": 0.6}, validate_default=True)
    solver: Literal["euler", "dpm_solver_2m"] | None = Field(
        default=None, description="of an objective without transitions; null: a plan has its own"
    )
    cache: Cache | None = Field(
        default=None, description="skips blocks of the transformer in rollouts, for an objective that replays nothing"
    )
    float8: bool = Field(
        default=False,
        description="products with the base's weights in float8 in rollouts, for an objective that replays nothing; "
        "needs run.precision=bf16 and an Ada or Hopper GPU",
    )
    shared_noise: bool = Field(default=True, description="one initial noise for all samples of a group")
    batch: PositiveInt | Literal["auto"] | None = Field(
        default=None,
        description="samples per rollout forward; null: the whole group; auto: the group, halved until it fits",
    )

    @property
    def batch_decides(self) -> bool:
        """Whether another ``batch`` draws other samples, by more than rounding."""
        return self.cache is not None and self.cache.type == "first_block"


class Advantage(Section):
    """From rewards (G, R) to advantages (G, K)."""

    aggregator: AggregatorField = Field(default={"type": "sars", "gamma": 0.4}, validate_default=True)
    time_weights: TimeWeightsField = Field(default={"type": "tdw"}, validate_default=True)
    axes: dict[AxisName, Annotated[float, Field(ge=0.0, lt=1.0)] | None] = Field(
        default={},
        description="share of each further axis in the time weights, the same at every step; null: 1 / Q, or the "
        "column that the time weights have for it. Others than style, layout, diversity and quality must stand here",
    )
    rules: Rules = Field(default=Rules(), description="rules on raw rewards and on groups; none is on by default")
    reach: float = Field(
        default=1.0,
        gt=0.0,
        le=1.0,
        description="of policy.lora.balance: at b the prompt's weight is multiplied by 1 - reach b, the identity's by "
        "1 + reach b, with the row's sum as it was",
    )
    clip: PositiveFloat = 5.0
    min_valid: float = Field(
        default=0.5,
        ge=0.0,
        le=1.0,
        description="share of a group's samples that must be scorable on every axis; a group below it is skipped",
    )
    max_failed_share: float = Field(
        default=0.25,
        ge=0.0,
        le=1.0,
        description="share of a reward's recent samples; the run stops if more are unscorable",
    )

    @model_validator(mode="after")
    def _further_axes_are_others(self) -> Self:
        if own := [axis for axis in AXES if axis in self.axes]:
            raise ValueError(f"axes.{own[0]}: its weights are those of advantage.time_weights; name further axes here")
        return self


class Schedule(Section):
    """Learning-rate schedule, by ``diffusers.optimization.get_scheduler``; counted in optimizer updates."""

    name: Literal["constant", "constant_with_warmup", "linear", "cosine"] = "constant"
    warmup_steps: NonNegativeInt = 0

    @model_validator(mode="after")
    def _warmup_is_used(self) -> Self:
        if self.warmup_steps and self.name == "constant":
            raise ValueError("warmup_steps has no effect with 'constant'; use name: constant_with_warmup")
        return self


class Train(Section):
    """The loop."""

    steps: PositiveInt = 1000
    group_size: int = Field(default=12, ge=2, description="G; a group of one has no advantage")
    groups_per_step: PositiveInt = Field(default=8, description="groups over all processes")
    buckets: tuple[tuple[PositiveInt, PositiveInt], ...] = Field(
        default=(),
        description="aspect ratio buckets: further sizes of images, [height, width]; an example's group has the one of "
        "the nearest ratio to its own height and width, or to those of the picture that it learns from",
    )
    microbatch: PositiveInt | None = Field(
        default=None,
        description="(sample, step) pairs of one group in one backward; null: one step of the group's samples, which "
        "replays bit for bit what the rollout scored",
    )
    updates_per_rollout: PositiveInt = 1
    staleness: Literal[0, 1] = Field(
        default=0,
        description="updates that a rollout lags behind; 1: the next step's groups are sampled before this step's "
        "update, during which their rewards work",
    )
    optimizer: Literal["adamw", "adamw_fused", "adamw_8bit"] = Field(
        default="adamw",
        description="adamw_fused: the same in one kernel; adamw_8bit: its two moments in 8 bits, by bitsandbytes",
    )
    lr: float = Field(default=2.0e-5, gt=0.0, le=1.0)
    weight_decay: NonNegativeFloat = 1.0e-4
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: PositiveFloat = Field(
        default=1.0e-12, description="AdamW's; the usual 1e-8 is of the size of FLUX's gradients"
    )
    max_grad_norm: PositiveFloat = 1.0
    schedule: Schedule = Schedule()
    ema: float | None = Field(default=None, gt=0.0, lt=1.0, description="decay of the averaged adapter; null: none")
    ratio_guard: PositiveFloat = Field(
        default=1.0e-3, description="largest |log-ratio| of a first replay; it should be 0"
    )
    old_log_probs: Literal["rollout", "replay", "auto"] = Field(
        default="rollout",
        description="whose log-probabilities an update compares with; auto: the rollout's if its first is within "
        "ratio_guard and a tenth of objective.clip, else the replay's",
    )
    max_skipped: NonNegativeInt = Field(
        default=0, description="updates with a non-finite gradient before the run stops"
    )
    check_ranks_every: NonNegativeInt = Field(
        default=10, description="steps between comparisons of the processes' adapters; 0: never"
    )
    checkpoint_every: NonNegativeInt = Field(default=50, description="0: only at the end")
    keep_checkpoints: PositiveInt = 3
    evaluate_every: NonNegativeInt = Field(
        default=50, description="0: never; else also before the first step and at the end"
    )
    save_samples_every: NonNegativeInt = Field(default=10, description="0: never; else after the first step too")


class Evaluate(Section):
    """Generation at fixed seeds on held-out data, scored by metrics that are not the training rewards."""

    data: DataField
    metrics: dict[str, MetricField] = Field(min_length=1)
    limit: PositiveInt | None = Field(default=None, description="examples; null: all")
    height: PositiveInt | None = Field(default=None, description="of the images, in pixels; null: policy.height")
    width: PositiveInt | None = Field(default=None, description="of the images, in pixels; null: policy.width")
    images_per_prompt: PositiveInt = 1
    batch: PositiveInt = Field(default=4, description="images per forward, of several prompts if they can share it")
    steps: PositiveInt | None = Field(
        default=None, description="sampler steps, by Euler; null: as many as the training sampler's"
    )
    seed: NonNegativeInt = 0
    protocol: str = Field(
        default="heldout",
        description="what is comparable: dreambench/uno-all-references, dreambench/input-reference, or your own name",
    )
    runs: dict[str, PositiveInt] = Field(
        default={}, description="number of runs per metric, for judges that answer differently each time"
    )
    products: dict[str, tuple[str, str]] = Field(
        default={}, description="further columns, each the product of two: {cp_x_pf: [cp, pf]}"
    )
    save_images: NonNegativeInt = Field(default=64, description="examples whose images are kept on disk")
    retry_failed: bool = Field(
        default=True,
        description="a resumed evaluation repeats failed requests to judges and servers; false: failures are final",
    )

    @model_validator(mode="after")
    def _runs_are_of_metrics(self) -> Self:
        if lost := [name for name in self.runs if name not in self.metrics]:
            hint = registry.did_you_mean(lost[0], list(self.metrics))
            raise ValueError(f"runs: there is no metric {lost[0]!r};{hint} allowed: {', '.join(self.metrics)}")
        if taken := self.products.keys() & self.metrics.keys():
            raise ValueError(f"products: {min(taken)!r} is a metric's column already; name the product otherwise")
        for name, spec in self.metrics.items():
            if isinstance(spec, RewardSpec):
                check_axis_of_metric(name, spec.axis)
        return self


class EvaluateSampling(Section):
    """The deterministic sampler of an evaluation."""

    steps: PositiveInt = 25
    shift: ShiftSetting = 3.0
