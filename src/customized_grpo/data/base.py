"""Data sets: the ``Dataset`` protocol, a sized sequence of examples, and loading one from a recipe's section."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

from PIL.Image import Image

from customized_grpo import registry
from customized_grpo.recipe.sections import DataSpec as DatasetConfig
from customized_grpo.types import Example

__all__ = ["Dataset", "DatasetConfig", "FromFiles", "Sources", "Supervised", "load_dataset", "missing", "supervised"]


@runtime_checkable
class Dataset(Protocol):
    """A sized sequence of examples, built as ``cls(config)``; equal configs give equal examples in equal order."""

    def __len__(self) -> int:
        """Number of examples, at least 1."""
        ...

    def __getitem__(self, index: int) -> Example:
        """The example at ``index`` in [0, len); images are decoded only here.

        Raises:
            IndexError: outside that range.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What an example is made of, known without decoding a picture: the fields of an ``Example``, with files' names.

    Names are relative to ``root``, so that a moved folder has the same.
    """

    root: Path
    key: str
    prompt: str
    references: tuple[str, ...]
    subject: str = ""
    masks: tuple[str | None, ...] = ()
    views: tuple[str, ...] = ()
    learnable: Mapping[str, str] = field(default_factory=dict)
    """Key to file of the pictures that a supervised objective may learn from (``KEYS``)."""
    targets: tuple[str, ...] = ()
    """Those that it learns from; empty in reinforcement learning."""
    size: tuple[int, int] | None = None
    """Height and width that the example itself asks for; None: it doesn't."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    place: str = ""
    """File and line that it is read from, for messages."""


@runtime_checkable
class FromFiles(Protocol):
    """A data set that can say what an example is made of; one that can't is told from others by its pixels."""

    def sources(self, index: int) -> Sources | None:
        """Text and files of the example at ``index``; None where they aren't known."""
        ...


KEYS: Final = {1: ("target",), 2: ("chosen", "rejected")}
"""Keys of a manifest's line by the number of pictures that a supervised objective learns from."""


@runtime_checkable
class Supervised(Protocol):
    """A data set that also has pictures of its prompts, to learn from."""

    def targets(self, index: int, number: int) -> tuple[Image, ...]:
        """The target of the example at ``index`` (number 1), or its chosen and its rejected picture (2), RGB."""
        ...

    def lacking(self, number: int) -> Sequence[str]:
        """Keys of the examples without them; no picture is read."""
        ...


def supervised(dataset: Dataset, number: int) -> Dataset:
    """The data set with ``number`` of ``Example.targets``; as it is in reinforcement learning, whose number is 0.

    Raises:
        ValueError: it has none, or not for all examples.
    """
    if not number:
        return dataset
    needed = " and ".join(KEYS[number])
    if not isinstance(dataset, Supervised):
        raise ValueError(
            f"data: {type(dataset).__name__} has no pictures to learn from ({needed}); start a new run on a manifest, "
            "whose lines name them, or give the class the methods targets and lacking"
        )
    if lacking := dataset.lacking(number):
        shown = ", ".join(lacking[:3]) + (", ..." if len(lacking) > 3 else "")
        raise ValueError(
            f"data: {len(lacking):,} of {len(dataset):,} examples have no {needed} ({shown}); every line needs the "
            "key to be learnt from: leave the others out of the manifest"
        )
    return _WithTargets(dataset, dataset, number)


@dataclass(frozen=True, slots=True)
class _WithTargets:
    examples: Dataset
    pictures: Supervised
    number: int

    def __len__(self) -> int:
        return len(self.examples)

    def sources(self, index: int) -> Sources | None:
        one = self.examples.sources(index) if isinstance(self.examples, FromFiles) else None
        return None if one is None else replace(one, targets=tuple(one.learnable[key] for key in KEYS[self.number]))

    def __getitem__(self, index: int) -> Example:
        example, targets = self.examples[index], self.pictures.targets(index, self.number)
        return replace(example, targets=targets, size=example.size or (targets[0].height, targets[0].width))


def missing(spec: DatasetConfig) -> str | None:
    """The path that a section names and that is not on this machine; None if there is nothing amiss."""
    path = spec.model_dump().get("path")
    return path if isinstance(path, str) and not Path(path).expanduser().exists() else None


def load_dataset(spec: DatasetConfig, place: str = "data") -> Dataset:
    """Load the data set of a recipe's section; messages name its ``place``.

    Raises:
        ValueError: the data set is empty.
    """
    dataset: Dataset = registry.resolve("datasets", spec.type)(spec)
    if not len(dataset):
        raise ValueError(f"{place}: the data set ({spec.type}) is empty; it needs at least one example")
    return dataset
