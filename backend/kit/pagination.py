"""A window into a list, and the page that a query returns for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Window:
    """`limit` rows from `offset` on."""

    limit: int
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """The rows of one window and the number of rows in all."""

    items: Sequence[T]
    total: int
