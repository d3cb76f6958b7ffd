"""Presets of OpenAI-compatible endpoints: address, key, image format, structured output, log-probabilities.

Those of trained judges stand for models that know one form of question, for which ``builtin`` has rubrics. Sources: the
judges' own scripts in VectorSpaceLab/EditScore, CodeGoat24/UnifiedReward (UnifiedReward-Edit) and X-GenGroup/PaCo-RL.

A preset is a set of defaults; a recipe may override every field. Sources: the providers' own pages on their
OpenAI-compatible interfaces, as of 2026-11. If an endpoint has changed since, its refusal names the
parameter, and the recipe can set the field.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, Field, JsonValue, NonNegativeFloat, PositiveInt, model_validator

from customized_grpo.web.addresses import tidy

Preset = Literal["gpt-4o", "gemini-2.5-pro", "qwen-vl-max", "vllm", "editscore", "unifiedreward", "paco"]


def _base(url: str) -> str:
    """An address as people paste it: with the whole path of a question."""
    return re.sub(r"(/chat)?/completions$", "", tidy(url)).rstrip("/")


class Endpoint(BaseModel):
    """Address and capabilities of a judge's endpoint. The defaults are those of ``gpt-4o``."""

    base_url: Annotated[str, AfterValidator(_base)] = Field(
        default="https://api.openai.com/v1", description="address of the endpoint up to /chat/completions"
    )
    model: str = Field(default="gpt-4o-2024-11-20", description="name of the model at the endpoint; pin a snapshot")
    key_env: str = Field(
        default="OPENAI_API_KEY",
        description="name of the environment variable that holds the key; empty: no key",
    )
    output: Literal["json_schema", "json_object", "text"] = Field(
        default="json_schema", description="strictest output format that the endpoint supports"
    )
    logprobs: bool = Field(default=True, description="whether the endpoint returns log-probabilities")
    token_limit: Literal["max_tokens", "max_completion_tokens"] = Field(
        default="max_completion_tokens", description="the endpoint's parameter for the limit on answer tokens"
    )
    answer_tokens: PositiveInt = Field(
        default=768, description="limit on answer tokens; a reasoning model needs thousands"
    )
    temperature: NonNegativeFloat | None = Field(default=0.0, description="null: not sent")
    image_format: Literal["png", "jpeg"] = Field(
        default="jpeg", description="format of images in data URLs; JPEG has quality 95"
    )
    image_side: PositiveInt = Field(default=512, description="limit on an image's longer side in pixels")
    image_order: Literal["text_first", "images_first"] = Field(
        default="text_first", description="order of the rubric and the images"
    )
    image_tokens: PositiveInt = Field(default=255, description="tokens of an image of 512 x 512, for estimates")
    detail: Literal["low", "high", "auto"] | None = Field(
        default="high", description="OpenAI's image detail; null: not sent"
    )
    extra_body: dict[str, JsonValue] = Field(
        default={}, description="further parameters of the request, such as {reasoning_effort: low}"
    )

    @model_validator(mode="after")
    def _is_reachable(self) -> Self:
        url = urlsplit(self.base_url)
        # Recipes are saved and printed, so they must hold no secrets; hence no given value is repeated here.
        if url.username or url.password or url.query:
            raise ValueError(
                "base_url: it holds a user, a password or a query; give the plain address, and the key by key_env"
            )
        if url.scheme not in ("http", "https") or not url.netloc:
            raise ValueError(
                f"base_url: given {self.base_url!r}; give the endpoint's address, as in http://localhost:8000/v1"
            )
        if not re.fullmatch(r"([A-Z_][A-Z0-9_]*)?", self.key_env):
            raise ValueError(
                "key_env: that is not the name of an environment variable; give the variable's name (OPENAI_API_KEY), "
                "never the key itself: recipes are saved with every run"
            )
        if not self.model:
            raise ValueError("model: is empty; give the name under which the endpoint serves the judge")
        return self


_VLLM: Final[Mapping[str, Any]] = {
    "base_url": "http://localhost:8000/v1",
    "model": "",  # any served model
    "key_env": "",
    "token_limit": "max_tokens",
    "image_format": "png",  # bytes are not billed
    "image_tokens": 334,
    "detail": None,
}
_TRAINED: Final[Mapping[str, Any]] = {**_VLLM, "output": "text", "image_order": "images_first"}
PRESETS: Final[Mapping[str, Mapping[str, Any]]] = {
    "gpt-4o": {},
    "gemini-2.5-pro": {
        "base_url": "https://generativelanguage.googleapis.com/v1beta/openai",
        "model": "gemini-2.5-pro",
        "key_env": "GEMINI_API_KEY",
        "logprobs": False,
        "token_limit": "max_tokens",
        "answer_tokens": 8192,  # reasoning tokens count
        "image_tokens": 258,
        "detail": None,
    },
    "qwen-vl-max": {
        "base_url": "https://dashscope-intl.aliyuncs.com/compatible-mode/v1",
        "model": "qwen-vl-max",
        "key_env": "DASHSCOPE_API_KEY",
        "output": "json_object",
        "logprobs": False,
        "token_limit": "max_tokens",
        "image_tokens": 334,
        "detail": None,
    },
    "vllm": _VLLM,
    "editscore": _TRAINED,  # a LoRA on Qwen2.5-VL, whose name is the server's choice
    "unifiedreward": {  # as its own script serves CodeGoat24/UnifiedReward-Edit-*
        **_TRAINED,
        "base_url": "http://localhost:8080/v1",
        "model": "UnifiedReward",
        "image_format": "jpeg",
    },
    "paco": {**_TRAINED, "model": "X-GenGroup/PaCo-Reward-7B", "image_format": "jpeg"},
}
"""Overrides of ``gpt-4o``'s defaults, by preset name."""

NO_JUDGES: Final[Mapping[str, str]] = {
    "editreward": "EditReward answers by numbers of a head of its own and not by words, which no chat endpoint gives; "
    "wrap it as a reward (docs/how-to/reward.md), serve that and use type: remote (docs/how-to/reward-server.md)",
}
"""Reward models that are no judges, by the preset's name that one would try, and what to do instead."""
