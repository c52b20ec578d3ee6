"""The runners of the memory store: one lock, one transaction at a time, and whom to wake afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from itertools import count
from typing import Any, TypeVar

from ferryman.clock import Clock
from ferryman.errors import FerrymanError, StoreUnavailable
from ferryman.io.operation import Operation
from ferryman.store.memory.book import Book

__all__ = ["Apply", "AsyncMemoryRunner", "Desk", "MemoryRunner", "MemoryWaker"]

T = TypeVar("T")

_serials = count(1)

_seen: ContextVar[tuple[int, int]] = ContextVar("_seen")
"""Which desk this thread or task was at last, and the version of the book that it saw there. What changed
between its last look and its wait must end the wait at once."""

_forks = 0


def _count_fork() -> None:
    global _forks
    _forks += 1


os.register_at_fork(after_in_child=_count_fork)


class Apply:
    """The one request of this store: do this to the book, now."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[[Book], Any]) -> None:
        self.function = function


class Desk:
    """Where the book lies. Thread-safe, but only of use to the process that made it."""

    def __init__(self, clock: Clock) -> None:
        self.version = 0
        """Grows with each transaction that changed something."""
        self._clock = clock
        self._book = Book()
        self._serial = next(_serials)
        self._forks = _forks
        self._closed = False
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._threads_waiting = 0
        self._sleepers: dict[asyncio.Future[None], asyncio.AbstractEventLoop] = {}
        self._bells: tuple[MemoryWaker, ...] = ()

    def check(self) -> None:
        """Raises StoreUnavailable where the store cannot be used."""
        if self._forks != _forks:
            raise StoreUnavailable(
                "memory:// lives in the process that made it, and this is a fork of that process: jobs enqueued "
                "here would reach nobody; use sqlite:///ferryman.db to share jobs among processes"
            )
        if self._closed:
            raise StoreUnavailable("this memory store was closed, and its jobs are gone; open a new one")

    # -- transactions ----------------------------------------------------------------------------

    def perform(self, operation: Operation[T]) -> T:
        answer: T = self.perform_all([operation])[0]
        return answer

    def perform_all(self, operations: Sequence[Operation[Any]]) -> list[Any]:
        self.check()
        with self._lock:
            try:
                now = self._clock.now()
                answers = [self._drive(operation, now) for operation in operations]
                bells = self._commit()
            except BaseException as error:
                self._roll_back(error)
                raise
        for bell in bells:
            bell.ring()
        return answers

    def _drive(self, operation: Operation[T], now: int) -> T:
        requests = operation.body(now)
        try:
            request = next(requests)
            while True:
                request = requests.send(request.function(self._book))
        except StopIteration as stop:
            answer: T = stop.value
            return answer

    def _commit(self) -> tuple[MemoryWaker, ...]:
        """Answers the bells to be rung once the lock is free."""
        bells = self._bells if self._book.woke else ()
        if self._book.commit():
            self.version += 1
            if self._threads_waiting:
                self._changed.notify_all()
            if self._sleepers:
                self._wake_sleepers()
        _seen.set((self._serial, self.version))
        return bells

    def _roll_back(self, error: BaseException) -> None:
        self._book.roll_back(interrupted=not isinstance(error, FerrymanError))
        _seen.set((self._serial, self.version))

    # -- waiting -----------------------------------------------------------------------------------

    def wait(self, seconds: float) -> None:
        self.check()
        with self._lock:
            if not self._changed_since_last_look():
                self._threads_waiting += 1
                try:
                    self._changed.wait(seconds)
                finally:
                    self._threads_waiting -= 1
            _seen.set((self._serial, self.version))

    async def await_change(self, seconds: float) -> None:
        self.check()
        loop = asyncio.get_running_loop()
        with self._lock:
            if self._changed_since_last_look():
                _seen.set((self._serial, self.version))
                return
            change: asyncio.Future[None] = loop.create_future()
            self._sleepers[change] = loop
        timer = loop.call_later(seconds, _end_wait, [change])
        try:
            await change
        finally:
            timer.cancel()
            with self._lock:
                self._sleepers.pop(change, None)
                _seen.set((self._serial, self.version))

    def _changed_since_last_look(self) -> bool:
        desk, version = _seen.get((0, 0))
        return desk == self._serial and version != self.version

    def _wake_sleepers(self) -> None:
        loops: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
        for change, loop in self._sleepers.items():
            loops.setdefault(loop, []).append(change)
        self._sleepers.clear()
        for loop, changes in loops.items():
            # A loop that was closed has nobody left to wake.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_end_wait, changes)

    # -- bells and the end -------------------------------------------------------------------------

    def hang_up(self, bell: MemoryWaker) -> None:
        self.check()
        with self._lock:
            self._bells = (*self._bells, bell)

    def take_down(self, bell: MemoryWaker) -> None:
        with self._lock:
            self._bells = tuple(other for other in self._bells if other is not bell)

    def close(self) -> None:
        if self._forks != _forks:
            # The lock of a fork may be held by a thread that is not here.
            return
        with self._lock:
            self._closed = True
            self._book = Book()
            self._bells = ()
            self.version += 1
            self._changed.notify_all()
            self._wake_sleepers()


def _end_wait(changes: list[asyncio.Future[None]]) -> None:
    for change in changes:
        if not change.done():
            change.set_result(None)


class MemoryRunner:
    """See `ferryman.io.operation.Runner`. Thread-safe."""

    __slots__ = ("_desk",)

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def run(self, operation: Operation[T]) -> T:
        return self._desk.perform(operation)

    def run_all(self, operations: Sequence[Operation[Any]]) -> list[Any]:
        return self._desk.perform_all(operations)

    def wait(self, seconds: float) -> None:
        self._desk.wait(seconds)

    def close(self) -> None:
        """There is nothing to let go of: the book is the store's."""


class AsyncMemoryRunner:
    """See `ferryman.io.operation.AsyncRunner`. An operation takes some µs and so runs in the loop itself."""

    __slots__ = ("_desk",)

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def run(self, operation: Operation[T]) -> T:
        return self._desk.perform(operation)

    async def wait(self, seconds: float) -> None:
        await self._desk.await_change(seconds)

    async def close(self) -> None:
        """There is nothing to let go of."""


class MemoryWaker:
    """See `ferryman.store.port.Waker`. The store rings it itself, so it needs no address."""

    address: str | None = None
    poll: float = 1.0

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._version = desk.version
        self._lock = threading.Lock()
        self._rung = False
        self._closed = False
        self._ear, self._hammer = os.pipe()
        os.set_blocking(self._ear, False)
        os.set_blocking(self._hammer, False)
        desk.hang_up(self)

    def fileno(self) -> int:
        return self._ear

    def ring(self) -> None:
        """Make the descriptor readable, once until it is drained. Thread-safe."""
        if self._rung:
            return
        with self._lock:
            if not self._rung and not self._closed:
                self._rung = True
                os.write(self._hammer, b"!")

    def drain(self) -> None:
        with self._lock:
            if self._rung and not self._closed:
                os.read(self._ear, 1)
                self._rung = False

    def changed(self) -> bool:
        self._desk.check()
        version = self._desk.version
        if version == self._version:
            return False
        self._version = version
        return True

    def close(self) -> None:
        if self._closed:
            return
        self._desk.take_down(self)
        with self._lock:
            self._closed = True
            os.close(self._ear)
            os.close(self._hammer)
