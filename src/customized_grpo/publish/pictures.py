"""Pictures of a published folder, the report's gallery as files, and whose data may be shown."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from customized_grpo import registry
from customized_grpo.data.dreambench import facts
from customized_grpo.evaluation.tables import cell
from customized_grpo.report.gallery import Card, Group
from customized_grpo.report.write import number

FOLDER: Final = "pictures"


@dataclass(frozen=True, slots=True)
class Data:
    """A data set as a card speaks of it.

    Attributes:
        name: for people.
        text: a sentence on what it is.
        licence: under which its pictures may be shown, with their source; None where it isn't known.
    """

    name: str
    text: str
    licence: str | None


def data_of(section: Mapping[str, Any], *, count: int | None = None) -> Data:
    """The data set of a recipe's dumped section, by what is known of its kind.

    Args:
        section: with its ``type``.
        count: number of examples; None: not known.
    """
    kind = str(section.get("type"))
    number_of = f"{count:,} examples" if count is not None else "its number of examples is not at hand"
    if kind == "mini":
        split = f"the split `{section.get('split')}` of the miniature world of customized-grpo, drawn by a program"
        return Data(
            f"miniature world, {section.get('split')}", f"{split}; {number_of}.", "Apache-2.0 (customized-grpo)"
        )
    if kind == "dreambench":
        licence = f"DreamBooth data set, github.com/google/dreambooth: {facts()['licence']}; scaled down here"
        return Data("DreamBench", f"DreamBench (github.com/google/dreambooth); {number_of}.", licence)
    if kind == "manifest":
        return Data("a data set of the author's", f"a data set of the author's, not published here; {number_of}.", None)
    return Data(kind, f"a data set of the kind `{kind}`; {number_of}.", None)


def write_gallery(groups: Sequence[Group], folder: Path) -> str:
    """Write a gallery's pictures into ``folder/pictures``, each once, and return the Markdown that shows them."""
    return "\n".join(line for group in groups for line in _group(group, folder / FOLDER))


def _group(group: Group, folder: Path) -> list[str]:
    columns = [
        "reference",
        *(name for name, _ in group.cards[0].images),
        *(axis for axis, _, _ in group.cards[0].values),
    ]
    return [
        f"### {group.title}",
        "",
        cell(group.rule),
        "",
        f"| prompt | {' | '.join(columns)} |",
        f"| --- |{' --- |' * len(columns)}",
        *(f"| {' | '.join(_row(card, folder))} |" for card in group.cards),
        "",
    ]


def _row(card: Card, folder: Path) -> list[str]:
    pictures = [("reference", card.reference), *card.images]
    return [
        cell(card.prompt),
        *(_shown(name, uri, folder) for name, uri in pictures),
        *(number(last) if first is None else f"{number(first)} → {number(last)}" for _, first, last in card.values),
    ]


def _shown(name: str, uri: str | None, folder: Path) -> str:
    """Markdown of a picture, whose file has the name of its content."""
    if uri is None:
        return "–"
    head, _, data = uri.partition(",")
    pixels = base64.b64decode(data)
    file = folder / f"{sha256(pixels).hexdigest()[:16]}.{'png' if 'png' in head else 'jpg'}"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(pixels)
    return f"![{name}]({FOLDER}/{file.name})"


def what_it_is(kind: registry.Kind, name: str) -> str:
    """First sentence of a plug-in's docstring; empty where it isn't installed or says nothing."""
    try:
        text = registry.resolve(kind, name).__doc__ or ""
    except (ValueError, ImportError):
        return ""
    return " ".join(text.strip().split("\n\n")[0].split())
