"""A judge that is asked: one question of text and images, its answer from the cache or the endpoint, and its score."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Final, final

from PIL.Image import Image

from customized_grpo.rewards.base import RewardFailure
from customized_grpo.rewards.judge.cache import Cache
from customized_grpo.rewards.judge.choice import Reader, read_choices
from customized_grpo.rewards.judge.client import Client
from customized_grpo.rewards.judge.logprobs import expected_score, tokens_of
from customized_grpo.rewards.judge.pixels import data_url, reduced, with_cut_references
from customized_grpo.rewards.judge.rubrics import pictures, question, schema
from customized_grpo.rewards.judge.section import JudgeSection
from customized_grpo.rewards.judge.unscorable import Unscorable
from customized_grpo.types import Example

_ALTERNATIVES: Final = 20
"""Largest number of alternatives per token that endpoints return."""


@final
class Judge:
    """Asks by one rubric; the same question is asked only once, unless ``example.extra["run"]`` differs.

    Args:
        reader: how a reply becomes a score.

    Raises:
        ValueError: the endpoint can't be asked, or the cache can't be opened.
    """

    def __init__(self, config: JudgeSection, reader: Reader) -> None:
        self._config, self._reader = config, reader
        self._rubric = config.judged()
        self._fixed = self._request()
        self._cache = Cache(
            config.file(),
            config.judge_name(),
            budget_requests=config.budget_requests,
            budget_tokens=config.budget_tokens,
        )
        self.begin, self.spent = self._cache.begin, self._cache.spent
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

    def close(self) -> None:
        """Close connections and the cache; done automatically when the judge is no longer used."""
        self._client.close()

    def prepared(self, example: Example) -> Example:
        """The example as it is shown: with references cut out, where the section says so.

        Raises:
            Unscorable: a mask is missing, and such images are skipped.
            RewardFailure: a mask is missing.
        """
        if self._config.segment != "reference":
            return example
        example, lacks = with_cut_references(example)
        if lacks and self._config.missing_mask == "skip":
            raise Unscorable(f"it {lacks} (missing_mask: skip); make them with 'customized-grpo data masks'")
        if lacks:
            raise RewardFailure(
                f"example {example.key!r} {lacks}; make them with 'customized-grpo data masks', or set "
                "missing_mask: skip in a new run, which leaves its images unscored"
            )
        return example

    async def score(self, example: Example, images: Sequence[Image]) -> float:
        """The score of one question about an example, ``prepared``, and images, on the rubric's scale.

        Raises:
            Unscorable: the judge gave no readable score.
            RewardFailure: the endpoint refuses for good, or the budget is spent.
            ValueError: the example lacks what the rubric shows or says.
        """
        config, rubric = self._config, self._rubric.rubric
        facts = self._rubric.facts(example)
        text = question(rubric, example, facts=facts, reasoning=config.reasoning, output=config.output)
        name = config.judge_name()
        shown = [
            (label, reduced(one, config.image_side))
            for label, one in pictures(rubric, example, images, name=name, max_references=config.max_references)
        ]
        key = self._key(text, [one for _, one in shown], example.extra.get("run"))
        return await self._client.run(self._asked(key, text, shown))

    async def _asked(self, key: str, text: str, shown: list[tuple[str, Image]]) -> float:
        if (kept := self._kept(key)) is not None:
            return kept
        return await self._client.in_turn(lambda: self._answered(key, text, shown))

    async def _answered(self, key: str, text: str, shown: list[tuple[str, Image]]) -> float:
        system = self._rubric.rubric.system
        messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system is not None else []
        messages.append({"role": "user", "content": self._content(text, shown)})
        answer = await self._client.ask({"messages": messages, **self._fixed})
        counts = self._used(answer.get("usage"))
        self._cache.spend(sum(counts))
        choices = answer.get("choices")
        if not isinstance(choices, list) or not choices:
            raise Unscorable(self._client.complaint(answer))
        reply, read_answer = read_choices(choices, self._reader)
        score = float(read_answer.score)
        if self._reader.value_of is not None:
            score = expected_score(reply, read_answer, tokens_of(choices[0]), self._reader.value_of)
        self._cache.put(key, score, reply, prompt_tokens=counts[0], answer_tokens=counts[1])
        return score

    def _kept(self, key: str) -> float | None:
        """The cached score, if its reply still states one: what an earlier version misread is asked again."""
        if (found := self._cache.get(key)) is None:
            return None
        score, reply = found
        try:
            stated = float(self._reader.read(reply).score)
        except Unscorable:
            return None
        return stated if self._reader.value_of is None else score

    def _used(self, usage: Any) -> tuple[int, int]:
        """Tokens of the question and the answer: as the endpoint counts them, or an estimate."""
        counts = (
            [usage.get(name) or 0 for name in ("prompt_tokens", "completion_tokens")] if isinstance(usage, dict) else []
        )
        if not counts or not all(isinstance(count, int) for count in counts):
            return self._config.tokens(), 0
        return counts[0], counts[1]

    def _content(self, text: str, shown: list[tuple[str, Image]]) -> list[dict[str, Any]]:
        words = {"type": "text", "text": text}
        images: list[dict[str, Any]] = []
        for label, image in shown:
            url: dict[str, Any] = {"url": data_url(image, self._config.image_format)}
            if self._config.detail is not None:
                url["detail"] = self._config.detail
            images += [{"type": "text", "text": label}] if label else []
            images.append({"type": "image_url", "image_url": url})
        return [words, *images] if self._config.image_order == "text_first" else [*images, words]

    def _key(self, text: str, images: list[Image], run: object) -> str:
        """Cache key of everything that decides the answer: pixels, not files, which depend on Pillow's version."""
        config = self._config
        asked = {
            "rubric": config.rubric_key(),
            "endpoint": config.base_url,
            "text": text,
            "system": self._rubric.rubric.system,
            "fixed": self._fixed,
            "images": [config.image_format, config.image_order, config.detail],
            "expected": self._reader.value_of is not None,
            "run": run,
        }
        digest = hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode())
        for image in images:
            digest.update(f"{image.width} {image.height} ".encode() + image.tobytes())
        return digest.hexdigest()

    def _request(self) -> dict[str, Any]:
        """Request parameters common to all questions."""
        config = self._config
        fixed: dict[str, Any] = {"model": config.model, config.token_limit: config.answer_tokens}
        if config.temperature is not None:
            fixed["temperature"] = config.temperature
        if config.output == "json_schema":
            made = schema(self._rubric.rubric, reasoning=config.reasoning)
            form = {"name": "judgement", "strict": True, "schema": made}
            fixed["response_format"] = {"type": "json_schema", "json_schema": form}
        elif config.output == "json_object":
            fixed["response_format"] = {"type": "json_object"}
        if self._reader.value_of is not None:
            fixed |= {"logprobs": True, "top_logprobs": _ALTERNATIVES}
        if config.extra_body:
            fixed["extra_body"] = config.extra_body
        return fixed
