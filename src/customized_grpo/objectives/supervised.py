"""Base of supervised objectives: pictures of the data, noised to some levels, in the place of a policy's samples.

Dimensions: G pictures of an example, T sampler steps, K trained levels, S latent tokens, C latent channels, n pairs.
Forward process: x_t = (1 - sigma) x0 + sigma noise, with the target velocity u = noise - x0.
"""

from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import ImageOps
from PIL.Image import Image, Resampling
from pydantic import Field
from torch import Tensor

from customized_grpo.objectives.base import Draw, Objective, ObjectiveConfig, PairLoss, rows_at
from customized_grpo.objectives.forward import Levels
from customized_grpo.policies.base import Policy
from customized_grpo.recipe.config import Recipe
from customized_grpo.sampling.clock import Clock
from customized_grpo.sampling.rollout import noise_of_samples
from customized_grpo.seeding import generator
from customized_grpo.types import Conditioning, Example, Noised, NoisedPairs


class SupervisedConfig(ObjectiveConfig):
    """Options of every supervised objective."""

    transitions = False
    compares = False

    levels: Levels = Field(
        default=Levels(draw="stratified", number=4), description="noise levels at which each picture is trained"
    )

    def num_levels(self, num_steps: int) -> int:
        """K."""
        return self.levels.count(num_steps)

    def unused(self, updates: int) -> str:
        """``step_weighting``, as levels pull by their errors alone."""
        if self.step_weighting == "none":
            return ""
        return f"step_weighting: it has no effect with {self.type}, which weighs all levels alike; leave it out"


class Supervised(Objective):
    """Base of objectives that sample nothing and ask no reward."""

    def __init__(self, recipe: Recipe, policy: Policy, sigmas: Float[Tensor, " t_plus_1"]) -> None:
        super().__init__(recipe, policy, sigmas)
        section = recipe.objective
        assert isinstance(section, SupervisedConfig)
        self.levels = section.levels

    def sample(self, example: Example, cond: Conditioning, draw: Draw, *, clock: Clock, batch: int | None) -> Noised:
        """The example's pictures at the output size, their latents, and noise at the drawn levels.

        Pictures of one example share their noise: they differ in nothing but themselves.
        """
        steps, policy = self.recipe.sampling.steps, self.recipe.policy
        with clock.phase("encode"):
            pictures = [fitted(picture, policy.height, policy.width) for picture in example.targets]
            latents = self.policy.latents(pictures)
        where = {"seed": draw.seed, "step": draw.step, "group": draw.group}
        places = self.levels.places(steps, generator(draw.seed, "levels", draw.step, draw.group)).to(latents.device)
        (noise,) = noise_of_samples("forward", self.policy.latent_shape, 1, len(places), **where).to(latents.device)
        return Noised(
            example=example,
            cond=cond,
            sigmas=self.sigmas,
            images=torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])),
            places=places,
            levels=rows_at(self.sigmas, places),
            x0=latents,
            noise=noise.expand(len(latents), *noise.shape),
        )

    @property
    def sensitivity(self) -> Float[Tensor, " t"]:
        """How often a level near each step of the grid is drawn; the last step's is not trained."""
        return self.levels.density(len(self.sigmas) - 1)

    def level_weights(self, rollout: Any) -> Float[Tensor, " k"]:
        """1 for each level."""
        return torch.ones_like(rollout.levels)

    def old(self, pairs: Any) -> Float[Tensor, "n s c"]:
        """Nothing compares with an old policy here, so nothing asks for it."""
        raise AssertionError("a supervised objective has no old policy")

    def loss(self, pairs: NoisedPairs, *, on_policy: bool) -> PairLoss:
        """Mean of ``taught``, and the mean squared distance of the velocity to the base's where there is a KL."""
        velocity = self._velocity(pairs)
        base = None
        if self.recipe.objective.needs_base:
            with torch.no_grad(), self.reference():
                base = self._velocity(pairs)
        return self.taught(velocity, base, pairs)

    @abstractmethod
    def taught(
        self, velocity: Float[Tensor, "n s c"], base: Float[Tensor, "n s c"] | None, pairs: NoisedPairs
    ) -> PairLoss:
        """The loss of a micro-batch from its velocities, the trained policy's and the base's."""

    def _velocity(self, pairs: NoisedPairs) -> Float[Tensor, "n s c"]:
        return self.policy.velocity(pairs.x_t.to(self.policy.dtype), pairs.sigma, pairs.cond)


def fitted(picture: Image, height: int, width: int) -> Image:
    """A picture in the output size: scaled (Lanczos) to cover it, and cut at the centre."""
    return ImageOps.fit(picture, (width, height), Resampling.LANCZOS)
