"""Data sets: the ``Dataset`` protocol, a sized sequence of examples, and loading one from a recipe's section."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from customized_grpo import registry
from customized_grpo.recipe.sections import DataSpec as DatasetConfig
from customized_grpo.types import Example

__all__ = ["Dataset", "DatasetConfig", "FromFiles", "Sources", "load_dataset"]


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
    extra: Mapping[str, Any] = field(default_factory=dict)
    place: str = ""
    """File and line that it is read from, for messages."""


@runtime_checkable
class FromFiles(Protocol):
    """A data set that can say what an example is made of; one that can't is told from others by its pixels."""

    def sources(self, index: int) -> Sources | None:
        """Text and files of the example at ``index``; None where they aren't known."""
        ...


def load_dataset(spec: DatasetConfig, place: str = "data") -> Dataset:
    """Load the data set of a recipe's section; messages name its ``place``.

    Raises:
        ValueError: the data set is empty.
    """
    dataset: Dataset = registry.resolve("datasets", spec.type)(spec)
    if not len(dataset):
        raise ValueError(f"{place}: the data set ({spec.type}) is empty; it needs at least one example")
    return dataset
