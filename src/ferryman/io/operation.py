"""Operations ask, runners do.

An *operation* is one transaction: a generator that yields requests (a statement, a script, a bell to
ring) and returns its result, without touching a socket or a file itself. A *procedure* is one floor
up: a generator that yields operations and waits. Both are written once; a blocking runner and an
asyncio runner perform them. The idea is psycopg 3's (`generators.py`, `waiting.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Sequence
from typing import Any, Generic, Protocol, TypeVar

__all__ = [
    "Aside",
    "AsyncRunner",
    "GuestRunner",
    "Inside",
    "Operation",
    "Procedure",
    "Requests",
    "Runner",
    "Wait",
    "aperform",
    "inside",
    "perform",
]

T = TypeVar("T")

Requests = Generator[Any, Any, T]
"""The body of an operation: yields requests of its store, is sent their answers, returns its result."""


class Operation(Generic[T]):
    """One transaction that has not been performed yet. It can be performed more than once."""

    __slots__ = ("body", "durable", "name", "patient", "writes")

    def __init__(
        self,
        name: str,
        body: Callable[[int], Requests[T]],
        *,
        writes: bool = True,
        durable: bool = True,
        patient: bool = True,
    ) -> None:
        self.name = name
        self.body = body
        """Starts the requests, given the store's time (ms) of the transaction."""
        self.writes = writes
        self.durable = durable
        """False: by itself it need not survive a loss of power, only the death of every process."""
        self.patient = patient
        """False: rather than wait for what somebody's open transaction holds, it raises StoreBusy."""

    def __repr__(self) -> str:
        return f"Operation({self.name!r})"


class Wait:
    """A procedure's wish to sleep until the store changed, or `seconds` have passed."""

    __slots__ = ("seconds",)

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds


class Aside(Generic[T]):
    """A procedure's wish for something that blocks and is not the store's, such as reading a file."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[[], T]) -> None:
        self.call = call


class Inside(Generic[T]):
    """A procedure's wish to have an operation performed by a guest, not by the runner of the store."""

    __slots__ = ("guest", "operation")

    def __init__(self, guest: GuestRunner, operation: Operation[T]) -> None:
        self.guest = guest
        self.operation = operation


Procedure = Generator[Any, Any, T]
"""Yields `Operation`, `Wait`, `Aside` and `Inside`; is sent the results of all but waits; returns its own."""


class Runner(Protocol):
    """Performs operations and waits in the calling thread. Thread-safe; survives a fork."""

    def run(self, operation: Operation[T]) -> T:
        """Perform one transaction: all of it or nothing. Raises what the operation raises, or a StoreError."""
        ...

    def run_all(self, operations: Sequence[Operation[Any]]) -> list[Any]:
        """Perform several operations in one transaction, in order. One that fails undoes them all."""
        ...

    def wait(self, seconds: float) -> None:
        """Sleep until the store may have changed, or `seconds` have passed."""
        ...

    def close(self) -> None:
        """Let go of connections. A later `run` opens them again."""
        ...


class AsyncRunner(Protocol):
    """The asyncio twin of `Runner`; belongs to the event loop that first used it."""

    async def run(self, operation: Operation[T]) -> T: ...

    async def wait(self, seconds: float) -> None: ...

    async def close(self) -> None: ...


class GuestRunner(Protocol):
    """Performs operations on a connection of the user's, as a part of the transaction that is open there.

    It never commits or rolls back what is the user's: an operation that fails undoes only itself and leaves the
    transaction as it was. On a connection that commits each statement by itself, an operation is one statement.
    """

    def run(self, operation: Operation[T]) -> T:
        """Perform an operation in the calling thread. Raises ConfigError if the connection must be awaited."""
        ...

    async def arun(self, operation: Operation[T]) -> T:
        """`run`, awaited. A connection that blocks does so here, too."""
        ...


def perform(runner: Runner, procedure: Procedure[T]) -> T:
    """Carry out a procedure in this thread."""
    answer: Any = None
    error: BaseException | None = None
    while True:
        try:
            request = procedure.throw(error) if error is not None else procedure.send(answer)
        except StopIteration as stop:
            result: T = stop.value
            return result
        answer = error = None
        try:
            match request:
                case Operation():
                    answer = runner.run(request)
                case Aside():
                    answer = request.call()
                case Inside():
                    answer = request.guest.run(request.operation)
                case _:
                    runner.wait(request.seconds)
        except BaseException as raised:
            error = raised


async def aperform(runner: AsyncRunner, procedure: Procedure[T]) -> T:
    """Carry out a procedure in this event loop."""
    answer: Any = None
    error: BaseException | None = None
    while True:
        try:
            request = procedure.throw(error) if error is not None else procedure.send(answer)
        except StopIteration as stop:
            result: T = stop.value
            return result
        answer = error = None
        try:
            match request:
                case Operation():
                    answer = await runner.run(request)
                case Aside():
                    answer = await asyncio.to_thread(request.call)
                case Inside():
                    answer = await request.guest.arun(request.operation)
                case _:
                    await runner.wait(request.seconds)
        except (Exception, asyncio.CancelledError) as raised:
            error = raised


def inside(guest: GuestRunner, procedure: Procedure[T]) -> Procedure[T]:
    """The same procedure, with all its operations performed by a guest."""
    answer: Any = None
    error: BaseException | None = None
    while True:
        try:
            request = procedure.throw(error) if error is not None else procedure.send(answer)
        except StopIteration as stop:
            result: T = stop.value
            return result
        answer = error = None
        try:
            answer = yield Inside(guest, request) if isinstance(request, Operation) else request
        except BaseException as raised:
            error = raised
