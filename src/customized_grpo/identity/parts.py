"""Parts of a modular pipeline by its index: beside it, or in another folder or repository, which identity follows."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from customized_grpo.paths import MODULAR_INDEX


@dataclass(frozen=True, slots=True)
class Place:
    """Where an index says that a part lies.

    Attributes:
        source: a folder or hub id.
        inside: folder in it; empty: all of it.
        revision: of a hub id.
    """

    source: str
    inside: str
    revision: str | None

    @classmethod
    def of(cls, index: Mapping[str, Any], name: str, source: str, revision: str | None) -> Self | None:
        """The place of a part; None where the index doesn't have it.

        Args:
            index: what the index says.
            name: the part's.
            source: folder or hub id of the index, where a part lies whose entry names no other.
            revision: of that.
        """
        entry = index.get(name)
        if not isinstance(entry, list) or not entry or not isinstance(entry[-1], dict):
            return None
        place = entry[-1].get("pretrained_model_name_or_path") or source
        return cls(place, entry[-1].get("subfolder") or "", revision if place == source else entry[-1].get("revision"))


def elsewhere(folder: Path, source: str) -> dict[str, Place]:
    """Parts of a modular pipeline's folder that lie neither beside its index nor elsewhere in its own source, by name.

    Args:
        folder: of the index; one without gives none.
        source: that folder, or the hub id whose files it holds.
    """
    try:
        index = json.loads((folder / MODULAR_INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none, or one that opening the model refuses
        return {}
    places = {
        name: Place.of(index, name, source, None)
        for name in (index if isinstance(index, dict) else {})
        if not (folder / name).is_dir()
    }
    return {name: place for name, place in places.items() if place is not None and place.source != source}
