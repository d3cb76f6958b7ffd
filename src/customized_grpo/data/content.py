"""The content of examples: what each is made of, as short hashes by name, so that results know what they stand on.

A data set from files gives them without decoding a picture; of any other the examples themselves are hashed.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from customized_grpo.data.base import Dataset, FromFiles, Sources
from customized_grpo.identity.hashes import FileHashes, short_hash
from customized_grpo.types import Example

Content = Mapping[str, str]
"""Part of an example (``PARTS``) to a hash of it. A part that the example doesn't have isn't there."""

DRAWN: Final = ("key", "prompt", "references")
"""Parts that a policy draws from; the key names the pictures' files."""
PARTS: Final = (*DRAWN, "subject", "masks", "views", "targets", "size", "extra")


def contents(dataset: Dataset, indices: Iterable[int], hashes: FileHashes) -> dict[int, Content]:
    """The content of several examples; files that weren't known are hashed side by side."""
    indices = list(indices)
    known = {index: dataset.sources(index) for index in indices} if isinstance(dataset, FromFiles) else {}
    files: dict[Path, dict[str, None]] = {}
    for one in known.values():
        if one is not None:
            files.setdefault(one.root, {}).update(dict.fromkeys(_files(one)))
    hashed = {root: hashes.of(root, names) for root, names in files.items()}
    return {
        index: _of_example(dataset[index], hashes) if (one := known.get(index)) is None else _of(one, hashed[one.root])
        for index in indices
    }


def hash_files(dataset: Dataset, indices: Iterable[int], hashes: FileHashes) -> None:
    """Hash what ``contents`` will ask for, where that is files."""
    if isinstance(dataset, FromFiles):
        contents(dataset, indices, hashes)


def _files(one: Sources) -> list[str]:
    return [*one.references, *(mask for mask in one.masks if mask is not None), *one.views, *one.targets]


def _of(one: Sources, hashed: Mapping[str, str]) -> Content:
    return _parts(
        key=one.key,
        prompt=one.prompt,
        references=[hashed[name] for name in one.references],
        subject=one.subject,
        masks=[None if name is None else hashed[name] for name in one.masks],
        views=[hashed[name] for name in one.views],
        targets=[hashed[name] for name in one.targets],
        size=one.size,
        extra=dict(one.extra),
    )


def _of_example(example: Example, hashes: FileHashes) -> Content:
    views = [Path(view) for view in example.extra.get("views", ())]
    return _parts(
        key=example.key,
        prompt=example.prompt,
        references=list(example.references),
        subject=example.subject,
        masks=list(example.masks),
        views=[hashes.of(view.parent, [view.name])[view.name] for view in views],
        targets=list(example.targets),
        size=example.size,
        extra={name: value for name, value in example.extra.items() if name != "views"},
    )


def _parts(**parts: Any) -> Content:
    """Hashes of the parts; masks that are all None are no masks."""
    given = parts | {"masks": parts["masks"] if any(mask is not None for mask in parts["masks"]) else []}
    return {name: short_hash(value) for name, value in given.items() if value or name == "key"}
