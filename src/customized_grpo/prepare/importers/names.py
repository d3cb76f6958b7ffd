"""Files by the names that a table gives them, which may come from another system."""

import os
from pathlib import Path
from typing import Final, final

from customized_grpo.data.folders import plain

_SEPARATORS: Final = ";|,"
"""Separators of several paths in one cell."""


@final
class Names:
    r"""Maps a name in a table to a file under a folder: that name, or the only one that is the same to another system.

    Systems differ in the Unicode form of accents, in case, and in ``\``.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._listed: dict[Path, dict[str, list[str]]] = {}

    def __call__(self, name: str) -> Path:
        """The file; where there is none, or several could be meant, the path as it was given."""
        given = self._folder / name
        if os.path.lexists(given):
            return given
        at = self._folder
        for part in name.replace("\\", "/").split("/"):
            found = [part] if os.path.lexists(at / part) else self._alike(at, part)
            if len(found) != 1:
                return given
            at = at / found[0]
        return at

    def several(self, text: str) -> list[str]:
        """The names in one cell: ``a.png;b.png`` is two if such files are there, and is not the name of one."""
        if not os.path.lexists(self(text)):
            for separator in _SEPARATORS:
                parts = [part.strip() for part in text.split(separator) if part.strip()]
                if len(parts) > 1 and all(os.path.isfile(self(part)) for part in parts):
                    return parts
        return [text]

    def _alike(self, folder: Path, part: str) -> list[str]:
        """Names in a folder that are equal in Unicode's composed form, else those that are equal but for case."""
        if folder not in self._listed:
            names = os.listdir(folder) if os.path.isdir(folder) else []
            alike: dict[str, list[str]] = {}
            for name in names:
                for key in {plain(name), plain(name).casefold()}:
                    alike.setdefault(key, []).append(name)
            self._listed[folder] = alike
        alike = self._listed[folder]
        same = [name for name in alike.get(plain(part), []) if plain(name) == plain(part)]
        return same or alike.get(plain(part).casefold(), [])
