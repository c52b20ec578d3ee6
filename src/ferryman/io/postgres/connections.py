"""Connections: opening them, performing a transaction on one, and keeping them out of forked children."""

from __future__ import annotations

import contextlib
import os
import select
import weakref
from typing import Any

import psycopg
from psycopg.pq import PipelineStatus, TransactionStatus

from ferryman.io.postgres.address import Address
from ferryman.io.postgres.failures import lost, unreachable
from ferryman.io.postgres.performing import Attempt, Rows
from ferryman.io.postgres.talk import ISOLATION, Talk

__all__ = [
    "AsyncSession",
    "Session",
    "aconnect",
    "atransact",
    "connect",
    "drop",
    "is_alive",
    "is_at_rest",
    "transact",
]


class Session(psycopg.Connection[Any]):
    """A connection, and the talk on it."""

    talk: Talk


class AsyncSession(psycopg.AsyncConnection[Any]):
    """`Session`, awaited."""

    talk: Talk


AnyConnection = psycopg.Connection[Any] | psycopg.AsyncConnection[Any]


def connect(address: Address, conninfo: str | None = None) -> Session:
    """Open a connection, each statement of which is a transaction of its own. Raises StoreError."""
    try:
        connection = Session.connect(conninfo or address.conninfo, **_OPTIONS)
        is_strict = _begin_talk(connection, connection.execute(_WHO_SERVES).fetchone())
        if is_strict:
            connection.set_isolation_level(ISOLATION)
    except psycopg.Error as error:
        raise unreachable(address, error) from error
    return connection


async def aconnect(address: Address) -> AsyncSession:
    """`connect`, awaited."""
    try:
        connection = await AsyncSession.connect(address.conninfo, **_OPTIONS)
        is_strict = _begin_talk(connection, await (await connection.execute(_WHO_SERVES)).fetchone())
        if is_strict:
            await connection.set_isolation_level(ISOLATION)
    except psycopg.Error as error:
        raise unreachable(address, error) from error
    return connection


_OPTIONS: dict[str, Any] = {"autocommit": True, "prepare_threshold": None, "client_encoding": "utf8"}

_WHO_SERVES = "SELECT pg_backend_pid(), current_setting('default_transaction_isolation') <> 'read committed'"


def _begin_talk(connection: Session | AsyncSession, answer: tuple[int, bool] | None) -> bool:
    """Answers whether transactions have to ask for `ISOLATION`."""
    assert answer is not None
    served_by, is_strict = answer
    _connections.add(connection)
    # Prepared statements belong to a session, which behind a pooler is another one each time; and a pooler tells of a
    # process of its own making.
    prepares = served_by == connection.pgconn.backend_pid
    connection.talk = Talk(connection, prepares=prepares, strict=is_strict)
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
    try:
        return connection.wait(connection.talk.perform(attempt, now))
    except Exception as error:
        with contextlib.suppress(psycopg.Error):
            connection.rollback()
        if not is_at_rest(connection):
            drop(connection)
            raise lost(address, error) from error
        raise


async def atransact(
    connection: AsyncSession, address: Address, attempt: Attempt, now: int | None
) -> list[Rows]:
    """`transact`, awaited."""
    try:
        return await connection.wait(connection.talk.perform(attempt, now))
    except Exception as error:
        with contextlib.suppress(psycopg.Error):
            await connection.rollback()
        if not is_at_rest(connection):
            drop(connection)
            raise lost(address, error) from error
        raise


def is_at_rest(connection: AnyConnection) -> bool:
    """Whether nothing is left of what was performed, such as a pipeline that has not come to its end."""
    server = connection.pgconn
    return (
        server.transaction_status == TransactionStatus.IDLE and server.pipeline_status == PipelineStatus.OFF
    )


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
