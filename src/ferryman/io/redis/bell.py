"""Being woken: producers that wait for results, and workers that wait for work."""

from __future__ import annotations

import asyncio
import contextlib
import os
import selectors
import socket
import threading
import time
from contextvars import ContextVar
from itertools import count

from ferryman.io.redis.listener import Listener
from ferryman.io.redis.server import Server, restart_after_fork

__all__ = ["Doorbell", "RedisWaker"]

_POLL = 0.5
"""Seconds after which a wait ends in any case: what a lost ring costs."""

_LINGER = 5.0
"""Seconds for which the connection is kept after the last wait."""

_SETTLE = 2.0
"""Seconds that a new bell may take to be heard on; without a server, it listens later."""

_PAUSE_FOR_EACH, _PAUSE_MOST = 0.000_2, 0.05
"""Seconds between rings that are heard: for each who waits, since all of them will ask the server; and at most."""

_serials = count(1)

_seen: ContextVar[tuple[int, int]] = ContextVar("_seen")
"""Whose rings this thread or task counted at its last look, and how many there were. What was rung between its last
look and its wait must end the wait at once."""


class Doorbell:
    """Ends the waits of a process's threads and coroutines when a job has finished. Thread-safe.

    It has a connection of its own only while somebody waits, and a little longer.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._serial = next(_serials)
        self._rings = 0
        self._listener: Listener | None = None
        self.start_anew()
        restart_after_fork(self)

    def start_anew(self) -> None:
        """After a fork, in the child."""
        if self._listener is not None:
            self._listener.abandon()
        self._listener = None
        self._lock = threading.Lock()
        self._rung = threading.Condition(self._lock)
        self._threads_waiting = 0
        self._sleepers: dict[asyncio.Future[None], asyncio.AbstractEventLoop] = {}
        self._needed_until = 0.0

    def note_look(self) -> None:
        """This thread or task is about to look at the store: rings from now on may mean a change that it missed."""
        _seen.set((self._serial, self._rings))

    def wait(self, seconds: float) -> None:
        """Sleep until a ring, some seconds at most. A ring since the last look counts."""
        with self._lock:
            if self._changed_since_last_look():
                return
            self._need_listener()
            self._threads_waiting += 1
            try:
                self._rung.wait(min(seconds, _POLL))
            finally:
                self._threads_waiting -= 1

    async def await_ring(self, seconds: float) -> None:
        """`wait`, awaited."""
        loop = asyncio.get_running_loop()
        with self._lock:
            if self._changed_since_last_look():
                return
            self._need_listener()
            ring: asyncio.Future[None] = loop.create_future()
            self._sleepers[ring] = loop
        timer = loop.call_later(min(seconds, _POLL), _end_waits, [ring])
        try:
            await ring
        finally:
            timer.cancel()
            with self._lock:
                self._sleepers.pop(ring, None)

    def close(self) -> None:
        """Let go of the connection; the next wait makes another."""
        with self._lock:
            listener, self._listener = self._listener, None
            self._needed_until = 0.0
        if listener is not None:
            listener.end()

    def _changed_since_last_look(self) -> bool:
        serial, rings = _seen.get((0, 0))
        return serial == self._serial and rings != self._rings

    def _need_listener(self) -> None:
        self._needed_until = time.monotonic() + _LINGER
        if self._listener is None:
            self._listener = Listener(
                self._server, f"{self._server.address.key}:bell:done", ring=self._ring, wanted=self._is_wanted
            )

    def _is_wanted(self) -> bool:
        with self._lock:
            if self._threads_waiting or self._sleepers or time.monotonic() < self._needed_until:
                return True
            self._listener = None
            return False

    def _ring(self) -> None:
        with self._lock:
            self._rings += 1
            waiting = self._threads_waiting + len(self._sleepers)
            self._rung.notify_all()
            self._wake_sleepers()
        # Rings that come meanwhile are one.
        time.sleep(min(waiting * _PAUSE_FOR_EACH, _PAUSE_MOST))

    def _wake_sleepers(self) -> None:
        loops: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
        for ring, loop in self._sleepers.items():
            loops.setdefault(loop, []).append(ring)
        self._sleepers.clear()
        for loop, rings in loops.items():
            # A loop that was closed has nobody left to wake.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_end_waits, rings)


def _end_waits(rings: list[asyncio.Future[None]]) -> None:
    for ring in rings:
        if not ring.done():
            ring.set_result(None)


class RedisWaker:
    """See `ferryman.store.port.Waker`. A thread connects; its connection, and a pipe by which it rings when it has
    connected anew, are behind one descriptor, that of a selector."""

    poll: float = 0.4

    def __init__(self, server: Server) -> None:
        self.address: str | None = f"{server.address.key}:bell"
        self._asked_at = time.monotonic()
        self._lock = threading.Lock()
        self._sock: socket.socket | None = None
        self._closed = False
        self._ear, self._hammer = os.pipe()
        os.set_blocking(self._ear, False)
        os.set_blocking(self._hammer, False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._ear, selectors.EVENT_READ)
        self._listener = Listener(
            server,
            self.address,
            ring=self._ring,
            wanted=lambda: not self._closed,
            hang=self._hang,
            unhang=self._unhang,
        )
        self._listener.settled.wait(_SETTLE)
        self.drain()
        restart_after_fork(self)

    def start_anew(self) -> None:
        """After a fork, in the child: the bell is the parent's."""
        if self._closed:
            return
        self._lock = threading.Lock()
        self._closed = True
        self._listener.abandon()
        self._let_go()

    def fileno(self) -> int:
        return self._selector.fileno()

    def drain(self) -> None:
        with self._lock:
            if self._closed:
                return
            with contextlib.suppress(BlockingIOError):
                os.read(self._ear, 64)
            if self._sock is not None and not self._listener.take_in(self._sock):
                self._take_down()

    def changed(self) -> bool:
        """Nothing tells whether the store has changed but to look: True at intervals, and when somebody rang."""
        now = time.monotonic()
        # A little less than `poll`, so that a worker that asks at such intervals is not told no for being punctual.
        if now - self._asked_at < self.poll * 0.9 and (self._closed or not self._selector.select(0)):
            return False
        self._asked_at = now
        return True

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._let_go()
        self._listener.end()

    def _hang(self, sock: socket.socket) -> None:
        with self._lock:
            if not self._closed:
                self._sock = sock
                self._selector.register(sock, selectors.EVENT_READ)

    def _unhang(self, sock: socket.socket) -> None:
        with self._lock:
            if not self._closed and self._sock is sock:
                self._take_down()

    def _take_down(self) -> None:
        assert self._sock is not None
        self._selector.unregister(self._sock)
        self._sock = None

    def _let_go(self) -> None:
        self._sock = None
        self._selector.close()
        os.close(self._ear)
        os.close(self._hammer)

    def _ring(self) -> None:
        """Make the descriptor readable until it is drained."""
        with self._lock:
            if not self._closed:
                with contextlib.suppress(BlockingIOError):
                    os.write(self._hammer, b"!")
