"""What a data set is: a sized sequence of examples, made from its nested ``Config``."""

from typing import Protocol

from pydantic import BaseModel, ConfigDict

from customized_grpo.types import Example


class DatasetConfig(BaseModel):
    """What every data set's ``Config`` holds; each data set adds its own fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: str


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
