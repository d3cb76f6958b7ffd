"""The typed bases of rewards' and metrics' sections, and what a section says of the models that it loads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypeAlias, final

from pydantic import Field

from customized_grpo import registry
from customized_grpo.recipe.limits import ExampleNeeds

Revision: TypeAlias = Annotated[str | None, Field(description="branch, tag or commit of the hub id; null: main")]


@final
@dataclass(frozen=True, slots=True)
class HeldModel:
    """A model that a reward or metric keeps in memory, on its device unless it says otherwise."""

    model: str
    """Hub id, folder, file, ``mini`` or ``mini-judge``."""
    kind: str = ""
    """Folder of the embedded models, see ``paths.model_path``."""
    dtype: str = "float32"
    images: int | None = None
    """Images per forward, at most; None: the whole group."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    unused: frozenset[str] = frozenset()
    """Tensors of its files that are not loaded."""
    on_cpu: bool = False
    """True if it stays on the CPU, whatever device the reward is given."""


@final
@dataclass(frozen=True, slots=True)
class Lack:
    """Something that isn't there, and what to do."""

    what: str
    advice: str


class MetricSpec(registry.PluginSection, ExampleNeeds):
    """The typed base of the ``Config`` of what measures images."""

    def model_name(self) -> str | None:
        """The model that scores: a hub id, a folder, or its name at an endpoint; None if it has no model."""
        return None

    def held_models(self) -> Sequence[HeldModel] | None:
        """The models that it keeps, for an estimate of memory; None: unknown."""
        return None

    def lacks(self) -> Sequence[Lack]:
        """What this machine lacks for it, as far as can be said without loading or asking anything."""
        return ()

    def unreachable(self) -> Sequence[Lack]:
        """Servers that don't answer, by the cheapest request that has an answer; it takes seconds and costs nothing."""
        return ()


class RewardSpec(MetricSpec):
    """The typed base of every reward's ``Config``; each reward adds its own fields."""

    transport: ClassVar[frozenset[str]] = frozenset()
    """Fields on how a reward is computed or reached, which don't affect its scores, so cached answers stay valid."""

    axis: str = Field(
        default="",
        description="axis of the reward: prompt, identity, style, layout, diversity, quality, or one of advantage.axes",
    )
    weight: float = Field(default=1.0, gt=0.0, description="weight within its axis")

    def cost(self, samples: int) -> str:
        """Cost of scoring ``samples`` images, in money or quota, for people; empty if it is free."""
        return ""

    def scored_by(self) -> Mapping[str, Any]:
        """Identity of the judging model, whatever its precision, crops or rubric, to find rewards that judge alike."""
        if (model := self.model_name()) is not None:
            return {"type": self.type, "model": model}
        return self.model_dump(exclude={"axis", "weight", *self.transport})


class ModelRewardSpec(RewardSpec):
    """The typed base of the ``Config`` of a reward that loads a model."""

    model: str

    def model_name(self) -> str | None:
        """Its ``model``."""
        return self.model

    def held_models(self) -> Sequence[HeldModel] | None:
        """Its ``model`` in float32, a whole group at once."""
        return (HeldModel(self.model),)
