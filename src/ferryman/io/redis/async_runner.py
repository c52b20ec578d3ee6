"""The asyncio runner of a Redis server."""

from __future__ import annotations

import asyncio
import ssl
import weakref
from collections import deque
from collections.abc import Iterable
from typing import Any, TypeVar

from ferryman.errors import FerrymanError
from ferryman.io.operation import Operation
from ferryman.io.redis.bell import Doorbell
from ferryman.io.redis.course import begin
from ferryman.io.redis.failures import closed_here, failed_here, twin
from ferryman.io.redis.link import ANSWER_SECONDS, Link
from ferryman.io.redis.requests import Call
from ferryman.io.redis.server import Server, restart_after_fork
from ferryman.io.redis.talk import GROUP

__all__ = ["AsyncRedisRunner"]

T = TypeVar("T")

_NOT_NOW = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class AsyncRedisRunner:
    """The asyncio runner: one connection for all coroutines of a loop.

    Whatever they ask for in one turn of the loop goes out together, without waiting for what is under way. Only a
    connection is made in a thread, since that takes a dialogue.
    """

    def __init__(self, server: Server, doorbell: Doorbell) -> None:
        self._server = server
        self._doorbell = doorbell
        self._link: Link | None = None
        self.start_anew()
        restart_after_fork(self)

    def start_anew(self) -> None:
        """After a fork, in the child, or in another event loop: what waits there is not ours."""
        if self._link is not None:
            # Without a word to the loop: it is closed, or the selector is the parent's, too.
            self._link.close()
            self._link = None
        self._loop: weakref.ref[asyncio.AbstractEventLoop] | None = None
        self._waiting: deque[_Ticket] = deque()
        self._unsent = memoryview(b"")
        self._is_flush_due = False
        self._connecting: asyncio.Future[Link] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._heard_at = 0.0

    async def run(self, operation: Operation[T]) -> T:
        self._doorbell.note_look()
        course = begin(operation)
        while course.call is not None:
            try:
                answer = await self._perform(course.call)
            except FerrymanError as error:
                course.throw(error)
            else:
                course.send(answer)
        result: T = course.result
        return result

    async def wait(self, seconds: float) -> None:
        await self._doorbell.await_ring(seconds)

    async def close(self) -> None:
        if self._loop is None or self._loop() is not asyncio.get_running_loop():
            self.start_anew()
            return
        # A connection that is being made is closed as soon as it is there.
        self._connecting = None
        if self._link is not None:
            self._lose(ConnectionAbortedError("it was closed here"))
            self._part()
        # What has not been said, or would be said again, must not connect anew.
        _fail_all(self._take_waiting(), closed_here())

    # -- saying --------------------------------------------------------------------------------------

    def _perform(self, call: Call) -> asyncio.Future[Any]:
        loop = asyncio.get_running_loop()
        if self._loop is None or self._loop() is not loop:
            self.start_anew()
            self._loop = weakref.ref(loop)
        packed = None if call.joint else self._server.pack(call)
        ticket = _Ticket(call, packed, loop.create_future())
        self._waiting.append(ticket)
        if len(self._waiting) % GROUP:
            self._flush_soon(loop)
        else:
            # The server can begin while the rest of a crowd is still asking.
            self._flush()
        # A caller that is cancelled leaves; what was sent is done all the same.
        return ticket.future

    def _flush_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._is_flush_due:
            self._is_flush_due = True
            loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Say what waits to be said, if that can be done now; otherwise, whoever is in the way calls this again."""
        self._is_flush_due = False
        group = [ticket for ticket in self._waiting if not ticket.future.done()]
        link = self._link
        if not group or self._unsent or (link is not None and link.talk.over):
            return
        fresh = link is not None and link.talk.idle
        if link is not None and fresh and link.is_gone():
            self._lose(ConnectionResetError("the server closed the connection"))
            self._part()
            return
        if link is None:
            self._connect()
            return
        self._waiting.clear()
        try:
            self._unsent = memoryview(link.talk.say(group))
        except Exception as error:
            # A fault of ours: nobody shall wait for an answer that cannot come.
            _fail_all(group, failed_here(error))
            return
        self._watch_time(fresh)
        try:
            self._send_some(link)
        except OSError as error:
            if fresh:
                link.talk.take_back()
            self._lose(error)
            self._part()

    def _send_some(self, link: Link) -> None:
        """Send what the socket takes. Raises OSError if it takes nothing any more."""
        loop = asyncio.get_running_loop()
        try:
            sent = link.sock.send(self._unsent)
        except _NOT_NOW:
            sent = 0
        self._unsent = self._unsent[sent:]
        if self._unsent:
            loop.add_writer(link.sock, self._send_rest)

    def _send_rest(self) -> None:
        link = self._link
        assert link is not None
        try:
            asyncio.get_running_loop().remove_writer(link.sock)
            self._send_some(link)
        except OSError as error:
            self._lose(error)
            self._part()
        else:
            self._flush()

    # -- hearing -------------------------------------------------------------------------------------

    def _hear(self) -> None:
        link = self._link
        assert link is not None
        try:
            while True:
                data = link.sock.recv(1 << 18)
                if not data:
                    raise ConnectionResetError("the server closed the connection")
                link.talk.hear(data)
                if not isinstance(link.sock, ssl.SSLSocket):
                    break
        except _NOT_NOW:
            pass
        except OSError as error:
            self._lose(error)
        except Exception as error:
            self._lose(ConnectionAbortedError(f"an answer could not be handled: {error!r}"))
        self._heard_at = asyncio.get_running_loop().time()
        if link.talk.over:
            if link.talk.idle:
                self._part()
        elif link.talk.again:
            self._take_again(link)

    def _watch_time(self, fresh: bool) -> None:
        loop = asyncio.get_running_loop()
        if fresh:
            self._heard_at = loop.time()
        if self._timer is None:
            self._timer = loop.call_later(ANSWER_SECONDS, self._check_time)

    def _check_time(self) -> None:
        self._timer = None
        if self._link is None or self._link.talk.idle:
            return
        loop = asyncio.get_running_loop()
        rest = self._heard_at + ANSWER_SECONDS - loop.time()
        if rest > 0:
            self._timer = loop.call_later(rest, self._check_time)
        else:
            self._lose(TimeoutError())
            self._part()

    # -- coming and going ----------------------------------------------------------------------------

    def _connect(self) -> None:
        if self._connecting is None:
            self._connecting = asyncio.get_running_loop().run_in_executor(None, self._server.connect)
            self._connecting.add_done_callback(self._connected)

    def _connected(self, connecting: asyncio.Future[Link]) -> None:
        if connecting.cancelled():
            return
        if connecting is not self._connecting:
            if connecting.exception() is None:
                connecting.result().close()
            return
        self._connecting = None
        try:
            link = connecting.result()
        except FerrymanError as error:
            # That is the answer for all who wait by now.
            _fail_all(self._take_waiting(), error)
            return
        except Exception as error:
            _fail_all(self._take_waiting(), failed_here(error))
            return
        self._link = link
        link.sock.setblocking(False)
        asyncio.get_running_loop().add_reader(link.sock, self._hear)
        self._flush()

    def _lose(self, error: OSError) -> None:
        assert self._link is not None
        self._link.talk.lose(error)

    def _part(self) -> None:
        """Leave a connection whose talk is over, and say elsewhere what must be said again."""
        link, self._link = self._link, None
        assert link is not None
        loop = asyncio.get_running_loop()
        loop.remove_reader(link.sock)
        loop.remove_writer(link.sock)
        link.close()
        self._unsent = memoryview(b"")
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if link.talk.moved_to is not None:
            self._server.note_move(link.talk.moved_to)
        else:
            self._server.note_loss()
        self._take_again(link)

    def _take_again(self, link: Link) -> None:
        self._waiting.extendleft(reversed(link.talk.again))  # type: ignore[arg-type]
        link.talk.again = []
        self._flush_soon(asyncio.get_running_loop())

    def _take_waiting(self) -> list[_Ticket]:
        waiting, self._waiting = self._waiting, deque()
        return list(waiting)


class _Ticket:
    """The call of one coroutine; see `ferryman.io.redis.talk.Ticket`."""

    __slots__ = ("alone", "call", "future", "packed", "tries")

    def __init__(self, call: Call, packed: bytes | None, future: asyncio.Future[Any]) -> None:
        self.call = call
        self.packed = packed
        self.tries = 0
        self.alone = False
        self.future = future

    def deliver(self, answer: Any) -> None:
        if not self.future.done():
            self.future.set_result(answer)

    def fail(self, error: FerrymanError) -> None:
        if not self.future.done():
            self.future.set_exception(error)


def _fail_all(tickets: Iterable[_Ticket], error: FerrymanError) -> None:
    for ticket in tickets:
        ticket.fail(twin(error))
