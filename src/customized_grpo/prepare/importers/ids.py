"""Ids of rows: safe as file names, and unique where case doesn't count."""

import re
from typing import final

_LONGEST = 112


@final
class Ids:
    """The ids that are taken."""

    def __init__(self) -> None:
        self._next: dict[str, int] = {}

    def free(self, wish: str) -> str:
        """The proposed id, made safe as a file name, with a number if it is taken (ignoring case, as for files)."""
        plain = re.sub(r"[^A-Za-z0-9._-]+", "-", wish).strip(".-")[:_LONGEST] or "row"
        name, number = plain, self._next.get(plain.casefold(), 1)
        while name.casefold() in self._next:
            number += 1
            name = f"{plain}-{number}"
        self._next[plain.casefold()] = number
        self._next.setdefault(name.casefold(), 1)
        return name
