"""Connections lent to tasks that want a transaction on the store's own file."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import weakref
from collections.abc import AsyncIterator, Iterator

from ferryman.errors import ConfigError
from ferryman.io.finishing import finish
from ferryman.io.sqlite.failures import BUSY_MS, raise_mapped

__all__ = ["Lender"]


class Lender:
    """Plain connections, as `sqlite3` makes them. A file's other writers wait while one is lent. Thread-safe."""

    def __init__(self, path: str) -> None:
        self._path = path
        # In one event loop, who waits for the file's lock must not block who holds it.
        self._turns: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = (
            weakref.WeakKeyDictionary()
        )

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A connection in a transaction, which is committed at the end and rolled back after an exception."""
        with contextlib.closing(self._open()) as connection:
            self._do(connection, "BEGIN IMMEDIATE")
            with _kept_open(connection):
                yield connection
            self._do(connection, "COMMIT")

    @contextlib.asynccontextmanager
    async def atransaction(self) -> AsyncIterator[sqlite3.Connection]:
        """`transaction`, for the running event loop: only the lock and the commit are waited for beside it."""
        async with self._turns.setdefault(asyncio.get_running_loop(), asyncio.Lock()):
            connection = self._open()
            try:
                await self._ado(connection, "BEGIN IMMEDIATE")
                with _kept_open(connection):
                    yield connection
                await self._ado(connection, "COMMIT")
            finally:
                connection.close()

    def _open(self) -> sqlite3.Connection:
        try:
            # Not in autocommit: should SQLite roll all back, as for a full disk, the next write would have to begin a
            # transaction, which `_kept_open` refuses, and does not stand by itself.
            connection = sqlite3.connect(
                self._path, timeout=BUSY_MS / 1000, isolation_level="DEFERRED", check_same_thread=False
            )
            try:
                connection.execute("PRAGMA synchronous=FULL")
            except BaseException:
                connection.close()
                raise
        except sqlite3.Error as error:
            raise_mapped(error, self._path)
        return connection

    def _do(self, connection: sqlite3.Connection, command: str) -> None:
        try:
            connection.execute(command)
        except sqlite3.Error as error:
            raise_mapped(error, self._path)

    async def _ado(self, connection: sqlite3.Connection, command: str) -> None:
        """Once begun, this comes to its end, also if it is cancelled: a connection that another thread is at cannot be
        closed, and whether it was committed would be left to chance."""
        await finish(asyncio.to_thread(self._do, connection, command))


@contextlib.contextmanager
def _kept_open(connection: sqlite3.Connection) -> Iterator[None]:
    """Its transaction is not its borrower's to end: what he wrote would stand without the job's end. SQLite itself
    refuses, whichever of the driver's many ways leads to it."""
    refused: list[str | None] = []

    def judge(action: int, statement: str | None, *_: str | None) -> int:
        if action != sqlite3.SQLITE_TRANSACTION:
            return sqlite3.SQLITE_OK
        refused.append(statement)
        return sqlite3.SQLITE_DENY

    connection.set_authorizer(judge)
    try:
        yield
    except sqlite3.DatabaseError as error:
        if refused and getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_AUTH:
            # The first one: a `with` block that cannot commit rolls back next.
            raise _not_yours(refused[0]) from error
        raise
    finally:
        # Of a connection that its borrower has closed, what he raised is to be heard, not this.
        with contextlib.suppress(sqlite3.ProgrammingError):
            connection.set_authorizer(None)


def _not_yours(statement: str | None) -> ConfigError:
    return ConfigError(
        f"{statement} is not for the connection of a Transaction, nor is what leads to it, such as commit(), rollback(), "
        "executescript() and a `with` block: it is committed together with the end of the job, when the task returns, "
        "and rolled back when it raises"
    )
