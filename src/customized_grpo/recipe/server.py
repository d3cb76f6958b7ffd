"""The configuration of a reward server, read like a recipe: ``customized-grpo serve CONFIG``."""

import re
from typing import Final, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from customized_grpo.recipe.fields import RewardField
from customized_grpo.recipe.sections import Section

TOKEN_ENV: Final = "CUSTOMIZED_GRPO_TOKEN"
"""Environment variable of the token unless a configuration names another."""
VARIABLE: Final = r"^[A-Za-z_][A-Za-z0-9_]*$"
NAME: Final = r"^[A-Za-z0-9_.-]+$"
"""Pattern of reward names, which are part of a URL."""


class Batching(Section):
    """Batching of a worker's requests."""

    max_requests: PositiveInt = Field(default=64, description="limit on requests per batch")
    wait_ms: PositiveFloat = Field(default=5.0, description="time to wait for further requests after the first")


class Limits(Section):
    """Limits of a server."""

    body_mb: PositiveInt = Field(default=128, description="limit on a request's size; more is refused with 413")
    pixels: PositiveInt = Field(
        default=64_000_000, description="limit on the pixels of all images of a request, references included"
    )
    queue_s: PositiveFloat = Field(
        default=120.0, description="time that a request may wait for a worker; then it is answered with 504"
    )


class ServerConfig(Section):
    """A server of one or several rewards."""

    rewards: dict[str, RewardField] = Field(min_length=1)
    host: Literal["127.0.0.1", "0.0.0.0", "::"] = Field(
        default="127.0.0.1", description="0.0.0.0 and :: let other machines in, and take a token"
    )
    port: int = Field(default=8000, ge=1024, le=65535)
    token_env: str = Field(
        default=TOKEN_ENV,
        pattern=VARIABLE,
        description="environment variable of the token that clients must send; without one only this machine is served",
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    gpus: tuple[NonNegativeInt, ...] = Field(
        default=(0,), min_length=1, description="GPUs; each gets a worker of every reward"
    )
    threads: NonNegativeInt = Field(default=0, description="CPU threads per worker; 0 leaves torch's choice")
    batching: Batching = Batching()
    limits: Limits = Limits()

    @model_validator(mode="after")
    def _everything_is_used(self) -> Self:
        for name, spec in self.rewards.items():
            if not re.match(NAME, name):
                raise ValueError(
                    f"rewards: the name {name!r} is part of an address; use letters, digits, '-', '_' and '.'"
                )
            if spec.axis:
                raise ValueError(f"rewards.{name}.axis: has no effect here; the recipe that uses the reward says it")
            if spec.weight != 1.0:
                raise ValueError(f"rewards.{name}.weight: has no effect here; the recipe that uses the reward says it")
        return self
