"""A thread that listens on a channel of the server, or has somebody listen, through losses and reconnections."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable

from ferryman.errors import FerrymanError
from ferryman.io.redis.link import Link
from ferryman.io.redis.server import Server

__all__ = ["Listener"]

_LOOK_SECONDS = 1.0
"""How often to ask whether anybody still wants to hear."""

_REFUSED_SECONDS = 5.0
"""After how long to ask again a server that does not let us listen."""

_PING_SECONDS, _PONG_SECONDS = 10.0, 20.0
"""After how long a silence to ask the server for a word, and after how long to take the connection for lost."""


class Listener:
    """Calls `ring` in its thread for what is published on the channel, and each time it has begun to listen anew,
    since something may have been missed. Ends by itself once `wanted` says no.

    With `hang`, that is called with each new connection, and whoever gets it calls `take_in` when there is something to
    be read: no thread stands between the server and one who sleeps. Before a connection is closed, `unhang` is called.
    """

    def __init__(
        self,
        server: Server,
        channel: str,
        *,
        ring: Callable[[], None],
        wanted: Callable[[], bool],
        hang: Callable[[socket.socket], None] | None = None,
        unhang: Callable[[socket.socket], None] | None = None,
    ) -> None:
        self._server = server
        self._channel = channel
        self._ring = ring
        self._wanted = wanted
        self._hang = hang
        self._unhang = unhang
        self._heard_at = 0.0
        self._is_lost = False
        # Over TLS, reading and writing are not for two threads at a time.
        self._line = threading.Lock()
        self.settled = threading.Event()
        """Set once it listens, or has failed to for the first time."""
        self._ended = False
        self._link: Link | None = None
        self._ear, self._mouth = socket.socketpair()
        self._thread = threading.Thread(target=self._listen, name="ferryman-listener", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Let the thread end, and wait until it has, unless it is just trying to connect."""
        self._ended = True
        with contextlib.suppress(OSError):
            self._mouth.send(b"!")
        self._thread.join(_LOOK_SECONDS)

    def take_in(self, sock: socket.socket) -> bool:
        """Read all that has come by a connection that was hung. False if it is lost; another will be hung."""
        try:
            with self._line:
                _receive(sock)
        except OSError:
            self._is_lost = True
            with contextlib.suppress(OSError):
                self._mouth.send(b"!")
            return False
        self._heard_at = time.monotonic()
        return True

    def abandon(self) -> None:
        """After a fork, in the child, which has no such thread: close what was inherited."""
        for end in (self._link, self._ear, self._mouth):
            if end is not None:
                end.close()

    def _listen(self) -> None:
        try:
            while not self._ended and self._wanted():
                try:
                    self._link = self._server.connect()
                except FerrymanError:
                    self.settled.set()
                    # Whoever waits learns why when they ask for something; `connect` waits between its tries.
                    continue
                try:
                    self._hear(self._link)
                    # `wanted` has said no: asked again, it would answer for another listener.
                    return
                except PermissionError:
                    self.settled.set()
                    self._link.close()
                    self._rest()
                except OSError:
                    self.settled.set()
                    self._server.note_loss()
                finally:
                    self._link.close()
        finally:
            self._ear.close()
            self._mouth.close()

    def _hear(self, link: Link) -> None:
        """Until nobody wants to hear any more. Raises OSError when the connection is lost, PermissionError when the
        server does not let us listen."""
        # Rings may come along with the answer; what was rung until now is told below.
        answer, *_ = link.ask(("SUBSCRIBE", self._channel))
        if isinstance(answer, Exception):
            # Those who wait look at intervals.
            raise PermissionError(str(answer))
        link.sock.setblocking(False)
        self._heard_at, self._is_lost = time.monotonic(), False
        if self._hang is not None:
            self._hang(link.sock)
        try:
            self._ring()
            self.settled.set()
            self._stay(link)
        finally:
            if self._unhang is not None:
                self._unhang(link.sock)

    def _rest(self) -> None:
        """Wait before the next try, unless told to end."""
        poll = select.poll()
        poll.register(self._ear, select.POLLIN)
        until = time.monotonic() + _REFUSED_SECONDS
        while not self._ended and (left := until - time.monotonic()) > 0:
            if poll.poll(left * 1000):
                self._ear.recv(64)

    def _stay(self, link: Link) -> None:
        poll = select.poll()
        poll.register(self._ear, select.POLLIN)
        if self._hang is None:
            poll.register(link.sock, select.POLLIN)
        pinged_at = self._heard_at
        while not self._ended and self._wanted():
            ready = {descriptor for descriptor, _ in poll.poll(_LOOK_SECONDS * 1000)}
            if self._ear.fileno() in ready:
                self._ear.recv(64)
            if self._is_lost:
                raise ConnectionResetError
            now = time.monotonic()
            if link.sock.fileno() in ready:
                if b"message" in _receive(link.sock):
                    self._ring()
                self._heard_at = time.monotonic()
            elif now - self._heard_at > _PONG_SECONDS:
                raise TimeoutError
            elif now - max(self._heard_at, pinged_at) > _PING_SECONDS:
                pinged_at = now
                with self._line:
                    link.sock.send(b"*1\r\n$4\r\nPING\r\n")


def _receive(sock: socket.socket) -> bytes:
    """All that has come: many rings are one."""
    data = b""
    with contextlib.suppress(BlockingIOError, ssl.SSLWantReadError):
        while True:
            more = sock.recv(1 << 16)
            if not more:
                raise ConnectionResetError
            # A ring may be cut in two: its end comes by itself then, and a ring too many does no harm.
            data = data[-16:] + more if b"message" not in data else data
    return data
