"""The bell of a worker on PostgreSQL: a connection that listens, on which those who sleep in `select` hear themselves.

A notification can get lost, with the connection or in a pooler; so whoever sleeps looks by itself now and then, which
suffices alone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import threading
import time
import weakref
from typing import Any

import psycopg

from ferryman.errors import StoreError
from ferryman.io.postgres.address import Address
from ferryman.io.postgres.connections import connect, drop

__all__ = ["PostgresWaker"]

log = logging.getLogger("ferryman.worker")

_RETRY_FIRST, _RETRY_MOST = 0.2, 10.0
"""Seconds between tries while there is no connection to listen on."""


class PostgresWaker:
    """See `ferryman.store.port.Waker`. Not thread-safe. A thread connects, and connects anew when it must; no thread
    stands between the server and one who sleeps."""

    poll = 0.4

    def __init__(self, address: Address) -> None:
        self.address: str | None = None
        self._asked = 0.0
        self._hook = hook = _Hook()
        self._thread: threading.Thread | None = None
        if address.listen is not None:
            # Workers of one schema share a bell: that there is one is all that is to be known.
            self.address = address.schema
            self._thread = threading.Thread(
                target=_listen, args=(address, hook), name="ferryman-bell", daemon=True
            )
            self._thread.start()
        # The thread ends with its waker, which it does not keep alive.
        self._close = weakref.finalize(self, hook.close)

    def fileno(self) -> int:
        return self._hook.fileno()

    def drain(self) -> None:
        self._hook.take_in()

    def changed(self) -> bool:
        """Nothing cheaper than a look tells, so: whether it is time for one."""
        now = time.monotonic()
        if now - self._asked < self.poll * 0.9:
            return False
        self._asked = now
        return True

    def close(self) -> None:
        self._close()
        if self._thread is not None:
            self._thread.join(timeout=5)
            self._thread = None


class _Hook:
    """Where a connection that listens is hung, to be heard on by another thread. Behind its one descriptor, that of a
    selector, are the connection and a pipe that tells of a new one."""

    def __init__(self) -> None:
        self.stirred = threading.Event()
        """Set when the connection is lost, and at the end."""
        self.closed = False
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._connection: psycopg.Connection[Any] | None = None
        self._loss: psycopg.Error | None = None
        self._ear, self._hammer = os.pipe()
        for end in (self._ear, self._hammer):
            os.set_blocking(end, False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._ear, selectors.EVENT_READ)

    def fileno(self) -> int:
        return self._selector.fileno()

    def hang(self, connection: psycopg.Connection[Any]) -> None:
        """Let it be heard on. It rings at once: something may have come while nobody listened."""
        with self._lock:
            if self.closed:
                return
            self._connection = connection
            self._selector.register(connection.fileno(), selectors.EVENT_READ)
            with contextlib.suppress(BlockingIOError):
                os.write(self._hammer, b"!")

    def take_in(self) -> None:
        """Read all that has come. A connection that turns out to be lost is taken down."""
        with self._lock:
            if self.closed:
                return
            with contextlib.suppress(BlockingIOError):
                os.read(self._ear, 64)
            if self._connection is None:
                return
            server, descriptor = self._connection.pgconn, self._connection.fileno()
            try:
                server.consume_input()
                while server.notifies() is not None:
                    pass
            except psycopg.Error as error:
                self._selector.unregister(descriptor)
                self._connection, self._loss = None, error
                self.stirred.set()

    def stay(self) -> None:
        """Wait until the connection is lost (raises why) or it is the end."""
        self.stirred.wait()
        self.stirred.clear()
        loss, self._loss = self._loss, None
        if loss is not None and not self.closed:
            raise loss

    def close(self) -> None:
        """Let go of everything but the connection, which is its thread's to drop. In a forked child, whose selector and
        lock are the parent's as well, only of its own hold on them."""
        if self._pid == os.getpid():
            with self._lock:
                self._let_go()
            self.stirred.set()
        else:
            self._let_go()

    def _let_go(self) -> None:
        self.closed = True
        self._connection = None
        self._selector.close()
        os.close(self._ear)
        os.close(self._hammer)


def _listen(address: Address, hook: _Hook) -> None:
    """Keep a connection hung that listens."""
    delay = _RETRY_FIRST
    said: str | None = None
    while not hook.closed:
        connection: psycopg.Connection[Any] | None = None
        try:
            connection = connect(address, address.listen)
            connection.execute(f'LISTEN "{address.schema}"')
            delay, said = _RETRY_FIRST, None
            hook.hang(connection)
            hook.stay()
        except (psycopg.Error, StoreError) as error:
            story = str(error).partition("\n")[0]
            if said != story:
                said = story
                log.warning("no bell for now, so the store is looked at instead: %s", said)
            hook.stirred.wait(delay)
            delay = min(delay * 2, _RETRY_MOST)
        finally:
            drop(connection)
