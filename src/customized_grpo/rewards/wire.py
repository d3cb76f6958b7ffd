"""Messages to and from a reward server: JSON, with images as PNG in base64. Nothing is unpickled.

PNG is lossless, so the server scores the same pixels. JSON represents a float32 exactly: scores arrive bit for bit.
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

from customized_grpo.identity.hashes import FileHashes
from customized_grpo.identity.sections import with_local_content
from customized_grpo.types import Example

_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"


def _read_png(given: Any) -> bytes:
    try:
        content = base64.b64decode(given, validate=True)
    except (TypeError, ValueError) as error:
        raise ValueError("is not base64; send the PNG file as base64 text") from error
    if not content.startswith(_SIGNATURE):
        raise ValueError("is not a PNG; other formats change pixels, and with them the score")
    return content


Png = Annotated[bytes, BeforeValidator(_read_png)]


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ExampleMessage(_Message):
    """An example as JSON, without what JSON can't represent (see ``request_body``)."""

    key: str
    prompt: str
    subject: str = ""
    references: tuple[Png, ...] = ()
    masks: tuple[Png | None, ...] = ()
    extra: dict[str, Any] = {}


class ScoreRequest(_Message):
    """Images of one example, to be scored by the reward of the URL."""

    example: ExampleMessage
    images: tuple[Png, ...] = Field(min_length=1)
    shared: bool = Field(
        default=True,
        description="whether other requests for the same example may share the batch: faster for single images, but "
        "the last bits of a score depend on the batch, and so on concurrent requests",
    )


class ScoreResponse(_Message):
    """One score per image, null if it can't be scored."""

    scores: tuple[Annotated[float, Field(strict=True)] | None, ...]
    fingerprint: str
    """Fingerprint of the reward."""
    batch: int
    """Number of images scored in the same batch, including these."""


def request_body(example: Example, images: Sequence[Image]) -> bytes:
    """Body of a request for a whole group in its own batch, so that references are sent once.

    Of ``example.extra`` only plain JSON is sent, not objects of a data set's own classes.
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
    image.save(stream, "PNG", compress_level=1)  # a third of the default's time, and hardly larger
    return base64.b64encode(stream.getvalue()).decode("ascii")


def fingerprint(spec: BaseModel, hashes: FileHashes) -> str:
    """16 hex digits that depend on all options of a reward, defaults included, but not on its use in a recipe.

    Axis and weight belong to the recipe that uses the reward. A model in a folder is identified by its content, one on
    the hub by its name: its commit isn't known before it was downloaded once.
    """
    options = with_local_content(_as_before(spec.model_dump(mode="json", exclude={"axis", "weight"})), hashes)
    text = json.dumps(options, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _as_before(options: Any) -> Any:
    """Options without revisions that aren't given: recipes hold fingerprints of versions that had no such keys."""
    if not isinstance(options, dict):
        return options
    return {
        key: _as_before(value) for key, value in options.items() if value is not None or not key.endswith("revision")
    }


def read_token(variable: str) -> str | None:
    """The token in an environment variable; None if unset or empty.

    Raises:
        ValueError: it has characters not allowed in an HTTP header. The message doesn't show it.
    """
    token = os.environ.get(variable, "").strip()
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise ValueError(
            f"the environment variable {variable} holds spaces or characters that a token can't have; "
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
