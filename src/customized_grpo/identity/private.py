"""Texts without what is private: paths of this machine, and addresses of its network."""

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Final
from urllib.parse import urlsplit

from customized_grpo.web.proxies import is_private

WITHHELD: Final = "http://withheld.invalid"
"""Stands for an address in a private network, or one with a password in it."""


def public(value: Any) -> Any:
    """A value, or all within it, without paths and private addresses: of a path its last part stays."""
    if isinstance(value, Mapping):
        return {key: public(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [public(one) for one in value]
    if not isinstance(value, str):
        return value
    if re.match(r"https?://", value):
        parts = urlsplit(value)
        return WITHHELD if parts.username or parts.password or is_private(parts.hostname or "") else value
    return last_of(value) if is_path(value) else value


def is_path(text: str) -> bool:
    """True for a path of this machine: from the root, home or the folder above, or one that is there."""
    if "\n" in text or len(text) > 1000:
        return False
    rooted = PurePosixPath(text).is_absolute() or bool(PureWindowsPath(text).drive)
    if rooted or text.startswith(("~", "./", "../", "file:")) or "\\" in text:
        return True
    return "/" in text and Path(text).exists()


def last_of(path: str) -> str:
    """Name of a file or folder, without what is above it."""
    return PurePosixPath(path.replace("\\", "/")).name or "withheld"
