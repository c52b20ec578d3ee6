"""One PostgreSQL database as one process sees it: connections, group commits, and what a fork asks for."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import psycopg

from ferryman.clock import Clock
from ferryman.errors import StoreUnavailable
from ferryman.io.postgres.address import Address
from ferryman.io.postgres.connections import Session, connect, drop, is_alive, transact
from ferryman.io.postgres.failures import is_held, is_read_only, is_schema_missing, lost, mapped
from ferryman.io.postgres.performing import (
    MOST_AT_ONCE,
    Attempt,
    Held,
    Pause,
    Rows,
    Ticket,
    bring_through,
)
from ferryman.io.postgres.requests import Statement

__all__ = ["Database"]


class Database:
    """A connection that writes and one that reads. Thread-safe; after a fork, the child opens its own."""

    def __init__(
        self, address: Address, clock: Clock | None, prepare: Callable[[psycopg.Connection[Any]], None]
    ) -> None:
        """`clock` stands in for the server's time if it is given. `prepare` looks at a new connection once, and makes
        or refuses what it finds."""
        self.address = address
        self._clock = clock
        self._prepare = prepare
        self._open: dict[str, Session] = {}
        self._opened_in: dict[str, int] = {}
        self.era = 0
        """Grows whenever the server is found to take no writes: another may have become the primary, so connections of
        an earlier era are replaced, those that read as well."""
        self._reset()
        _databases.add(self)
        weakref.finalize(self, _close_all, self._open)

    def _reset(self) -> None:
        self._open.clear()
        self._prepared = False
        self._write_lock = threading.Lock()
        self._read_lock = threading.Lock()
        self._tickets: deque[Ticket] = deque()
        self._held = Held()

    def start_anew(self) -> None:
        """After a fork, in the child: what waits is the parent's, as are its connections and threads."""
        self._reset()

    def now(self) -> int | None:
        """What `NOW` stands for."""
        return None if self._clock is None else self._clock.now()

    # -- writing -----------------------------------------------------------------------------------

    def write(self, statements: Sequence[Statement], *, patient: bool = True) -> list[Rows]:
        """Perform statements in one transaction, together with those of other threads that wait. If somebody's open
        transaction holds what they need, they are tried again for some seconds, unless they are not `patient`."""
        if not statements:
            return []
        ticket = self._send(statements)
        if patient and is_held(ticket.error):
            for pause in self._held.pauses():
                time.sleep(pause)
                ticket = self._send(statements)
                if not is_held(ticket.error):
                    break
        if ticket.error is not None:
            raise self.failure(ticket.error) from ticket.error
        return ticket.answers

    def _send(self, statements: Sequence[Statement]) -> Ticket:
        ticket = Ticket(statements)
        self._tickets.append(ticket)
        try:
            with self._write_lock:
                # More than one group may wait before it.
                while not ticket.done:
                    self._perform_waiting(ticket)
        finally:
            if not ticket.done:
                # This thread was interrupted while it waited.
                with contextlib.suppress(ValueError):
                    self._tickets.remove(ticket)
        return ticket

    def _perform_waiting(self, own: Ticket) -> None:
        group = [self._tickets.popleft() for _ in range(min(len(self._tickets), MOST_AT_ONCE))]
        try:
            self._perform(group)
        except BaseException as error:
            # This thread is interrupted, and nobody knows how far the others' statements came.
            drop(self._open.pop("writer", None))
            for ticket in group:
                if ticket is not own and not ticket.answers:
                    ticket.error = ticket.error or StoreUnavailable(
                        f"a thread that wrote to {self.address.shown} for others too was interrupted "
                        f"({type(error).__name__}); trying again may help"
                    )
                ticket.done = True
            raise
        for ticket in group:
            ticket.done = True

    def _perform(self, group: Sequence[Ticket]) -> None:
        steps = bring_through(group)
        answer: Any = None
        error: Exception | None = None
        while True:
            try:
                step = steps.send(answer) if error is None else steps.throw(error)
            except StopIteration:
                return
            answer = error = None
            if isinstance(step, Pause):
                time.sleep(step.seconds)
                continue
            try:
                writer = self._connection("writer")
                answer = transact(writer, self.address, step, self.now())
            except Exception as raised:
                error = raised

    # -- reading -------------------------------------------------------------------------------------

    def read(self, statements: Sequence[Statement]) -> list[Rows]:
        """Perform a reading statement. It is tried once more if the connection is lost under it."""
        if not statements:
            return []
        with self._read_lock:
            try:
                try:
                    return self._read(statements)
                except StoreUnavailable:
                    if "reader" in self._open:  # It stands: that was no loss, so far as is known.
                        raise
                    return self._read(statements)
            except Exception as error:
                raise self.failure(error) from error

    def _read(self, statements: Sequence[Statement]) -> list[Rows]:
        reader = self._connection("reader")
        try:
            return transact(reader, self.address, Attempt(statements), self.now())
        except BaseException as error:
            if reader.closed or not isinstance(error, Exception):
                drop(self._open.pop("reader", None))
            raise

    # -- connecting ------------------------------------------------------------------------------------

    def _connection(self, role: str) -> Session:
        """The connection of this role, opened if there is none or if it has died while it was idle."""
        connection, era = self._open.get(role), self.era
        if connection is None or self._opened_in[role] != era or not is_alive(connection):
            drop(self._open.pop(role, None))
            connection = self._open[role] = connect(self.address)
            self._opened_in[role] = era
        self._prepare_on(connection)
        return connection

    def _prepare_on(self, connection: psycopg.Connection[Any]) -> None:
        if self._prepared:
            return
        try:
            self._prepare(connection)
        except psycopg.Error as error:
            if connection.closed:
                raise lost(self.address, error) from error
            raise self.failure(error) from error
        self._prepared = True

    @property
    def is_prepared(self) -> bool:
        """Whether the tables are known to be there."""
        return self._prepared

    def prepare(self) -> None:
        """See to it that the tables are there, on behalf of an event loop, which has connections of its own."""
        connection = connect(self.address)
        try:
            self._prepare_on(connection)
        finally:
            drop(connection)

    def failure(self, error: Exception) -> Exception:
        """What a caller is told of an error."""
        if is_schema_missing(error):
            # Somebody may have taken the tables away: the next one looks again.
            self._prepared = False
        if is_read_only(error):
            self.era += 1
        return mapped(error, self.address)

    def close(self) -> None:
        """Close the connections of this process."""
        with self._read_lock, self._write_lock:
            _close_all(self._open)
            self._prepared = False


def _close_all(connections: dict[str, Session]) -> None:
    while connections:
        drop(connections.popitem()[1])


# -- forks -------------------------------------------------------------------------------------------

_databases: weakref.WeakSet[Database] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    # This runs after `connections` has taken care of the connections themselves: hooks go in the order of their modules.
    for database in list(_databases):
        database.start_anew()


os.register_at_fork(after_in_child=_after_fork_in_child)
