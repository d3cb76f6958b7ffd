"""Why an image has no score."""

from typing import Final

_SHOWN: Final = 120


class Unscorable(RuntimeError):
    """An image has no score; the message says why. Other images are not affected."""


def shown(text: str) -> str:
    """The start of a text, in quotes and on one line."""
    flat = " ".join(text.split())
    return repr(flat if len(flat) <= _SHOWN else f"{flat[: _SHOWN - 1]}…")
