"""The blocking and the asyncio runner of a PostgreSQL database."""

from __future__ import annotations

import asyncio
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any, TypeVar

from ferryman.errors import StoreUnavailable
from ferryman.io.operation import Operation
from ferryman.io.postgres.connections import AsyncSession, aconnect, atransact, drop, is_alive
from ferryman.io.postgres.database import Database
from ferryman.io.postgres.failures import is_held
from ferryman.io.postgres.performing import (
    MOST_AT_ONCE,
    Asked,
    Held,
    Pause,
    Rows,
    Ticket,
    bring_through,
)
from ferryman.io.postgres.requests import Statement

__all__ = ["AsyncPostgresRunner", "PostgresRunner"]

T = TypeVar("T")

_NAP_FIRST, _NAP_MOST = 0.001, 0.1
"""Seconds that a wait takes: the server tells nobody what has become of a job, so whoever waits for one asks, less and
less often."""

_NEW_WAIT = 0.25
"""Seconds after which a wait has nothing to do with the one before it."""


class PostgresRunner:
    """The blocking runner. Thread-safe."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._naps = threading.local()

    def run(self, operation: Operation[T]) -> T:
        asked = Asked([operation])
        if operation.writes:
            answers = self._database.write(asked.statements, patient=operation.patient)
        else:
            answers = self._database.read(asked.statements)
        result: T = asked.hear(answers)[0]
        return result

    def run_all(self, operations: Sequence[Operation[Any]]) -> list[Any]:
        asked = Asked(operations)
        patient = all(operation.patient for operation in operations)
        return asked.hear(self._database.write(asked.statements, patient=patient))

    def wait(self, seconds: float) -> None:
        naps = self._naps.__dict__.setdefault("naps", _Naps())
        time.sleep(naps.next(seconds))
        naps.end()

    def close(self) -> None:
        self._database.close()


class AsyncPostgresRunner:
    """The asyncio runner: what arrives while a round trip is under way goes out with the next one.

    Belongs to an event loop, and may go over to another when that has ended. Its connections are its own.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._writes = _Line(database)
        self._reads = _Line(database)
        self._naps: weakref.WeakKeyDictionary[asyncio.Task[Any], _Naps] = weakref.WeakKeyDictionary()

    async def run(self, operation: Operation[T]) -> T:
        asked = Asked([operation])
        if not asked.statements:
            answers: Sequence[Rows] = ()
        elif operation.writes:
            answers = await self._writes.perform(asked.statements)
        else:
            try:
                answers = await self._reads.perform(asked.statements)
            except StoreUnavailable:
                if self._reads.is_connected:
                    raise
                answers = await self._reads.perform(asked.statements)
        result: T = asked.hear(answers)[0]
        return result

    async def wait(self, seconds: float) -> None:
        task = asyncio.current_task()
        assert task is not None
        naps = self._naps.setdefault(task, _Naps())
        await asyncio.sleep(naps.next(seconds))
        naps.end()

    async def close(self) -> None:
        await self._writes.close()
        await self._reads.close()


class _Line:
    """A connection of an event loop, and those who wait for it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._tickets: deque[Ticket] = deque()
        self._held: list[AsyncSession] = []
        """The connection, if it is open."""
        self._era = 0
        """The database's, when it was opened."""
        self._waiters = Held()
        # Weak: an app keeps a runner for each of its loops as long as the loop lives.
        self._loop: weakref.ref[asyncio.AbstractEventLoop] | None = None
        self._task: asyncio.Task[None] | None = None
        self._pid = 0
        weakref.finalize(self, _drop_held, self._held)

    @property
    def is_connected(self) -> bool:
        return bool(self._held)

    async def perform(self, statements: Sequence[Statement]) -> list[Rows]:
        ticket = await self._send(statements)
        if is_held(ticket.error):
            for pause in self._waiters.pauses():
                await asyncio.sleep(pause)
                ticket = await self._send(statements)
                if not is_held(ticket.error):
                    break
        if ticket.error is not None:
            raise self._database.failure(ticket.error) from ticket.error
        return ticket.answers

    async def _send(self, statements: Sequence[Statement]) -> Ticket:
        loop = asyncio.get_running_loop()
        if self._loop is None or self._loop() is not loop or self._pid != os.getpid():
            self._start_anew(loop)
        future: asyncio.Future[None] = loop.create_future()
        ticket = Ticket(statements, future)
        self._tickets.append(ticket)
        if self._task is None:
            self._task = loop.create_task(self._perform_waiting(), name="ferryman-postgres")
        await future
        return ticket

    def _start_anew(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._pid == os.getpid():
            _drop_held(self._held)
        else:
            # The parent's, which is kept elsewhere.
            self._held.clear()
        self._loop = weakref.ref(loop)
        self._pid = os.getpid()
        self._tickets.clear()
        self._task = None

    async def _perform_waiting(self) -> None:
        group: list[Ticket] = []
        try:
            while self._tickets:
                taken = [self._tickets.popleft() for _ in range(min(len(self._tickets), MOST_AT_ONCE))]
                # What nobody waits for any more, and has not been sent, need not be.
                group = [ticket for ticket in taken if ticket.future and not ticket.future.done()]
                await self._perform(group)
                _tell(group)
        except BaseException:
            # The loop is closing. Nobody knows how far these came, so the connection is of no more use.
            _drop_held(self._held)
            for ticket in (*group, *self._tickets):
                if ticket.future is not None:
                    ticket.future.cancel()
            self._tickets.clear()
            raise
        finally:
            self._task = None

    async def _perform(self, group: Sequence[Ticket]) -> None:
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
                await asyncio.sleep(step.seconds)
                continue
            try:
                connection = await self._connection()
                answer = await atransact(connection, self._database.address, step, self._database.now())
            except Exception as raised:
                if self._held and self._held[0].closed:
                    _drop_held(self._held)
                error = raised

    async def _connection(self) -> AsyncSession:
        if not self._database.is_prepared:
            await asyncio.get_running_loop().run_in_executor(None, self._database.prepare)
        era = self._database.era
        if self._held and self._era == era and is_alive(self._held[0]):
            return self._held[0]
        _drop_held(self._held)
        self._held.append(await aconnect(self._database.address))
        self._era = era
        return self._held[0]

    async def close(self) -> None:
        """Let those who wait come through, then close."""
        if self._task is not None and self._loop is not None and self._loop() is asyncio.get_running_loop():
            await asyncio.wait([self._task])
        _drop_held(self._held)


def _drop_held(held: list[AsyncSession]) -> None:
    while held:
        drop(held.pop())


def _tell(group: Sequence[Ticket]) -> None:
    for ticket in group:
        if ticket.future is not None and not ticket.future.done():
            ticket.future.set_result(None)


class _Naps:
    """How long one thread or coroutine sleeps that waits again and again."""

    __slots__ = ("_ended", "_nap")

    def __init__(self) -> None:
        self._nap = _NAP_FIRST
        self._ended = 0.0

    def next(self, seconds: float) -> float:
        is_new = time.monotonic() - self._ended > _NEW_WAIT
        self._nap = _NAP_FIRST if is_new else min(self._nap * 1.4, _NAP_MOST)
        return max(0.0, min(self._nap, seconds))

    def end(self) -> None:
        self._ended = time.monotonic()
