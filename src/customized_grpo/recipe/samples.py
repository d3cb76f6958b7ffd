"""The section ``samples``: fixed prompts that a training draws as it goes on. Its keys are public surface."""

from typing import Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from customized_grpo.recipe.sections import Section


class Samples(Section):
    """Pictures of fixed prompts from fixed noise, drawn as training goes on: what changes in them was learnt."""

    every: NonNegativeInt = Field(
        default=0, description="steps; 0: never; else also before the first step and at the end"
    )
    number: PositiveInt | None = Field(
        default=None,
        description="examples, spread evenly over the held-out data, or without an evaluation over the training's; "
        "null: 4, or one for each of prompts",
    )
    prompts: tuple[str, ...] = Field(
        default=(), description="in the place of the examples' own, each with the references of one; empty: their own"
    )
    steps: PositiveInt | None = Field(default=None, description="sampler steps, by Euler; null: as an evaluation's")
    seed: NonNegativeInt = Field(default=0, description="of the noise; each picture has its own")

    @model_validator(mode="after")
    def _keys_are_used(self) -> Self:
        if not self.every and (given := [name for name in ("number", "prompts", "steps") if dict(self)[name]]):
            raise ValueError(f"{given[0]} has no effect with every: 0; give the steps between the pictures")
        if self.prompts and self.number not in (None, len(self.prompts)):
            raise ValueError(f"number: given {self.number}, but prompts has {len(self.prompts)}; leave number out")
        if lost := [place for place, text in enumerate(self.prompts) if not text.strip()]:
            raise ValueError(f"prompts: number {lost[0] + 1} is empty; say what to draw, or leave it out")
        return self

    @property
    def count(self) -> int:
        """Number of pictures each time, where the data have as many examples."""
        return self.number or len(self.prompts) or 4
