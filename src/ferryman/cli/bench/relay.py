"""A relay between a worker and its PostgreSQL server, which counts what the worker asks and changes nothing.

What the server counts itself is of a whole database: its own house-keeping and whoever looks are among it. On a
connection of the worker's there is nothing but the worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import quote, urlencode

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

__all__ = ["Refused", "Relay", "Tally", "open_relay", "through"]

_CHUNK = 65_536

_MAY_BE_PLAIN = ("disable", "allow", "prefer")
_PLAIN = {"sslmode": "disable", "gssencmode": "disable", "channel_binding": "disable"}
"""For libpq: what is encrypted cannot be counted."""


class Refused(Exception):
    """There can be no relay to a server."""


class Target(NamedTuple):
    """Where a server listens: a host or, if it begins with a slash, the folder of its socket."""

    host: str
    port: int


class Tally:
    """Counts, in what a client sends on one connection, the questions after which it waits for an answer.

    That is, of the messages of the protocol's version 3: Query, FunctionCall, and the Sync that ends each statement
    with parameters, and each pipeline; but not one before which nothing was executed, since statements are prepared
    once, and an idle worker is not one that begins. A message has a letter, and a length that counts itself but not
    the letter; the first of a connection has no letter.
    """

    def __init__(self) -> None:
        self.asked = 0
        self._head = bytearray()
        self._header_size = 4
        self._to_skip = 0
        self._executes = False

    def feed(self, data: bytes) -> None:
        """The next bytes of the connection, however they were cut."""
        at = 0
        while at < len(data):
            if self._to_skip:
                skipped = min(self._to_skip, len(data) - at)
                self._to_skip -= skipped
                at += skipped
                continue
            wanted = self._header_size - len(self._head)
            self._head += data[at : at + wanted]
            at += wanted
            if len(self._head) < self._header_size:
                return
            self._to_skip = int.from_bytes(self._head[-4:], "big") - 4
            if self._header_size == 5:
                self._note(bytes(self._head[:1]))
            self._head.clear()
            self._header_size = 5

    def _note(self, letter: bytes) -> None:
        if letter == b"E":
            self._executes = True
        elif letter in (b"Q", b"F") or (letter == b"S" and self._executes):
            self.asked += 1
            self._executes = False


class Relay:
    """Serves on a free port of the loopback, in a thread of its own."""

    def __init__(self, target: Target, password: str) -> None:
        self.port = 0
        self.password = password
        self._target = target
        self._tallies: list[Tally] = []
        self._loop = asyncio.new_event_loop()
        self._over = asyncio.Event()
        self._serves = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ferryman-relay", daemon=True)
        self._thread.start()
        self._serves.wait()

    def asked(self) -> int:
        """How many questions have passed so far, on all connections."""
        return sum(tally.asked for tally in self._tallies)

    def close(self) -> None:
        """Cut all connections."""
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        try:
            server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
            self.port = server.sockets[0].getsockname()[1]
        finally:
            self._serves.set()
        # Connections are tasks of their own, which the runner cancels at the end.
        await self._over.wait()
        server.close()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tally = Tally()
        self._tallies.append(tally)
        with contextlib.closing(writer), contextlib.suppress(OSError, asyncio.CancelledError):
            there, here = await _reach(self._target)
            with contextlib.closing(here):
                questions = asyncio.create_task(_pump(reader, here, tally))
                answers = asyncio.create_task(_pump(there, writer, None))
                # Whoever hangs up first ends it for both.
                await asyncio.wait((questions, answers), return_when=asyncio.FIRST_COMPLETED)
                questions.cancel()
                answers.cancel()


async def _reach(target: Target) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if target.host.startswith("/"):
        return await asyncio.open_unix_connection(f"{target.host}/.s.PGSQL.{target.port}")
    return await asyncio.open_connection(target.host, target.port)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tally: Tally | None) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(_CHUNK):
            if tally is not None:
                tally.feed(data)
            writer.write(data)
            await writer.drain()


@contextlib.contextmanager
def open_relay(conninfo: str) -> Iterator[Relay]:
    """A relay to the server that libpq finds by this, until the end of the block. Raises Refused."""
    demanded = conninfo_to_dict(conninfo).get("sslmode") or os.environ.get("PGSSLMODE") or "prefer"
    if demanded not in _MAY_BE_PLAIN:
        raise Refused(f"statements cannot be counted on a connection that is encrypted (sslmode={demanded})")
    try:
        with psycopg.connect(make_conninfo(conninfo, **_PLAIN)) as connection:
            found = connection.info
            relay = Relay(Target(found.hostaddr or found.host, found.port), found.password)
    except psycopg.Error as error:
        raise Refused(f"statements are counted on a connection that is not encrypted: {error}") from error
    try:
        yield relay
    finally:
        relay.close()


def through(relay: Relay, conninfo: str, **options: str) -> str:
    """The URL of a store by way of a relay. It holds what these parameters hold, and a password that libpq has found
    for the server, since it would look for another one for this address."""
    here = {"host": "127.0.0.1", "hostaddr": "127.0.0.1", "port": str(relay.port), "password": relay.password}
    given = {**conninfo_to_dict(conninfo), **_PLAIN, **here, **options}
    return "postgresql://?" + urlencode(
        {name: value for name, value in given.items() if value}, quote_via=quote
    )
