"""Connections lent to tasks that want a transaction on the store's own database."""

from __future__ import annotations

import asyncio
import contextlib
import os
import weakref
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg

from ferryman.errors import ConfigError, StoreReadOnly
from ferryman.io.postgres.address import Address
from ferryman.io.postgres.connections import drop, is_alive, is_at_rest
from ferryman.io.postgres.failures import unreachable

__all__ = ["Lender"]

_IDLE = 8
"""Connections kept for the next borrower, at most: of a process, and of each event loop."""

_AS_NEW = (
    "CLOSE ALL; SET SESSION AUTHORIZATION DEFAULT; RESET ALL; DEALLOCATE ALL; UNLISTEN *;"
    " SELECT pg_advisory_unlock_all(); DISCARD TEMP; DISCARD SEQUENCES"
)
"""What the last borrower has set for the session goes: its role and search_path, the tenant that row level security looks at,
advisory locks. It is DISCARD ALL without the plans, which nobody can see and which cost more to make anew than a settle."""

_READ_ONLY = (psycopg.errors.ReadOnlySqlTransaction, StoreReadOnly)


class Lent(psycopg.Connection[Any]):
    """As psycopg makes them, and it says of itself what `sqlite3.Connection` does, too."""

    @property
    def in_transaction(self) -> bool:
        return self.pgconn.transaction_status != psycopg.pq.TransactionStatus.IDLE


class AsyncLent(psycopg.AsyncConnection[Any]):
    """`Lent`, for event loops."""

    @property
    def in_transaction(self) -> bool:
        return self.pgconn.transaction_status != psycopg.pq.TransactionStatus.IDLE


class Lender:
    """Plain connections, as psycopg makes them. Thread-safe; a forked child opens its own."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._idle: dict[int, list[psycopg.Connection[Any]]] = {}
        """By process: the parent's are not the child's to close."""
        self._idle_of_loops: weakref.WeakKeyDictionary[
            asyncio.AbstractEventLoop, list[psycopg.AsyncConnection[Any]]
        ] = weakref.WeakKeyDictionary()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[psycopg.Connection[Any]]:
        """A connection in a transaction, which is committed at the end and rolled back after an exception."""
        idle = self._idle.setdefault(os.getpid(), [])
        connection = self._taken(idle) or self._connect()
        try:
            with connection.transaction(), _no_silent_end():
                yield connection
        except _READ_ONLY:
            _forget(idle, connection)
            raise
        finally:
            with _giving_back(idle, connection) as fresh:
                if fresh is not None:
                    fresh.autocommit = True
                    fresh.execute(_AS_NEW)

    @contextlib.asynccontextmanager
    async def atransaction(self) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        """`transaction`, for the running event loop."""
        idle = self._idle_of_loops.setdefault(asyncio.get_running_loop(), [])
        connection = self._taken(idle) or await self._aconnect()
        try:
            async with connection.transaction():
                with _no_silent_end():
                    yield connection
        except _READ_ONLY:
            _forget(idle, connection)
            raise
        finally:
            with _giving_back(idle, connection) as fresh:
                if fresh is not None:
                    await fresh.set_autocommit(True)
                    await fresh.execute(_AS_NEW)

    def close(self) -> None:
        """Close what nobody has borrowed."""
        idle: list[list[Any]] = [self._idle.get(os.getpid(), []), *self._idle_of_loops.values()]
        for connections in idle:
            while connections:
                drop(connections.pop())

    def _taken(self, idle: list[Any]) -> Any:
        while idle:
            try:
                connection = idle.pop()
            except IndexError:
                break  # Another thread was quicker.
            if is_alive(connection):
                return connection
            drop(connection)
        return None

    def _connect(self) -> psycopg.Connection[Any]:
        try:
            return Lent.connect(self._address.conninfo, autocommit=True, prepare_threshold=None)
        except psycopg.Error as error:
            raise unreachable(self._address, error) from error

    async def _aconnect(self) -> psycopg.AsyncConnection[Any]:
        try:
            return await AsyncLent.connect(self._address.conninfo, autocommit=True, prepare_threshold=None)
        except psycopg.Error as error:
            raise unreachable(self._address, error) from error


@contextlib.contextmanager
def _no_silent_end() -> Iterator[None]:
    """psycopg takes this exception in: nobody would see that nothing was committed."""
    try:
        yield
    except psycopg.Rollback as error:
        raise ConfigError(
            "psycopg.Rollback is not for the connection of a Transaction; raise another exception, such as Fail, to undo "
            "what the task wrote"
        ) from error


def _forget(idle: list[Any], connection: Any) -> None:
    """Their server takes no writes: another may have become the primary, and new connections find it."""
    drop(connection)
    with contextlib.suppress(IndexError):
        while True:
            drop(idle.pop())


@contextlib.contextmanager
def _giving_back(idle: list[Any], connection: Any) -> Iterator[Any]:
    """Answers what will be another borrower's, once its session is made as new; if that fails, it will not. None if it is
    not kept at all."""
    if not is_at_rest(connection) or len(idle) >= _IDLE:
        drop(connection)
        yield None
        return
    fresh = _renewed(connection)
    try:
        with contextlib.suppress(psycopg.Error):
            yield fresh
            idle.append(fresh)
            return
    except BaseException:
        drop(fresh)
        raise
    drop(fresh)


def _renewed(connection: Any) -> Any:
    """Another object for the same session. It knows nothing of what the borrower has set on this side: type adapters, kinds of
    rows, who hears notices. The one that he may still have in hand is closed."""
    fresh = type(connection)(connection.pgconn)
    fresh.prepare_threshold = None
    connection.pgconn = psycopg.pq.PGconn()
    return fresh
