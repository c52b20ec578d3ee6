"""A SQLite store as a guest on a user's connection to the same file."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, NoReturn, Protocol, TypeVar

from ferryman.errors import ConfigError, StoreError, StoreUnavailable
from ferryman.io.guests.kinds import library_of, must_be_awaited, unfit
from ferryman.io.operation import Operation
from ferryman.io.sqlite.database import Database
from ferryman.io.sqlite.failures import raise_mapped
from ferryman.io.sqlite.performing import Effects, perform_one

__all__ = ["ACCEPTED", "SqliteGuest", "SqliteLink"]

T = TypeVar("T")

ACCEPTED = (
    "a connection of sqlite3 or aiosqlite, a connection or session of SQLAlchemy, or Django's "
    'connections["default"], to the same SQLite file'
)


class SqliteLink(Protocol):
    """A way to the connection of `sqlite3` that lies beneath what the user gave."""

    def call(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do something with it, in the thread that may. Raises ConfigError if that must be awaited."""
        ...

    async def acall(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """`call`, awaited."""
        ...

    def after_commit(self, action: Callable[[], None]) -> None:
        """Have something done once the user's transaction is committed, if the library can tell."""
        ...


class SqliteGuest:
    """See `ferryman.io.operation.GuestRunner`. As thread-safe as the connection."""

    def __init__(
        self, connection: object, database: Database, make: Callable[[sqlite3.Cursor], None]
    ) -> None:
        """`make` makes the tables if they are not there."""
        self._link = _link(connection)
        self._database = database
        self._make = make

    def run(self, operation: Operation[T]) -> T:
        return self._answer(self._link.call(lambda raw: self._perform(raw, operation)))

    async def arun(self, operation: Operation[T]) -> T:
        return self._answer(await self._link.acall(lambda raw: self._perform(raw, operation)))

    def _answer(self, performed: _Performed[T]) -> T:
        result, bells, committed = performed
        if bells and committed:
            self._database.ring(bells)
        elif bells:
            # Where nobody tells of the commit, workers see it by the version of the file, some ms later.
            self._link.after_commit(lambda: self._database.ring(bells))
        return result

    def _perform(self, raw: sqlite3.Connection, operation: Operation[T]) -> _Performed[T]:
        path = self._database.path
        try:
            # A cursor made like this has no row factory, whatever the connection has.
            cursor = sqlite3.Cursor(raw)
            with _undisturbed(raw):
                _check_file(cursor, path)
                effects = Effects()
                with _part_of_transaction(raw, cursor) as committed:
                    self._make(cursor)
                    result: T = perform_one(cursor, operation, self._database.now(), effects)
        except sqlite3.Error as error:
            _raise_mapped(error, path)
        return _Performed(result, effects.bells, committed)


class _Performed(NamedTuple, Generic[T]):
    """What became of an operation."""

    result: T
    bells: Sequence[str]
    committed: bool


@contextlib.contextmanager
def _part_of_transaction(raw: sqlite3.Connection, cursor: sqlite3.Cursor) -> Iterator[bool]:
    """All or nothing of what is done in here becomes a part of the user's transaction.

    Answers True if there is none and will be none, since the connection commits each statement by itself.
    """
    if raw.in_transaction:
        begin, end, undo = "SAVEPOINT ferryman", "RELEASE ferryman", "ROLLBACK TO ferryman"
    else:
        # Outside of transactions, the end of a savepoint would commit. Here the user's next statement would have
        # begun one, if that is left to `sqlite3`. As this is going to write, it begins as a writer.
        begin, end, undo = "BEGIN IMMEDIATE", "", "ROLLBACK"
    commits_itself = not raw.in_transaction and _commits_itself(raw)
    if commits_itself:
        end = "COMMIT"
    cursor.execute(begin)
    try:
        yield commits_itself
        if end:
            cursor.execute(end)
    except BaseException:
        # A full disk or the like has undone the whole transaction already.
        if raw.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                cursor.execute(undo)
                if undo != "ROLLBACK":
                    cursor.execute(end)
        raise


def _commits_itself(raw: sqlite3.Connection) -> bool:
    # The attribute came with Python 3.12; what is neither True nor False leaves it to the isolation level.
    autocommit = getattr(raw, "autocommit", None)
    return autocommit if isinstance(autocommit, bool) else raw.isolation_level is None


_TYPES = frozenset({"INTEGER", "TEXT", "BLOB", "REAL"})
"""The declared types of our columns."""

_converting = threading.Lock()


@contextlib.contextmanager
def _undisturbed(raw: sqlite3.Connection) -> Iterator[None]:
    """Let values come as SQLite has them, whatever the user wants of them elsewhere."""
    text_factory: Any = raw.text_factory
    if text_factory is not str:
        raw.text_factory = str
    try:
        if _TYPES.isdisjoint(sqlite3.converters):
            yield
        else:
            with _without_converters():
                yield
    finally:
        if text_factory is not str:
            raw.text_factory = text_factory


@contextlib.contextmanager
def _without_converters() -> Iterator[None]:
    """There is no other way to read an INTEGER as such, where a user has registered a converter for that name."""
    with _converting:
        hidden = {name: sqlite3.converters.pop(name) for name in _TYPES & sqlite3.converters.keys()}
        try:
            yield
        finally:
            sqlite3.converters.update(hidden)


def _check_file(cursor: sqlite3.Cursor, path: str) -> None:
    _, _, file = cursor.execute("PRAGMA database_list").fetchone()
    if file == path:
        return
    try:
        same = os.path.samefile(file, path)
    except FileNotFoundError:
        same = False
    if not same:
        raise ConfigError(
            f"using= got a connection to {file or ':memory:'!r}, and this store is in {path!r}: jobs can only be "
            "stored in a transaction on the same file; give the app the URL of your database, or enqueue without using="
        )


def _raise_mapped(error: sqlite3.Error, path: str) -> NoReturn:
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        raise StoreUnavailable(
            f"the database {path!r} is locked by another connection, or was changed by one since this transaction "
            "began to read; roll back and try again, and let transactions that will write begin with BEGIN IMMEDIATE"
        ) from error
    raise_mapped(error, path)


# -- the connections themselves ----------------------------------------------------------------------


def _link(connection: Any) -> SqliteLink:
    link: SqliteLink | None = None
    match library_of(connection):
        case "sqlite3":
            if isinstance(connection, sqlite3.Connection):
                link = Blocking(connection)
        case "aiosqlite":
            import aiosqlite

            if isinstance(connection, aiosqlite.Connection):
                link = Awaited(connection)
        case "sqlalchemy":
            from ferryman.io.guests.sqlalchemy import sqlite_link

            link = sqlite_link(connection)
        case "django":
            from ferryman.io.guests.django import sqlite_link

            link = sqlite_link(connection)
        case _:
            pass
    if link is None:
        raise unfit(connection, "SQLite", ACCEPTED)
    return link


class Blocking:
    """A connection of `sqlite3` itself. It does not tell when it commits."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def call(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return work(self._connection)

    async def acall(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return self.call(work)

    def after_commit(self, action: Callable[[], None]) -> None:
        pass


class Awaited:
    """A connection of aiosqlite, which keeps one of `sqlite3` in a thread. It does not tell when it commits."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def call(self, work: Callable[[sqlite3.Connection], T]) -> T:  # noqa: ARG002
        raise must_be_awaited(self._connection)

    async def acall(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return await in_thread_of(self._connection, work)

    def after_commit(self, action: Callable[[], None]) -> None:
        pass


async def in_thread_of(connection: Any, work: Callable[[sqlite3.Connection], T]) -> T:
    """Do something in the thread of a connection of aiosqlite.

    There is no public way: the public one is a change of threads for each statement, and does not let go of the row
    factory. SQLAlchemy reaches for the same two names.
    """
    try:
        raw = connection._conn  # noqa: SLF001
    except ValueError as error:
        raise StoreError("using= got a connection that is closed, or not open yet") from error
    result: T = await connection._execute(work, raw)  # noqa: SLF001
    return result
