"""What goes over the wire to a reward server and back: JSON, with images as PNG in base64. Nothing is unpickled.

PNG loses nothing, so the server scores the very pixels. JSON carries a float32 exactly: a score arrives bit for bit.
"""

import base64
import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

from PIL.Image import Image
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from customized_grpo.types import Example

_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"


def _read_png(given: Any) -> bytes:
    try:
        content = base64.b64decode(given, validate=True)
    except (TypeError, ValueError) as error:
        raise ValueError("is no base64; send the PNG file as base64 text") from error
    if not content.startswith(_SIGNATURE):
        raise ValueError("is no PNG; other formats lose pixels, and with them the score")
    return content


Png = Annotated[bytes, BeforeValidator(_read_png)]


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ExampleMessage(_Message):
    """An example without what JSON can't carry (see ``request_body``)."""

    key: str
    prompt: str
    subject: str = ""
    references: tuple[Png, ...] = ()
    masks: tuple[Png | None, ...] = ()
    extra: dict[str, Any] = {}


class ScoreRequest(_Message):
    """Images of one example, to be scored by the reward of the address."""

    example: ExampleMessage
    images: tuple[Png, ...] = Field(min_length=1)
    shared: bool = Field(
        default=True,
        description="whether other requests for the same example may share the batch: faster for single images, but "
        "the last bits of a score depend on the batch, and so on what else is asked at the time",
    )


class ScoreResponse(_Message):
    """One score an image, null where it can't be scored."""

    scores: tuple[float | None, ...]
    fingerprint: str
    """Of the reward that gave them."""
    batch: int
    """Images that were scored together with these, these included."""


def request_body(example: Example, images: Sequence[Image]) -> bytes:
    """The body of a request for a whole group, in a batch of its own: the references travel once.

    Of ``example.extra`` goes what is plain JSON; objects of a data set's own classes stay behind.
    """
    body = {
        "example": {
            "key": example.key,
            "prompt": example.prompt,
            "subject": example.subject,
            "references": [png(image) for image in example.references],
            "masks": [None if mask is None else png(mask) for mask in example.masks],
            "extra": _plain(example.extra),
        },
        "images": [png(image) for image in images],
        "shared": False,
    }
    return json.dumps(body).encode()


def png(image: Image) -> str:
    """A picture as PNG in base64."""
    stream = io.BytesIO()
    image.save(stream, "PNG", compress_level=1)  # a third of the time of the default, and hardly larger
    return base64.b64encode(stream.getvalue()).decode("ascii")


def fingerprint(spec: BaseModel) -> str:
    """16 digits that change with any option of a reward, defaults included, but not with where it is used.

    Axis and weight belong to the recipe that uses the reward. Weights are not read: a folder's name stands for them.
    """
    options = spec.model_dump(mode="json", exclude={"axis", "weight"})
    text = json.dumps(options, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_token(variable: str) -> str | None:
    """The token in an environment variable; None where it isn't set or is empty.

    Raises:
        ValueError: it holds signs that no HTTP header can carry. The message doesn't show it.
    """
    token = os.environ.get(variable, "").strip()
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise ValueError(
            f"the environment variable {variable} holds spaces or signs that a token can't have; "
            "make one with: openssl rand -hex 32"
        )
    return token or None


def _plain(extra: Mapping[str, Any]) -> dict[str, Any]:
    kept = {}
    for key, value in extra.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            continue
        kept[key] = value
    return kept
