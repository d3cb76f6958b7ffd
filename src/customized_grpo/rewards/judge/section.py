"""The section of a judge in a recipe: its endpoint, its rubric, what it is shown, and what it may cost."""

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, SerializeAsAny, model_validator

from customized_grpo.identity.hashes import short_hash
from customized_grpo.recipe.limits import Need
from customized_grpo.recipe.scorers import Lack
from customized_grpo.rewards.base import Budgeted
from customized_grpo.rewards.judge.builtin import BuiltIn
from customized_grpo.rewards.judge.cache import balance
from customized_grpo.rewards.judge.presets import NO_JUDGES, PRESETS, Endpoint, Preset
from customized_grpo.rewards.judge.rubrics import Asks, Rubric, read_rubric
from customized_grpo.web.reach import asked


class JudgeSection(Budgeted, Endpoint):
    """What the sections of all judges share.

    Attributes:
        built_in: rubrics by name.
        asked: what its rubrics may ask, and the type for other ones.
        compared: generated images in a question.
    """

    transport: ClassVar[frozenset[str]] = frozenset(
        {"base_url", "key_env", "concurrency", "timeout_s", "deadline_s", "retries", "answer_tokens"}
        | {"cache", "budget_requests", "budget_tokens", "image_tokens"}
    )
    built_in: ClassVar[Mapping[str, BuiltIn]]
    asked: ClassVar[frozenset[Asks]]
    compared: ClassVar[int] = 1

    preset: Preset = Field(default="gpt-4o", description="defaults of the endpoint")
    rubric: str | SerializeAsAny[Rubric] = Field(
        description="what is judged: a name, or a file (.yaml) of the keys below; use one reward per rubric"
    )
    reasoning: bool = Field(default=False, description="whether the judge writes an analysis first")
    max_references: PositiveInt | None = Field(default=None, description="limit on references shown; null: all")
    segment: Literal["none", "reference"] = Field(
        default="none", description="reference: what is shown of the references is their subject on white, by masks"
    )
    missing_mask: Literal["error", "skip"] = Field(
        default="error", description="for a reference without mask: stop the run, or leave its image unscored"
    )
    concurrency: PositiveInt = Field(default=8, description="limit on concurrent questions per process")
    timeout_s: PositiveFloat = Field(default=60.0, description="silence after which a request is retried")
    deadline_s: PositiveFloat = Field(
        default=300.0, description="limit on a question's total time, including retries and waits"
    )
    retries: NonNegativeInt = Field(
        default=4, description="number of retries after 408, 409, 429, 5xx and lost connections"
    )
    cache: str | None = Field(default=None, description="file of answers and spending; null: this process's memory")
    budget_requests: PositiveInt | None = Field(
        default=None, description="limit on a run's requests, counted in the cache; more stop the run"
    )
    budget_tokens: PositiveInt | None = Field(
        default=None, description="limit on a run's tokens, counted in the cache; more stop the run"
    )

    def judged(self) -> BuiltIn:
        """The rubric."""
        return self.built_in[self.rubric] if isinstance(self.rubric, str) else BuiltIn(self.rubric)

    def rubric_key(self) -> list[Any]:
        """Identity of the rubric, for the keys of answers."""
        if isinstance(self.rubric, str):
            return [self.rubric, self.judged().version]
        return ["file", short_hash(self.rubric.model_dump(mode="json", exclude={"axis"}))]

    def judge_name(self) -> str:
        """Model and rubric, for people."""
        name = self.rubric if isinstance(self.rubric, str) else f"rubric {self.rubric_key()[1][:8]}"
        return f"{self.model} for {name}{' in pairs' if self.compared > 1 else ''}"

    def file(self) -> Path | None:
        """The file of answers and spending."""
        return Path(self.cache).expanduser() if self.cache else None

    def needs(self) -> frozenset[Need]:
        """A reference, where the rubric shows it, its mask, where it is cut out, and a subject that the rubric says."""
        rubric = self.judged().rubric
        subject: set[Need] = {"subject"} if rubric.fills("subject", "bare_subject") else set()
        if not rubric.shows_references:
            return frozenset(subject)
        masked = self.segment == "reference" and self.missing_mask == "error"
        return frozenset({"reference", *subject, *(("mask",) if masked else ())})

    @model_validator(mode="before")
    @classmethod
    def _defaults_first(cls, data: Any) -> Any:
        """Defaults of the preset, then those of the rubric, then what the recipe says."""
        if not isinstance(data, dict):
            return data
        preset = data.get("preset", "gpt-4o")
        if isinstance(preset, str) and preset in NO_JUDGES:
            raise ValueError(f"preset: {NO_JUDGES[preset]}")
        whole = {**(PRESETS[preset] if isinstance(preset, str) and preset in PRESETS else {}), **data}
        if "rubric" not in whole:
            return whole
        try:
            given = read_rubric(whole["rubric"], cls.built_in)
        except ValueError as error:
            raise ValueError(f"rubric: {error}") from None
        rubric = cls.built_in[given].rubric if isinstance(given, str) else given
        own: dict[str, Any] = {} if isinstance(given, str) else {"axis": rubric.axis}
        if rubric.asks == "yes_no" or rubric.reply == "text":
            own["output"] = "text"
        if rubric.asks == "yes_no":
            own["answer_tokens"] = 4  # the first word decides; a blank or a mark may come before it
        return {**whole, **cls.defaults_of(rubric), **own, **data, "rubric": given}

    @classmethod
    def defaults_of(cls, rubric: Rubric) -> dict[str, Any]:
        """Further defaults that depend on the rubric."""
        return {}

    @model_validator(mode="after")
    def _is_askable(self) -> Self:
        rubric = self.judged().rubric
        if rubric.asks not in self.asked:
            other = "vlm_pairwise" if rubric.asks == "better" else "vlm"
            raise ValueError(
                f"rubric: it asks for {rubric.asks!r}, which type: {other} does; change the one or the other"
            )
        if self.axis not in ("", rubric.axis) and not self.judged().any_axis:
            raise ValueError(
                f"axis: given {self.axis!r}, and the rubric's is {rubric.axis!r}; change the one or the other"
            )
        if rubric.asks == "yes_no" and not self.logprobs:
            raise ValueError(
                "rubric: the probability of yes needs an endpoint that gives log-probabilities, and here logprobs is "
                "false; set logprobs: true if it does, or take a rubric that asks for a score"
            )
        free = rubric.asks == "yes_no" or rubric.reply == "text"
        if (free and self.output == "json_schema") or (rubric.asks == "yes_no" and self.output != "text"):
            raise ValueError(
                f"output: {self.output} would hold the judge to another form than the rubric asks for; set output: text"
            )
        if free and self.reasoning:
            raise ValueError("reasoning: has no effect here; the rubric says how to answer")
        if self.segment == "reference" and not rubric.shows_references:
            raise ValueError(f"segment: has no effect here; the rubric {self.judge_name()} shows no reference")
        if self.max_references is not None and rubric.references == "first":
            raise ValueError("max_references: has no effect here; the rubric shows the first reference alone")
        if self.segment == "none" and self.missing_mask != "error":
            raise ValueError("missing_mask: has no effect here; it takes segment: reference")
        if self.deadline_s < self.timeout_s:
            raise ValueError(
                f"deadline_s: {self.deadline_s:g} is below timeout_s {self.timeout_s:g}; one attempt must fit in it"
            )
        return self

    def model_name(self) -> str:
        """As the endpoint calls it."""
        return self.model

    def lacks(self) -> list[Lack]:
        """The SDK, and the endpoint's key."""
        found = []
        if find_spec("openai") is None:
            found.append(Lack("the package 'openai' is not installed", "pip install 'customized-grpo[judge]'"))
        if self.key_env and not os.environ.get(self.key_env, "").strip():
            advice = f"put the key of {self.base_url} there (export {self.key_env}=...), or name another by key_env"
            found.append(Lack(f"the environment variable {self.key_env} is not set", advice))
        return found

    def unreachable(self) -> list[Lack]:
        """The endpoint, where nothing listens."""
        said = asked(f"{self.base_url}/models")
        return [Lack(f"{self.base_url}: {said}", "start it, or give its address (base_url)")] if said else []

    def questions(self, samples: int) -> int:
        """Questions to judge ``samples`` images, at most."""
        return samples

    def cost(self, samples: int) -> str:
        """Requests and tokens to judge ``samples`` images."""
        asked, tokens = self.questions(samples), self.asked_tokens(samples)
        return f"{asked} requests to {self.model} at {self.base_url}, about {tokens:.2g} tokens"

    def asked_tokens(self, samples: int) -> int:
        """Tokens of all questions and answers, by the guess of ``tokens``."""
        return self.questions(samples) * self.tokens()

    def balance(self, samples: int, account: str | None) -> str:
        """What is left of both budgets."""
        first = samples > 0  # the question that is asked before anything is loaded
        budgets = {
            "budget_requests": (self.budget_requests, self.questions(samples) + first),
            "budget_tokens": (self.budget_tokens, self.asked_tokens(samples) + self.tokens() * first),
        }
        return balance(self.file(), self.judge_name(), account, budgets)

    def tokens(self) -> int:
        """Rough number of tokens per question: four letters each, the largest number of references shown (one if
        unknown), and the length of typical answers."""
        rubric = self.judged().rubric
        area = min(1.0, (self.image_side / 512) ** 2)
        shown = self.compared + ((self.max_references or 1) if rubric.shows_references else 0)
        words = len(rubric.system or "") + len(rubric.text) + 300
        return round(words / 4 + shown * self.image_tokens * area + (120 if self.reasoning else 10))
