"""The bell of a worker on PostgreSQL: a thread that listens, and rings for those who sleep in `select`.

A notification can get lost, with the connection or in a pooler; so whoever sleeps looks by itself now and then, which
suffices alone.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import threading
import time
import weakref
from collections.abc import Sequence
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
    """See `ferryman.store.port.Waker`. Not thread-safe."""

    poll = 0.4

    def __init__(self, address: Address) -> None:
        self.address: str | None = None
        self._asked = 0.0
        self._ear, bell = socket.socketpair()
        stop, stopped = socket.socketpair()
        for end in (self._ear, bell):
            end.setblocking(False)
        # The thread ends with its waker, which it does not keep alive. The bell is not closed by the thread: an ear
        # whose other end is gone would seem to hear it all the time.
        self._close = weakref.finalize(self, _close_all, (stop, self._ear, bell))
        self._thread: threading.Thread | None = None
        if address.listen is None:
            stopped.close()
            return
        # Workers of one schema share a bell: that there is one is all that is to be known.
        self.address = address.schema
        self._thread = threading.Thread(
            target=_listen, args=(address, bell, stopped), name="ferryman-bell", daemon=True
        )
        self._thread.start()

    def fileno(self) -> int:
        return self._ear.fileno()

    def drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._ear.recv(4096):
                pass

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


def _close_all(ends: Sequence[socket.socket]) -> None:
    for end in ends:
        end.close()


def _listen(address: Address, bell: socket.socket, stopped: socket.socket) -> None:
    """Ring whenever the server notifies, until the other end of `stopped` is closed."""
    delay = _RETRY_FIRST
    said: str | None = None
    with stopped:
        while True:
            connection: psycopg.Connection[Any] | None = None
            try:
                connection = connect(address, address.listen)
                connection.execute(f'LISTEN "{address.schema}"')
                delay = _RETRY_FIRST
                # Something may have come while nobody listened.
                _ring(bell)
                said = None
                if _hear(connection, bell, stopped):
                    return
            except (psycopg.Error, StoreError) as error:
                if said != str(error):
                    said = str(error)
                    log.warning("no bell for now, so the store is looked at instead: %s", said)
            finally:
                drop(connection)
            if select.select([stopped], [], [], delay)[0]:
                return
            delay = min(delay * 2, _RETRY_MOST)


def _hear(connection: psycopg.Connection[Any], bell: socket.socket, stopped: socket.socket) -> bool:
    """Ring until the connection is lost (raises) or nobody listens any more (True)."""
    poll = select.poll()
    poll.register(stopped, select.POLLIN)
    poll.register(connection.fileno(), select.POLLIN)
    while True:
        if any(ready == stopped.fileno() for ready, _ in poll.poll()):
            return True
        connection.pgconn.consume_input()
        rung = False
        while connection.pgconn.notifies() is not None:
            rung = True
        if rung:
            _ring(bell)


def _ring(bell: socket.socket) -> None:
    # One that is full is being rung already; one whose other end is closed needs none.
    with contextlib.suppress(OSError):
        bell.send(b"!")
