"""A vision-language model as a judge: one rubric, one image per question, by any OpenAI-compatible endpoint.

A failed question gives NaN, never 0: a false 0 in a group of twelve moves every other sample's advantage.
Several rubrics are several rewards. Dimensions: H x W pixels.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, Self, final

import torch
from PIL.Image import Image
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from customized_grpo.recipe.limits import Need
from customized_grpo.rewards.base import AsyncReward, Budgeted, RewardFailure
from customized_grpo.rewards.judge.answer import read
from customized_grpo.rewards.judge.cache import Cache, balance
from customized_grpo.rewards.judge.choice import read_choices
from customized_grpo.rewards.judge.client import Client
from customized_grpo.rewards.judge.logprobs import expected_score, tokens_of
from customized_grpo.rewards.judge.pixels import data_url, reduced, with_cut_references
from customized_grpo.rewards.judge.presets import PRESETS, Endpoint, Preset
from customized_grpo.rewards.judge.rubrics import (
    BEST,
    RUBRICS,
    SYSTEM,
    RubricName,
    pictures,
    question,
    schema,
)
from customized_grpo.rewards.judge.unscorable import Unscorable
from customized_grpo.types import Example

_ALTERNATIVES: Final = 20
"""Largest number of alternatives per token that endpoints return."""
_GRACE_S: Final = 5.0


@final
class Vlm(AsyncReward):
    """A judge's score of each image by one rubric, 0 to 4."""

    @final
    class Config(Budgeted, Endpoint):
        """A reward's section with ``type: vlm``."""

        transport: ClassVar[frozenset[str]] = frozenset(
            {"base_url", "key_env", "concurrency", "timeout_s", "deadline_s", "retries", "answer_tokens"}
            | {"cache", "budget_requests", "budget_tokens", "image_tokens"}
        )

        preset: Preset = Field(default="gpt-4o", description="defaults of the endpoint")
        rubric: RubricName = Field(description="what is judged; use one reward per rubric")
        reasoning: bool = Field(default=False, description="whether the judge writes an analysis first")
        expected: bool = Field(
            default=False,
            description="use the expectation over the digit's log-probabilities instead of the digit",
        )
        best: PositiveFloat = Field(
            default=float(BEST), description="value of the best answer: 4, or 1 as DreamBench++ reports it"
        )
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

        def needs(self) -> frozenset[Need]:
            """A reference, where the rubric shows it, and its mask, where it is cut out."""
            if not RUBRICS[self.rubric].shows_references:
                return frozenset()
            masked = self.segment == "reference" and self.missing_mask == "error"
            return frozenset({"reference", *(("mask",) if masked else ())})

        @model_validator(mode="before")
        @classmethod
        def _preset_first(cls, data: Any) -> Any:
            if not isinstance(data, dict):
                return data
            preset = data.get("preset", "gpt-4o")
            return {**PRESETS[preset], **data} if isinstance(preset, str) and preset in PRESETS else data

        @model_validator(mode="after")
        def _is_possible(self) -> Self:
            if self.expected and not self.logprobs:
                raise ValueError(
                    "expected: true needs an endpoint that gives log-probabilities, and here logprobs is false; "
                    "set logprobs: true if it does, or expected: false"
                )
            if self.segment == "reference" and not RUBRICS[self.rubric].shows_references:
                raise ValueError(f"segment: has no effect here; the rubric {self.rubric} shows no reference")
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

        def cost(self, samples: int) -> str:
            """Requests and tokens to judge ``samples`` images."""
            tokens = samples * _tokens(self)
            return f"{samples} requests to {self.model} at {self.base_url}, about {tokens:.2g} tokens"

        def balance(self, samples: int, account: str | None) -> str:
            """What is left of both budgets."""
            budgets = {
                "budget_requests": (self.budget_requests, samples),
                "budget_tokens": (self.budget_tokens, samples * _tokens(self)),
            }
            return balance(_file(self), _judge(self), account, budgets)

    def __init__(self, config: Config, *, device: torch.device) -> None:
        self._config = config
        self._rubric = RUBRICS[config.rubric]
        self._fixed = _fixed(config)
        self.max_concurrent = config.concurrency
        self.timeout_s = config.deadline_s + _GRACE_S  # the judge's own deadline has a better message
        self._cache = Cache(
            _file(config),
            _judge(config),
            budget_requests=config.budget_requests,
            budget_tokens=config.budget_tokens,
        )
        try:
            self._client = Client(
                config,
                timeout_s=config.timeout_s,
                deadline_s=config.deadline_s,
                retries=config.retries,
                concurrency=config.concurrency,
                before_request=self._cache.reserve,
                on_close=self._cache.close,
            )
        except ValueError:
            self._cache.close()
            raise

    def begin(self, account: str) -> None:
        """Count the budget under this account."""
        self._cache.begin(account)

    def close(self) -> None:
        """Close connections and the cache; done automatically when the judge is no longer used."""
        self._client.close()

    async def __call__(self, example: Example, image: Image) -> float:
        """The score of one image; the same question is asked only once, unless ``extra["run"]`` differs.

        Raises:
            Unscorable: the judge gave no readable score.
            RewardFailure: the endpoint refuses for good, or the budget is spent.
            ValueError: concept preservation of an example without references.
        """
        config = self._config
        if config.segment == "reference":
            example, lacks = with_cut_references(example)
            if lacks and config.missing_mask == "skip":
                raise Unscorable(f"it {lacks} (missing_mask: skip); make them with 'customized-grpo data masks'")
            if lacks:
                raise RewardFailure(
                    f"example {example.key!r} {lacks}; make them with 'customized-grpo data masks', or set "
                    "missing_mask: skip in a new run, which leaves its images unscored"
                )
        text = question(self._rubric, example, reasoning=config.reasoning, output=config.output)
        shown = [
            (label, reduced(one, config.image_side))
            for label, one in pictures(self._rubric, example, image, max_references=config.max_references)
        ]
        key = self._key(text, [one for _, one in shown], example.extra.get("run"))
        return await self._client.run(self._score(key, text, shown)) * config.best / BEST

    async def _score(self, key: str, text: str, shown: list[tuple[str, Image]]) -> float:
        kept = self._kept(key)
        if kept is not None:
            return kept
        messages = [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": self._content(text, shown)},
        ]
        answer = await self._client.ask({"messages": messages, **self._fixed})
        counts = self._used(answer.get("usage"))
        self._cache.spend(sum(counts))
        choices = answer.get("choices")
        if not isinstance(choices, list) or not choices:
            raise Unscorable(self._client.complaint(answer))
        reply, read_answer = read_choices(choices)
        score = float(read_answer.score)
        if self._config.expected:
            score = expected_score(reply, read_answer, tokens_of(choices[0]))
        self._cache.put(key, score, reply, prompt_tokens=counts[0], answer_tokens=counts[1])
        return score

    def _kept(self, key: str) -> float | None:
        """The cached score, if its reply still states one: what an earlier version misread is asked again."""
        if (found := self._cache.get(key)) is None:
            return None
        score, reply = found
        try:
            stated = float(read(reply).score)
        except Unscorable:
            return None
        return score if self._config.expected else stated

    def _used(self, usage: Any) -> tuple[int, int]:
        """Tokens of the question and the answer: as the endpoint counts them, or an estimate."""
        counts = (
            [usage.get(name) or 0 for name in ("prompt_tokens", "completion_tokens")] if isinstance(usage, dict) else []
        )
        if not counts or not all(isinstance(count, int) for count in counts):
            return _tokens(self._config), 0
        return counts[0], counts[1]

    def _content(self, text: str, shown: list[tuple[str, Image]]) -> list[dict[str, Any]]:
        words = {"type": "text", "text": text}
        images: list[dict[str, Any]] = []
        for label, image in shown:
            url: dict[str, Any] = {"url": data_url(image, self._config.image_format)}
            if self._config.detail is not None:
                url["detail"] = self._config.detail
            images += [{"type": "text", "text": label}, {"type": "image_url", "image_url": url}]
        return [words, *images] if self._config.image_order == "text_first" else [*images, words]

    def _key(self, text: str, images: list[Image], run: object) -> str:
        """Cache key of everything that decides the answer: pixels, not files, which depend on Pillow's version."""
        config = self._config
        asked = {
            "rubric": [self._rubric.name, self._rubric.version],
            "endpoint": config.base_url,
            "text": text,
            "system": SYSTEM,
            "fixed": self._fixed,
            "images": [config.image_format, config.image_order, config.detail],
            "expected": config.expected,
            "run": run,
        }
        digest = hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode())
        for image in images:
            digest.update(f"{image.width} {image.height} ".encode() + image.tobytes())
        return digest.hexdigest()


def _fixed(config: Vlm.Config) -> dict[str, Any]:
    """Request parameters common to all questions of a judge."""
    fixed: dict[str, Any] = {"model": config.model, config.token_limit: config.answer_tokens}
    if config.temperature is not None:
        fixed["temperature"] = config.temperature
    if config.output == "json_schema":
        form = {"name": "judgement", "strict": True, "schema": schema(reasoning=config.reasoning)}
        fixed["response_format"] = {"type": "json_schema", "json_schema": form}
    elif config.output == "json_object":
        fixed["response_format"] = {"type": "json_object"}
    if config.expected:
        fixed |= {"logprobs": True, "top_logprobs": _ALTERNATIVES}
    if config.extra_body:
        fixed["extra_body"] = config.extra_body
    return fixed


def _file(config: Vlm.Config) -> Path | None:
    return Path(config.cache).expanduser() if config.cache else None


def _judge(config: Vlm.Config) -> str:
    return f"{config.model} for {config.rubric}"


def _tokens(config: Vlm.Config) -> int:
    """Rough number of tokens per question: four letters each, the largest number of references shown (one if
    unknown), and the length of typical answers."""
    rubric = RUBRICS[config.rubric]
    area = min(1.0, (config.image_side / 512) ** 2)
    shown = 1 + (config.max_references or 1) if rubric.shows_references else 1
    images = shown * config.image_tokens * area
    return round((len(SYSTEM) + len(rubric.text) + 300) / 4 + images + (120 if config.reasoning else 10))
