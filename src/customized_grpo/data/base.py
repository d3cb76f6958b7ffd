"""Data sets: the ``Dataset`` protocol, a sized sequence of examples, and loading one from a recipe's section."""

from typing import Protocol, runtime_checkable

from customized_grpo import registry
from customized_grpo.recipe.sections import DataSpec as DatasetConfig
from customized_grpo.types import Example

__all__ = ["Dataset", "DatasetConfig", "load_dataset"]


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


def load_dataset(spec: DatasetConfig, place: str = "data") -> Dataset:
    """Load the data set of a recipe's section; messages name its ``place``.

    Raises:
        ValueError: the data set is empty.
    """
    dataset: Dataset = registry.resolve("datasets", spec.type)(spec)
    if not len(dataset):
        raise ValueError(f"{place}: the data set ({spec.type}) is empty; it needs at least one example")
    return dataset
