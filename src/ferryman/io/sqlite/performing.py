"""Operations, performed on a connection whose transaction has begun."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from ferryman.errors import StoreError
from ferryman.io.operation import Operation
from ferryman.io.sqlite.requests import Conflict, Many, Query, Ring

__all__ = ["Effects", "Ticket", "perform_apart", "perform_one", "perform_ticket", "undo"]

T = TypeVar("T")


class Ticket:
    """One operation on its way through a group commit."""

    __slots__ = ("done", "error", "on_done", "operations", "results")

    def __init__(
        self, operations: Sequence[Operation[Any]], on_done: Callable[[], None] | None = None
    ) -> None:
        self.operations = operations
        self.on_done = on_done
        self.results: list[Any] = []
        self.error: BaseException | None = None
        self.done = False


class Effects:
    """What operations of a transaction want done beside their statements."""

    __slots__ = ("bells", "committed", "sync")

    def __init__(self) -> None:
        self.committed = False
        self.bells: list[str] = []
        self.sync = False


def perform_ticket(connection: sqlite3.Connection, ticket: Ticket, now: int, effects: Effects) -> None:
    ticket.results = [perform_one(connection, operation, now, effects) for operation in ticket.operations]


def perform_apart(connection: sqlite3.Connection, ticket: Ticket, now: int, effects: Effects) -> None:
    """Perform a ticket so that its failure undoes only itself, not its neighbours in the group."""
    connection.execute("SAVEPOINT ticket")
    try:
        perform_ticket(connection, ticket, now, effects)
    except (sqlite3.ProgrammingError, sqlite3.InterfaceError, sqlite3.DataError) as error:
        # A value that SQLite cannot take.
        connection.execute("ROLLBACK TO ticket")
        ticket.error = StoreError(f"the database did not take a value: {error}")
        ticket.error.__cause__ = error
    except sqlite3.Error:
        # The disk is full, or worse: that concerns all.
        raise
    except Exception as error:
        connection.execute("ROLLBACK TO ticket")
        ticket.error = error
    connection.execute("RELEASE ticket")


def perform_one(
    connection: sqlite3.Connection | sqlite3.Cursor, operation: Operation[T], now: int, effects: Effects
) -> T:
    requests = operation.body(now)
    answer: Any = None
    failure: BaseException | None = None
    while True:
        try:
            request = requests.send(answer) if failure is None else requests.throw(failure)
        except StopIteration as stop:
            result: T = stop.value
            return result
        failure = None
        try:
            if type(request) is Query:
                answer = connection.execute(request.sql, request.params).fetchall()
            elif type(request) is Many:
                answer = connection.executemany(request.sql, request.rows).rowcount
            elif type(request) is Ring:
                effects.bells += request.bells
                answer = None
            else:
                effects.sync = True
                answer = None
        except sqlite3.IntegrityError as error:
            failure = Conflict(str(error))
            failure.__cause__ = error


def undo(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
