"""What lies beneath SQLAlchemy's connections and sessions. Imported only when one of them is given."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Connection, event
from sqlalchemy.engine import AdaptedConnection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
from sqlalchemy.orm import Session, scoped_session

from ferryman.io.guests.kinds import must_be_awaited, unfit
from ferryman.io.guests.sqlite import SqliteLink, in_thread_of

if TYPE_CHECKING:
    # Whoever has SQLAlchemy over SQLite need not have psycopg.
    from ferryman.io.guests.postgres import PostgresLink

__all__ = ["postgres_link", "sqlite_link"]

T = TypeVar("T")

_BELLS = "ferryman.after_commit"
"""Where `Session.info` keeps what is to be done after its commit."""


def sqlite_link(given: Any) -> SqliteLink | None:
    """None if this is no connection of SQLAlchemy's to SQLite."""
    opened = _open(given)
    return None if opened is None or _dialect(opened) != "sqlite" else _Sqlite(opened)


def postgres_link(given: Any) -> PostgresLink | None:
    """None if this is no connection of SQLAlchemy's to PostgreSQL."""
    opened = _open(given)
    return None if opened is None or _dialect(opened) != "postgresql" else _Postgres(opened)


def _open(given: Any) -> Connection | Session | AsyncConnection | AsyncSession | None:
    if isinstance(given, (scoped_session, async_scoped_session)):
        given = given()
    is_fit = isinstance(given, (Connection, Session, AsyncConnection, AsyncSession))
    return given if is_fit else None


def _dialect(opened: Connection | Session | AsyncConnection | AsyncSession) -> str:
    if isinstance(opened, AsyncSession):
        opened = opened.sync_session
    return opened.get_bind().dialect.name if isinstance(opened, Session) else opened.dialect.name


def _begun(opened: Connection | Session) -> Connection:
    """The connection, its transaction begun as any statement would have begun it."""
    if isinstance(opened, Session):
        return opened.connection()
    if not opened.in_transaction():
        opened.begin()
    return opened


class _Sqlite:
    """A connection or session, over sqlite3 or aiosqlite."""

    def __init__(self, opened: Connection | Session | AsyncConnection | AsyncSession) -> None:
        self._opened = opened

    def call(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if isinstance(self._opened, (AsyncConnection, AsyncSession)):
            raise must_be_awaited(self._opened)
        return _call_sqlite(self._opened, work)

    async def acall(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if isinstance(self._opened, (AsyncConnection, AsyncSession)):
            return await self._opened.run_sync(_call_sqlite, work)
        return _call_sqlite(self._opened, work)

    def after_commit(self, action: Callable[[], None]) -> None:
        opened = self._opened
        if isinstance(opened, AsyncSession):
            opened = opened.sync_session
        if isinstance(opened, Session):
            _after_commit(opened, action)


def _call_sqlite(opened: Connection | Session, work: Callable[[sqlite3.Connection], T]) -> T:
    driver: Any = _begun(opened).connection.dbapi_connection
    if isinstance(driver, sqlite3.Connection):
        return work(driver)
    if isinstance(driver, AdaptedConnection):
        # `run_async` lets this blocking function wait for the coroutine, as SQLAlchemy does for its own.
        result: T = driver.run_async(lambda connection: in_thread_of(connection, work))
        return result
    raise unfit(driver, "SQLite", "a connection or session of SQLAlchemy over sqlite3 or aiosqlite")


class _Postgres:
    """A connection or session, over any driver whose placeholders are known here."""

    def __init__(self, opened: Connection | Session | AsyncConnection | AsyncSession) -> None:
        self._opened = opened

    def fetch(self, text: str, params: Sequence[Any]) -> list[tuple[Any, ...]]:
        if isinstance(self._opened, (AsyncConnection, AsyncSession)):
            raise must_be_awaited(self._opened)
        return _fetch(self._opened, text, params)

    async def afetch(self, text: str, params: Sequence[Any]) -> list[tuple[Any, ...]]:
        if isinstance(self._opened, (AsyncConnection, AsyncSession)):
            return await self._opened.run_sync(_fetch, text, params)
        return _fetch(self._opened, text, params)


def _fetch(opened: Connection | Session, text: str, params: Sequence[Any]) -> list[tuple[Any, ...]]:
    from ferryman.io.guests.postgres import numbered

    connection = _begun(opened)
    match connection.dialect.paramstyle:
        case "numeric_dollar":
            text = numbered(text)
        case "pyformat" | "format":
            pass
        case style:
            raise unfit(
                connection.connection.dbapi_connection, "PostgreSQL",
                f"a connection over psycopg, psycopg2 or asyncpg, not one whose placeholders are {style}",
            )  # fmt: skip
    commits_itself = getattr(connection.connection.dbapi_connection, "autocommit", False)
    with nullcontext() if commits_itself else connection.begin_nested():
        return [tuple(row) for row in connection.exec_driver_sql(text, tuple(params))]


def _after_commit(session: Session, action: Callable[[], None]) -> None:
    actions = session.info.get(_BELLS)
    if actions is None:
        # Listeners stay as long as the session, since one must not be removed while it is called.
        actions = session.info[_BELLS] = []
        event.listen(session, "after_commit", _committed)
        event.listen(session, "after_rollback", _rolled_back)
    actions.append(action)


def _committed(session: Session) -> None:
    # This is told of savepoints, too.
    if not session.in_nested_transaction():
        for action in _taken(session):
            action()


def _rolled_back(session: Session) -> None:
    # After a savepoint's, a bell too many may be rung: nobody minds.
    if not session.in_nested_transaction():
        _taken(session)


def _taken(session: Session) -> Sequence[Callable[[], None]]:
    actions: Sequence[Callable[[], None]] = session.info[_BELLS]
    session.info[_BELLS] = []
    return actions
