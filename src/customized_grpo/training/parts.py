"""Parts of a training run, as ``setup.build`` makes them of a recipe, and its state."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any, Literal

from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from jaxtyping import Float
from torch import Tensor, nn

from customized_grpo.advantages.shaping import Aggregator
from customized_grpo.conditioning.opening import Encode
from customized_grpo.data.base import Dataset
from customized_grpo.evaluation.metrics import AnyMetric
from customized_grpo.evaluation.summary import Row
from customized_grpo.identity.hashes import FileHashes
from customized_grpo.objectives.base import Objective
from customized_grpo.policies.base import Policy
from customized_grpo.recipe.config import Recipe
from customized_grpo.recipe.drawn import Buckets, size_of
from customized_grpo.sampling.clock import Clock
from customized_grpo.scoring.scorer import Scorer
from customized_grpo.training import averages
from customized_grpo.training.encoded import Chosen
from customized_grpo.training.identity import RunIdentity
from customized_grpo.training.rules import RewardRules
from customized_grpo.types import Example


@dataclass(slots=True)
class RunState:
    """State of a run, part of every checkpoint."""

    skipped: int = 0
    """Number of updates skipped because of a non-finite gradient."""
    rollout_batch: int | None = None
    """Batch size found by ``sampling.batch: auto``; None before."""
    old_log_probs: Literal["rollout", "replay"] | None = None
    """Choice of ``train.old_log_probs: auto``; None before."""
    news: list[str] = field(default_factory=list)
    """Messages not yet logged; not in checkpoints."""

    def drain_news(self) -> list[str]:
        """Messages not yet logged, given once."""
        texts, self.news = self.news, []
        return texts


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Held-out data and metrics, with the conditioning and the base's and the adapter's newest rows kept."""

    dataset: Dataset
    metrics: dict[str, AnyMetric]
    encode: Encode
    base: str
    """Identity of the untrained policy; see ``policies.identity``."""
    rows: dict[str, list[Row]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fixed:
    """Fixed prompts that are drawn as training goes on, and what encodes them."""

    examples: Chosen
    encode: Encode
    held_out: bool
    """Whether they are of the held-out data, and so of the evaluation's size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Parts of a training run."""

    recipe: Recipe
    folder: Path
    accelerator: Accelerator
    policy: Policy
    encode: Encode
    dataset: Dataset
    scorer: Scorer
    reward_axes: Sequence[int]
    """Axis of each reward, in the order of the recipe."""
    rules: RewardRules
    objectives: Mapping[tuple[int, int], Objective]
    """The objective at each height and width of the run's buckets, with a view of the policy and noise levels of its
    own; the policy's own size first."""
    buckets: Buckets
    aggregator: Aggregator
    time_weights: Float[Tensor, "t q"]
    parameters: dict[str, nn.Parameter]
    optimizer: Any
    schedule: Any
    ema: EMAModel | None
    old: averages.OldPolicy | None
    """A running average of the trained weights that samples, or that the loss holds on to."""
    behind: averages.Copy | None
    """With ``train.staleness``, the weights that sampled the step to come."""
    evaluation: Evaluation | None
    fixed: Fixed | None
    clock: Clock
    hashes: FileHashes
    """Hashes of files that this run reads, remembered in its folder."""
    identity: RunIdentity | None
    """What the run stands on, for checkpoints; None on all processes but the main one."""
    run: str
    """Its name, the same over all restarts; see ``identity.runs``."""
    state: RunState = field(default_factory=RunState)

    @property
    def objective(self) -> Objective:
        """The objective at the policy's own size: what it says of itself is the same at all sizes."""
        return next(iter(self.objectives.values()))

    @property
    def sigmas(self) -> Float[Tensor, " t_plus_1"]:
        """Noise levels of images of the policy's own size."""
        return self.objective.sigmas

    def objective_of(self, example: Example) -> Objective:
        """The objective at the size of an example's images."""
        return self.objectives[size_of(self.buckets.of(example.size))]

    def policies(self) -> list[Policy]:
        """The policy, and its views of other sizes."""
        return [one.policy for one in self.objectives.values()]

    def rollout_metrics(self) -> dict[str, float]:
        """Metrics of the groups sampled since the last call; a mean over the sizes that were."""
        found = [drained for one in self.objectives.values() if (drained := one.rollout_metrics())]
        return {name: mean(one[name] for one in found) for name in found[0]} if found else {}

    def held_out_policy(self) -> Policy:
        """The policy as it is now, drawing images of the held-out evaluation's size."""
        sized = self.recipe.evaluated
        return self.policy if sized is self.recipe.policy else self.policy.resized(sized)

    def averaged(self) -> AbstractContextManager[None]:
        """Context in which the trained weights are their running average, if the recipe has one."""
        return averages.in_place(self.ema, self.parameters, self.policy)

    def sampling(self) -> AbstractContextManager[None]:
        """Context in which the trained weights are the old policy's, if that lags behind."""
        return averages.in_place(self.old if self.old_samples else None, self.parameters, self.policy)

    @property
    def lags(self) -> bool:
        """Whether other weights than those of now sampled."""
        return self.old_samples or self.behind is not None

    @property
    def old_samples(self) -> bool:
        """Whether the sampler lags behind the trained policy; while its decay is 0 it is the same."""
        decay = self.objective.old_decay
        return decay is not None and self.objective.old_samples and decay(self.schedule.last_epoch) > 0
