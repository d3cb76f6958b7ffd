"""The run-time type checker behind conftest's import hook: beartype, except where it can't read the hints."""

from collections.abc import Callable
from typing import TypeVar

from beartype import beartype
from beartype.roar import BeartypeDecorHintPep673Exception

F = TypeVar("F", bound=Callable[..., object])


def checked(function: F) -> F:
    """``function`` with its arguments and result checked against their annotations.

    jaxtyping decorates functions one by one, and beartype reads ``Self`` only when it decorates the whole class,
    so the few methods that return ``Self`` go unchecked.
    """
    try:
        return beartype(function)
    except BeartypeDecorHintPep673Exception:
        return function
