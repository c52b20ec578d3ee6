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
    "AsyncRunner",
    "Operation",
    "Procedure",
    "Requests",
    "Runner",
    "Wait",
    "aperform",
    "perform",
]

T = TypeVar("T")

Requests = Generator[Any, Any, T]
"""The body of an operation: yields requests of its store, is sent their answers, returns its result."""


class Operation(Generic[T]):
    """One transaction that has not been performed yet. It can be performed more than once."""

    __slots__ = ("body", "durable", "name", "writes")

    def __init__(
        self,
        name: str,
        body: Callable[[int], Requests[T]],
        *,
        writes: bool = True,
        durable: bool = True,
    ) -> None:
        self.name = name
        self.body = body
        """Starts the requests, given the store's time (ms) of the transaction."""
        self.writes = writes
        self.durable = durable
        """False: by itself it need not survive a loss of power, only the death of every process."""

    def __repr__(self) -> str:
        return f"Operation({self.name!r})"


class Wait:
    """A procedure's wish to sleep until the store changed, or `seconds` have passed."""

    __slots__ = ("seconds",)

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds


Procedure = Generator[Any, Any, T]
"""Yields `Operation` and `Wait`; is sent the operations' results; returns its own."""


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
            if isinstance(request, Operation):
                answer = runner.run(request)
            else:
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
            if isinstance(request, Operation):
                answer = await runner.run(request)
            else:
                await runner.wait(request.seconds)
        except (Exception, asyncio.CancelledError) as raised:
            error = raised
