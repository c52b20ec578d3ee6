"""The blocking and the asyncio runner of a SQLite database."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
import weakref
from collections.abc import Sequence
from typing import Any, TypeVar

from ferryman.io.operation import Operation
from ferryman.io.sqlite.database import Database
from ferryman.io.sqlite.performing import Ticket

__all__ = ["AsyncSqliteRunner", "SqliteRunner"]

T = TypeVar("T")


class SqliteRunner:
    """The blocking runner. Thread-safe."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def run(self, operation: Operation[T]) -> T:
        if operation.writes:
            result: T = self._database.write([operation])[0]
            return result
        return self._database.read(operation)

    def run_all(self, operations: Sequence[Operation[Any]]) -> list[Any]:
        return self._database.write(operations)

    def wait(self, seconds: float) -> None:
        """Sleeps grow from a half to 20 ms, so that short waits end soon and long ones cost little."""
        version = self._database.version()
        end = time.monotonic() + seconds
        nap = 0.0005
        while (rest := end - time.monotonic()) > 0:
            time.sleep(min(nap, rest))
            if self._database.version() != version:
                return
            nap = min(nap * 1.5, 0.02)

    def close(self) -> None:
        self._database.close()


class AsyncSqliteRunner:
    """The asyncio runner: one thread commits for all coroutines, as many operations at once as are waiting.

    Reads are done in the loop's own thread: they wait for nobody, and take less time than a change of
    thread would.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._wake = threading.Semaphore(0)
        self._thread: threading.Thread | None = None
        self._pid = 0
        self.closed = False

    async def run(self, operation: Operation[T]) -> T:
        if not operation.writes:
            return self._database.read(operation)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        ticket = Ticket([operation], lambda: _resolve_soon(loop, future))
        self._ensure_thread()
        self._database.submit(ticket)
        self._wake.release()
        # The transaction cannot be called back: a cancelled caller must not make it half.
        await asyncio.shield(future)
        if ticket.error is not None:
            raise ticket.error
        result: T = ticket.results[0]
        return result

    async def wait(self, seconds: float) -> None:
        version = self._database.version()
        end = time.monotonic() + seconds
        nap = 0.0005
        while (rest := end - time.monotonic()) > 0:
            await asyncio.sleep(min(nap, rest))
            if self._database.version() != version:
                return
            nap = min(nap * 1.5, 0.02)

    async def close(self) -> None:
        self.closed = True
        self._wake.release()

    def _ensure_thread(self) -> None:
        if self._thread is None or not self._thread.is_alive() or self._pid != os.getpid():
            self._pid = os.getpid()
            self.closed = False
            self._wake = wake = threading.Semaphore(0)
            # The thread ends with its runner, which it must not keep alive.
            weakref.finalize(self, wake.release)
            self._thread = threading.Thread(
                target=_commit_when_woken,
                args=(weakref.ref(self), self._database, self._wake),
                name="ferryman-writer",
                daemon=True,
            )
            self._thread.start()


def _commit_when_woken(
    owner: weakref.ref[AsyncSqliteRunner], database: Database, wake: threading.Semaphore
) -> None:
    while True:
        wake.acquire()
        while wake.acquire(blocking=False):
            pass
        database.drain()
        runner = owner()
        if runner is None or runner.closed:
            return
        del runner


def _resolve_soon(loop: asyncio.AbstractEventLoop, future: asyncio.Future[None]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile: nobody waits any more
        loop.call_soon_threadsafe(_resolve, future)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
