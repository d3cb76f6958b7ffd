"""What a data set is: a sized sequence of examples, made from its nested ``Config``."""

from typing import Protocol, runtime_checkable

from customized_grpo import registry
from customized_grpo.recipe.sections import DataSpec as DatasetConfig
from customized_grpo.types import Example

__all__ = ["Dataset", "DatasetConfig", "load_dataset"]


@runtime_checkable
class Dataset(Protocol):
    """Examples by index. Built as ``cls(config)``; equal configs give equal examples in equal order."""

    def __len__(self) -> int:
        """Number of examples, at least 1."""
        ...

    def __getitem__(self, index: int) -> Example:
        """The example at ``index`` in [0, len); images are decoded here, not before.

        Raises:
            IndexError: outside that range.
        """
        ...


def load_dataset(spec: DatasetConfig, place: str = "data") -> Dataset:
    """The data set of a recipe's section.

    Args:
        spec: the section, read by the data set's ``Config``.
        place: where in the recipe it stands, for the message.

    Raises:
        ValueError: it is empty.
    """
    dataset: Dataset = registry.resolve("datasets", spec.type)(spec)
    if not len(dataset):
        raise ValueError(f"{place}: the data set ({spec.type}) is empty; it needs at least one example")
    return dataset
