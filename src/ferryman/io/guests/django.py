"""What lies beneath Django's connections. Imported only when one of them is given."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from django.db import connections  # type: ignore[import-untyped]
from django.db.backends.base.base import BaseDatabaseWrapper  # type: ignore[import-untyped]
from django.utils.connection import ConnectionProxy  # type: ignore[import-untyped]

from ferryman.io.guests.kinds import unfit
from ferryman.io.guests.sqlite import SqliteLink

if TYPE_CHECKING:
    # Whoever has Django over SQLite need not have psycopg.
    from ferryman.io.guests.postgres import PostgresLink

__all__ = ["postgres_link", "sqlite_link"]

T = TypeVar("T")


def sqlite_link(given: Any) -> SqliteLink | None:
    """None if this is no connection of Django's to SQLite."""
    connection = _open(given)
    return None if connection is None or connection.vendor != "sqlite" else _Sqlite(connection)


def postgres_link(given: Any) -> PostgresLink | None:
    """None if this is no connection of Django's to PostgreSQL."""
    connection = _open(given)
    return None if connection is None or connection.vendor != "postgresql" else _Postgres(connection)


def _open(given: Any) -> Any:
    if isinstance(given, ConnectionProxy):
        # `django.db.connection` stands for the one of this thread.
        given = connections[given.alias]
    return given if isinstance(given, BaseDatabaseWrapper) else None


def _check(connection: Any) -> None:
    """As Django does before a statement."""
    connection.ensure_connection()
    connection.validate_thread_sharing()
    if connection.in_atomic_block:
        connection.validate_no_broken_transaction()


class _Sqlite:
    """Django's SQLite backend."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def call(self, work: Callable[[sqlite3.Connection], T]) -> T:
        _check(self._connection)
        raw = self._connection.connection
        if not isinstance(raw, sqlite3.Connection):
            raise unfit(raw, "SQLite", "a connection of Django over sqlite3")
        return work(raw)

    async def acall(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return self.call(work)

    def after_commit(self, action: Callable[[], None]) -> None:
        # Without autocommit and outside `atomic`, Django cannot tell.
        if self._connection.in_atomic_block or self._connection.get_autocommit():
            self._connection.on_commit(action)


class _Postgres:
    """Django's PostgreSQL backend."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def fetch(self, text: str, params: Sequence[Any]) -> list[tuple[Any, ...]]:
        connection = self._connection
        # It makes none, and answers None, where each statement is committed by itself.
        savepoint = connection.savepoint()
        try:
            with connection.cursor() as cursor:
                cursor.execute(text, params)
                rows: list[tuple[Any, ...]] = cursor.fetchall()
        except BaseException:
            if savepoint is not None:
                connection.savepoint_rollback(savepoint)
                connection.savepoint_commit(savepoint)
            raise
        if savepoint is not None:
            connection.savepoint_commit(savepoint)
        return rows

    async def afetch(self, text: str, params: Sequence[Any]) -> list[tuple[Any, ...]]:
        return self.fetch(text, params)
