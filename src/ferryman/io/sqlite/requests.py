"""What an operation can ask of a SQLite runner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ferryman.errors import StoreError

__all__ = ["Conflict", "Many", "Query", "Ring", "Sync"]


class Query(NamedTuple):
    """One statement; answered with the list of its rows."""

    sql: str
    params: Sequence[Any] = ()


class Many(NamedTuple):
    """One statement over several rows of parameters; answered with the number of rows changed."""

    sql: str
    rows: Sequence[Sequence[Any]]


class Ring(NamedTuple):
    """Ring these bells once the transaction is committed; answered with None."""

    bells: Sequence[str]


class Sync(NamedTuple):
    """Let this transaction survive a loss of power, though its operation is not durable; answered with None."""


class Conflict(StoreError):
    """A uniqueness constraint failed; the operation that asked knows what it means."""
