"""Connections: opening them, performing a transaction on one, and keeping them out of forked children."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import weakref
from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg.pq import PipelineStatus, TransactionStatus

from ferryman.io.postgres.address import Address
from ferryman.io.postgres.arrays import ListDumper
from ferryman.io.postgres.failures import lost, unreachable
from ferryman.io.postgres.performing import Attempt, Rows
from ferryman.io.postgres.requests import filled

__all__ = ["AsyncSession", "Session", "aconnect", "atransact", "connect", "drop", "is_alive", "transact"]

_PATIENCE_MS = 30
"""For how long a transaction of several operations waits for a lock; each by itself waits as long as it takes."""

_ISOLATION = psycopg.IsolationLevel.READ_COMMITTED
"""Who has waited for a lock must see what was done under it. Where the database's default is another level, it is set on
the connection; and each transaction says it, since what a session is told is lost behind a pooler."""


class Session(psycopg.Connection[Any]):
    """A connection with a cursor that is used time and again: to make one takes as long as to use it."""

    single: psycopg.Cursor[Any]


class AsyncSession(psycopg.AsyncConnection[Any]):
    """`Session`, awaited."""

    single: psycopg.AsyncCursor[Any]


AnyConnection = psycopg.Connection[Any] | psycopg.AsyncConnection[Any]


def connect(address: Address, conninfo: str | None = None) -> Session:
    """Open a connection, each statement of which is a transaction of its own. Raises StoreError."""
    try:
        connection = Session.connect(conninfo or address.conninfo, autocommit=True, prepare_threshold=None)
        if _set_up(connection, connection.execute(_WHO_SERVES).fetchone()):
            connection.set_isolation_level(_ISOLATION)
        connection.single = connection.cursor(binary=True)
    except psycopg.Error as error:
        raise unreachable(address, error) from error
    return connection


async def aconnect(address: Address) -> AsyncSession:
    """`connect`, awaited."""
    try:
        connection = await AsyncSession.connect(address.conninfo, autocommit=True, prepare_threshold=None)
        if _set_up(connection, await (await connection.execute(_WHO_SERVES)).fetchone()):
            await connection.set_isolation_level(_ISOLATION)
        connection.single = connection.cursor(binary=True)
    except psycopg.Error as error:
        raise unreachable(address, error) from error
    return connection


_WHO_SERVES = "SELECT pg_backend_pid(), current_setting('default_transaction_isolation') <> 'read committed'"


def _set_up(connection: AnyConnection, answer: tuple[int, bool] | None) -> bool:
    """Answers whether its transactions have to ask for READ COMMITTED."""
    assert answer is not None
    served_by, is_strict = answer
    connection.adapters.register_dumper(list, ListDumper)
    if served_by == connection.pgconn.backend_pid:
        # Prepared statements belong to a session, which behind a pooler is another one each time; and a pooler tells of
        # a process of its own making. Only what asks for it is prepared.
        connection.prepare_threshold = sys.maxsize
    _connections.add(connection)
    return is_strict


def is_alive(connection: AnyConnection) -> bool:
    """Whether an idle connection still stands, as far as this side knows. Costs a µs: nothing is sent."""
    if connection.closed:
        return False
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    # What a server says unasked is its last word, or the end; seldom a changed setting, which is not worth the reading.
    return not poll.poll(0)


def drop(connection: AnyConnection | None) -> None:
    """Close a connection at once, whatever it is doing. Needs no event loop."""
    if connection is not None:
        connection.pgconn.finish()


# -- transactions ------------------------------------------------------------------------------------


def transact(connection: Session, address: Address, attempt: Attempt, now: int | None) -> list[Rows]:
    """Perform statements as one transaction, in one round trip.

    A StoreError says that the connection was lost; any other exception is about the statements, and all is undone.
    """
    statements = attempt.statements
    try:
        if len(statements) == 1 and connection.isolation_level is None:
            cursor = connection.single
            cursor.execute(statements[0].text, filled(statements[0], now, gate=attempt.gate), prepare=True)
            return [cursor.fetchall() if _has_rows(cursor) else []]
        cursors = [connection.cursor(binary=True) for _ in statements]
        failure: Exception | None = None
        with contextlib.suppress(psycopg.errors.PipelineAborted), connection.pipeline():
            try:
                for text in _beginning(attempt):
                    connection.execute(text)
                for each, cursor in zip(statements, cursors, strict=True):
                    cursor.execute(each.text, filled(each, now, gate=attempt.gate), prepare=True)
                connection.execute("COMMIT")
            except psycopg.Error as error:
                # A pipeline that ends with it would complain of what it finds after it.
                failure = error
        if failure is not None:
            raise failure
        return [cursor.fetchall() if _has_rows(cursor) else [] for cursor in cursors]
    except Exception as error:
        with contextlib.suppress(psycopg.Error):
            connection.rollback()
        if not _is_at_rest(connection):
            drop(connection)
            raise lost(address, error) from error
        raise


async def atransact(
    connection: AsyncSession, address: Address, attempt: Attempt, now: int | None
) -> list[Rows]:
    """`transact`, awaited."""
    statements = attempt.statements
    try:
        if len(statements) == 1 and connection.isolation_level is None:
            cursor = connection.single
            await cursor.execute(
                statements[0].text, filled(statements[0], now, gate=attempt.gate), prepare=True
            )
            return [await cursor.fetchall() if _has_rows(cursor) else []]
        cursors = [connection.cursor(binary=True) for _ in statements]
        failure: Exception | None = None
        with contextlib.suppress(psycopg.errors.PipelineAborted):
            async with connection.pipeline():
                try:
                    for text in _beginning(attempt):
                        await connection.execute(text)
                    for each, cursor in zip(statements, cursors, strict=True):
                        await cursor.execute(each.text, filled(each, now, gate=attempt.gate), prepare=True)
                    await connection.execute("COMMIT")
                except psycopg.Error as error:
                    failure = error
        if failure is not None:
            raise failure
        return [await cursor.fetchall() if _has_rows(cursor) else [] for cursor in cursors]
    except Exception as error:
        with contextlib.suppress(psycopg.Error):
            await connection.rollback()
        if not _is_at_rest(connection):
            drop(connection)
            raise lost(address, error) from error
        raise


def _has_rows(cursor: psycopg.Cursor[Any] | psycopg.AsyncCursor[Any]) -> bool:
    # `description` tells, too, but describes them all.
    return cursor.pgresult is not None and cursor.pgresult.nfields > 0


def _is_at_rest(connection: AnyConnection) -> bool:
    """Whether nothing is left of what was performed, such as a pipeline that has not come to its end."""
    server = connection.pgconn
    return (
        server.transaction_status == TransactionStatus.IDLE and server.pipeline_status == PipelineStatus.OFF
    )


def _beginning(attempt: Attempt) -> Sequence[str]:
    begin = f"BEGIN ISOLATION LEVEL {_ISOLATION.name.replace('_', ' ')}"
    return (begin, f"SET LOCAL lock_timeout = {_PATIENCE_MS}") if attempt.in_company else (begin,)


# -- forks ---------------------------------------------------------------------------------------------

_connections: weakref.WeakSet[AnyConnection] = weakref.WeakSet()
_inherited: list[AnyConnection] = []
"""The parent's: kept for ever, since their end would be told to the server, or warned of."""


def _after_fork_in_child() -> None:
    for connection in list(_connections):
        if not connection.closed:
            _inherited.append(connection)
            # Only this process's hold on it: to the server, the parent's session goes on.
            with contextlib.suppress(OSError):
                os.close(connection.fileno())
    _connections.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
