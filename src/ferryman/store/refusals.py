"""What stores without transactions say when they are asked for one."""

from __future__ import annotations

from ferryman.errors import Unsupported

__all__ = ["no_guests", "no_transactions"]


def no_guests(url: str) -> Unsupported:
    """The error for `Store.using`."""
    return Unsupported(
        f"{url} cannot store jobs inside a transaction of yours (using=…); the stores SQLite and PostgreSQL can"
    )


def no_transactions(url: str) -> Unsupported:
    """The error for `Store.transaction` and its twin."""
    return Unsupported(
        f"{url} has no transactions that a task could take part in; the stores SQLite and PostgreSQL have"
    )
