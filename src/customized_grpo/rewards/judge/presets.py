"""What differs between OpenAI-compatible endpoints: address, key, image form, structured output, log-probabilities.

A preset is a set of defaults; a recipe may override every field. Sources: the providers' own pages on their
OpenAI-compatible interfaces, as of 2026-11. An endpoint that has changed since refuses with a message that names the
parameter, and the field is set in the recipe.
"""

import re
from collections.abc import Mapping
from typing import Any, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, JsonValue, NonNegativeFloat, PositiveInt, model_validator

Preset = Literal["gpt-4o", "gemini-2.5-pro", "qwen-vl-max", "vllm"]


class Endpoint(BaseModel):
    """Where a judge answers and what it understands. The defaults are those of ``gpt-4o``."""

    base_url: str = Field(default="https://api.openai.com/v1", description="without /chat/completions")
    model: str = Field(default="gpt-4o-2024-11-20", description="as the endpoint calls it; pin a snapshot")
    key_env: str = Field(
        default="OPENAI_API_KEY",
        description="name of the environment variable that holds the key; empty: no key",
    )
    output: Literal["json_schema", "json_object", "text"] = Field(
        default="json_schema", description="the strictest form of answer that the endpoint can be held to"
    )
    logprobs: bool = Field(default=True, description="whether it gives log-probabilities of what it wrote")
    token_limit: Literal["max_tokens", "max_completion_tokens"] = Field(
        default="max_completion_tokens", description="what it calls the limit of an answer"
    )
    answer_tokens: PositiveInt = Field(
        default=768, description="that limit; a model that thinks first needs thousands"
    )
    temperature: NonNegativeFloat | None = Field(default=0.0, description="null: not sent")
    image_format: Literal["png", "jpeg"] = Field(
        default="jpeg", description="of the data URLs; JPEG of quality 95"
    )
    image_side: PositiveInt = Field(default=512, description="longer sides are reduced to it")
    image_order: Literal["text_first", "images_first"] = Field(
        default="text_first", description="whether the rubric stands before the images or after them"
    )
    image_tokens: PositiveInt = Field(default=255, description="of one image of 512 x 512, for estimates")
    detail: Literal["low", "high", "auto"] | None = Field(
        default="high", description="OpenAI's image detail; null: not sent"
    )
    extra_body: dict[str, JsonValue] = Field(
        default={}, description="further parameters of the request, such as {reasoning_effort: low}"
    )

    @model_validator(mode="after")
    def _is_reachable(self) -> Self:
        url = urlsplit(self.base_url)
        # What stands in a recipe is saved and printed, so nothing secret may; and so nothing given is repeated here.
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
                "key_env: that is no name of an environment variable; give the variable's name (OPENAI_API_KEY), "
                "never the key itself: recipes are saved with every run"
            )
        if not self.model:
            raise ValueError("model: is empty; give the name under which the endpoint serves the judge")
        return self


PRESETS: Final[Mapping[str, Mapping[str, Any]]] = {
    "gpt-4o": {},
    "gemini-2.5-pro": {
        "base_url": "https://generativelanguage.googleapis.com/v1beta/openai",
        "model": "gemini-2.5-pro",
        "key_env": "GEMINI_API_KEY",
        "logprobs": False,
        "token_limit": "max_tokens",
        "answer_tokens": 8192,  # its thoughts count
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
    "vllm": {
        "base_url": "http://localhost:8000/v1",
        "model": "",  # whatever is served
        "key_env": "",
        "token_limit": "max_tokens",
        "image_format": "png",  # nothing is billed by bytes
        "image_tokens": 334,
        "detail": None,
    },
}
"""By name, what differs from ``gpt-4o``."""
