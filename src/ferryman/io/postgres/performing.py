"""Operations, turned into statements and back; and how a group of them is brought through, whatever the colour.

Nothing here touches a connection: `bring_through` asks for attempts and pauses, and the runners make them.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Generator, Iterator, Sequence
from typing import Any, NamedTuple

import psycopg

from ferryman.errors import StoreError
from ferryman.io.operation import Operation
from ferryman.io.postgres.failures import NEEDS_GATE, PASSING
from ferryman.io.postgres.requests import Joint, Statement

__all__ = [
    "MOST_AT_ONCE",
    "Asked",
    "Attempt",
    "Held",
    "Pause",
    "Rows",
    "Ticket",
    "bring_through",
]

Rows = list[tuple[Any, ...]]

MOST_AT_ONCE = 256
"""Operations committed together at most, so that no one waits for a whole crowd."""

_PAUSES = (0.001, 0.004, 0.016, 0.05, 0.1, 0.2)
"""Seconds before the next try of a transaction that others were in the way of, at most."""


_PATIENCE = 5.0
"""Seconds for which something is asked for again that somebody's open transaction holds."""

_HELD_FIRST, _HELD_MOST = 0.01, 0.2

_HELD_EACH = 0.1
"""Seconds more for each other one who waits so: a try takes the line for a tenth of that."""


class Asked:
    """Operations that have made their one request each, and wait for the answers."""

    __slots__ = ("_bodies", "_operations", "_results", "statements")

    def __init__(self, operations: Sequence[Operation[Any]]) -> None:
        """Raises what one of them raises; then nothing has been sent of any."""
        self._operations = operations
        self._results: list[Any] = [None] * len(operations)
        self._bodies: list[tuple[int, Generator[Any, Any, Any]]] = []
        self.statements: list[Statement] = []
        for place, operation in enumerate(operations):
            # The time is the server's: see `NOW`.
            body = operation.body(0)
            try:
                self.statements.append(body.send(None))
            except StopIteration as stop:
                # It had nothing to ask, such as an enqueue of no jobs.
                self._results[place] = stop.value
            else:
                self._bodies.append((place, body))

    def hear(self, answers: Sequence[Rows]) -> list[Any]:
        """The results of the operations, given the rows that each statement was answered with."""
        for (place, body), rows in zip(self._bodies, answers, strict=True):
            try:
                body.send(rows)
            except StopIteration as stop:
                self._results[place] = stop.value
            else:
                body.close()
                raise RuntimeError(f"{self._operations[place]} made a second request; here it has one only")
        return self._results


class Ticket:
    """Statements that belong together, on their way through a group commit."""

    __slots__ = ("answers", "done", "error", "future", "statements")

    def __init__(self, statements: Sequence[Statement], future: asyncio.Future[None] | None = None) -> None:
        self.statements = statements
        self.future = future
        """For those who wait in an event loop."""
        self.answers: list[Rows] = []
        self.error: Exception | None = None
        self.done = False


class Attempt(NamedTuple):
    """Perform these as one transaction; answered with the rows of each. A StoreError says that there is no
    connection; any other exception is about the statements, which have been undone."""

    statements: Sequence[Statement]
    gate: bool = False
    in_company: bool = False
    """They are of several tickets: rather than wait for others' locks while it holds its own, such as those of one ticket
    that must wait for a user's long transaction, it shall fail, since each can be performed by itself."""


class Pause(NamedTuple):
    """Let others go first; answered with nothing."""

    seconds: float


Steps = Generator[Attempt | Pause, Any, None]


def bring_through(group: Sequence[Ticket]) -> Steps:
    """Perform a group as one transaction; if it fails, each ticket by itself, so that each gets its own answer."""
    if len(group) > 1:
        bundles = _bundled(group)
        try:
            answers = yield Attempt(
                [each for bundle in bundles for each in bundle.statements], in_company=True
            )
        except StoreError as error:
            for ticket in group:
                ticket.error = error
            return
        except Exception:  # noqa: S110 - who it belongs to will be seen
            pass
        else:
            for bundle in bundles:
                here, answers = answers[: len(bundle.statements)], answers[len(bundle.statements) :]
                bundle.deliver(here)
            return
    for ticket in group:
        try:
            ticket.answers = yield from _alone(ticket.statements)
        except Exception as error:
            ticket.error = error


class Held:
    """Those of a line of statements who wait for what somebody's open transaction holds."""

    def __init__(self) -> None:
        self._waiting: set[object] = set()

    def pauses(self) -> Iterator[float]:
        """Seconds to wait, again and again, before a ticket is sent once more that met somebody's open transaction. Whoever
        waits is not in the line meanwhile: others go ahead, however many wait so."""
        me = object()
        self._waiting.add(me)
        try:
            give_up, most = time.monotonic() + _PATIENCE, _HELD_FIRST
            while (left := give_up - time.monotonic()) > 0:
                longest = max(most, _HELD_EACH * (len(self._waiting) - 1))
                pause = random.uniform(longest / 2, longest)  # noqa: S311
                yield min(pause, left)
                if pause >= left:
                    return
                most = min(most * 1.5, _HELD_MOST)
        finally:
            self._waiting.discard(me)


class _Bundle:
    """A ticket on its way, or several as one statement."""

    __slots__ = ("_joint", "_tickets", "statements")

    def __init__(
        self, tickets: Sequence[Ticket], joint: Joint | None = None, one: Statement | None = None
    ) -> None:
        self._tickets = tickets
        self._joint = joint
        self.statements = tickets[0].statements if one is None else [one]

    def deliver(self, answers: list[Rows]) -> None:
        if self._joint is None:
            self._tickets[0].answers = answers
            return
        parts = self._joint.part([ticket.statements[0] for ticket in self._tickets], answers[0])
        for ticket, rows in zip(self._tickets, parts, strict=True):
            ticket.answers = [rows]


def _bundled(group: Sequence[Ticket]) -> list[_Bundle]:
    """Tickets as they go out: those that can be made one statement together, where the first of them stood."""
    alike: dict[Joint | int, list[Ticket]] = {}
    for place, ticket in enumerate(group):
        joint = ticket.statements[0].joint if len(ticket.statements) == 1 else None
        alike.setdefault(place if joint is None else joint, []).append(ticket)
    bundles: list[_Bundle] = []
    for key, tickets in alike.items():
        one = None
        if not isinstance(key, int) and len(tickets) > 1:
            one = key.join([ticket.statements[0] for ticket in tickets])
        if one is None or isinstance(key, int):
            bundles += [_Bundle([ticket]) for ticket in tickets]
        else:
            bundles.append(_Bundle(tickets, key, one))
    return bundles


def _alone(statements: Sequence[Statement]) -> Generator[Attempt | Pause, Any, list[Rows]]:
    """Perform the statements of one ticket, again if others were in the way."""
    gate = False
    tries = iter(_PAUSES)
    while True:
        try:
            answers: list[Rows] = yield Attempt(statements, gate)
        except psycopg.Error as error:
            pause = next(tries, None)
            if error.sqlstate not in PASSING or pause is None:
                raise
            if error.sqlstate == NEEDS_GATE:
                gate = True
                continue
        else:
            return answers
        # Not all of them at the same moment once more.
        yield Pause(random.uniform(pause / 2, pause))  # noqa: S311
