"""A line between a client and a server that can be cut, stalled, and made to lose what the server says."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Literal, TypeVar
from urllib.parse import urlsplit

__all__ = ["Direction", "Proxy", "proxy"]

T = TypeVar("T")
Direction = Literal["to_server", "to_client"]

BOTH: tuple[Direction, Direction] = ("to_server", "to_client")
QUIET = 0.05
"""Seconds without a word after which a server is taken to have answered in full."""

# A statement's name and text in a Parse message, and its name in a Bind message, behind which come small numbers.
PARSE = re.compile(rb"(ferryman_[0-9]+)\0([A-Z][^\0]+)\0")
BIND = re.compile(rb"\0(ferryman_[0-9]+)\0\0")

# Closing then sends a reset at once, as a host does that has lost its memory of the connection.
NO_LINGER = struct.pack("ii", 1, 0)


@contextlib.contextmanager
def proxy(port: int) -> Iterator[Proxy]:
    """A proxy on the loopback before what listens on this port."""
    line = Proxy(port)
    try:
        yield line
    finally:
        line.close()


class Proxy:
    """Passes bytes on, until it is told otherwise. What it is told is in force when the method returns; it can be told
    from any thread."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._links: set[_Link] = set()
        self._flowing = {direction: asyncio.Event() for direction in BOTH}
        self._held: dict[Direction, int] = dict.fromkeys(BOTH, 0)
        self._left: dict[Direction, int] = {}
        """Bytes that may still pass in a direction before a connection is dropped."""
        self._lost: tuple[bytes, threading.Event] | None = None
        self._misheard: dict[bytes, bytes] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._server: asyncio.Server | None = None
        self.port = 0
        self.accept()
        self.go_on()

    def url(self, of_server: str) -> str:
        """The same URL by way of this proxy."""
        parts = urlsplit(of_server)
        before = parts.netloc.rpartition("@")
        return parts._replace(netloc=f"{before[0]}{before[1]}127.0.0.1:{self.port}").geturl()

    @property
    def connections(self) -> int:
        """How many there are now."""
        return self._do(lambda: len(self._links))

    def holds_back(self, direction: Direction) -> bool:
        """Whether something has come that way since it stalled."""
        return self._do(lambda: self._held[direction] > 0)

    # -- what can go wrong -----------------------------------------------------------------------------

    def stall(self, *directions: Direction) -> None:
        """Hold back what comes, in both directions unless one is named; connections stay, new ones are made."""
        for direction in directions or BOTH:
            self._do(self._flowing[direction].clear)

    def go_on(self) -> None:
        """Pass on what was held back, and what comes."""
        for flowing in self._flowing.values():
            self._do(flowing.set)

    def drop(self) -> int:
        """Reset all connections, and say how many; new ones are made."""
        links = self._do(lambda: list(self._links))
        for link in links:
            self._do(link.task.cancel)
            link.over.wait()
        return len(links)

    def drop_after(self, count: int, direction: Direction) -> None:
        """Pass on so many more bytes in a direction, and then reset the connection that they are of."""
        self._do(lambda: self._left.update({direction: count}))

    def refuse(self) -> None:
        """Reset all connections, and refuse new ones until `accept`."""
        assert self._server is not None
        self._do(self._server.close)
        self.drop()

    def accept(self) -> None:
        """Make new connections again, on the same port."""
        starting = asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=1 << 16)
        self._server = asyncio.run_coroutine_threadsafe(starting, self._loop).result()
        self.port = self._server.sockets[0].getsockname()[1]

    def lose_answer(self, to: bytes = b"") -> threading.Event:
        """Pass on the next request (the next that has these bytes in it, or in the PostgreSQL statement that it executes,
        prepared before), lose the server's answer, and reset the connection. The event says that the server has answered
        and the connection is gone."""
        done = threading.Event()
        self._do(lambda: setattr(self, "_lost", (to, done)))
        return done

    def mishear(self, said: bytes, heard: bytes) -> None:
        """From now on put other bytes, as many, in the place of these where the server says them."""
        assert len(said) == len(heard)
        self._do(lambda: self._misheard.update({said: heard}))

    def close(self) -> None:
        """Reset all connections, and end."""
        self.refuse()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # -- on the thread of the proxy ----------------------------------------------------------------------

    def _do(self, change: Callable[[], T]) -> T:
        async def do() -> T:
            return change()

        return asyncio.run_coroutine_threadsafe(do(), self._loop).result()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link(writer)
        self._links.add(link)
        try:
            answers, requests = await asyncio.open_connection("127.0.0.1", self._target, limit=1 << 16)
            link.writers.append(requests)
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(link, "to_server", reader, requests))
                pumps.create_task(self._pump(link, "to_client", answers, writer))
        except* (OSError, asyncio.CancelledError):
            pass
        finally:
            self._links.discard(link)
            link.reset()
            link.over.set()

    async def _pump(
        self, link: _Link, direction: Direction, source: asyncio.StreamReader, sink: asyncio.StreamWriter
    ) -> None:
        while data := await source.read(1 << 16):
            self._held[direction] += 1
            try:
                await self._flowing[direction].wait()
            finally:
                self._held[direction] -= 1
            if direction == "to_server":
                link.note_prepared(data)
                if self._lost is not None and link.asks(self._lost[0], data):
                    link.losing, self._lost = self._lost[1], None
            else:
                if link.losing is not None:
                    await self._lose(link, source)
                for said, heard in self._misheard.items():
                    data = data.replace(said, heard)
            left = self._left.get(direction, len(data))
            sink.write(data[:left])
            await sink.drain()
            if direction in self._left:
                self._left[direction] -= len(data[:left])
                if self._left[direction] == 0:
                    del self._left[direction]
                    await _sent(sink)
                    raise ConnectionResetError
        with contextlib.suppress(OSError):
            # The other way may still have something to say.
            sink.write_eof()

    async def _lose(self, link: _Link, answers: asyncio.StreamReader) -> None:
        with contextlib.suppress(TimeoutError):
            while await asyncio.wait_for(answers.read(1 << 16), QUIET):
                pass
        assert link.losing is not None
        link.reset()
        link.losing.set()
        raise ConnectionResetError


class _Link:
    """One connection: its client's side, and the server's once there is one."""

    def __init__(self, client: asyncio.StreamWriter) -> None:
        self.writers = [client]
        task = asyncio.current_task()
        assert task is not None
        self.task: asyncio.Task[None] = task
        self.over = threading.Event()
        self.losing: threading.Event | None = None
        """Set when the server has answered; its answer gets no further."""
        self._prepared: dict[bytes, bytes] = {}
        """PostgreSQL statements by the names that psycopg gave them."""

    def note_prepared(self, data: bytes) -> None:
        self._prepared.update(PARSE.findall(data))

    def asks(self, words: bytes, data: bytes) -> bool:
        """Whether a request has these words. One that only prepares a statement does not count."""
        executed = BIND.findall(data)
        if any(words in self._prepared.get(name, b"") for name in executed):
            return True
        return words in data and (bool(executed) or not PARSE.search(data))

    def reset(self) -> None:
        for writer in self.writers:
            end = writer.get_extra_info("socket")
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
            writer.transport.abort()


async def _sent(sink: asyncio.StreamWriter) -> None:
    """Wait until the kernel has all that was written; a reset would discard it."""
    while sink.transport.get_write_buffer_size():
        await asyncio.sleep(0.001)
