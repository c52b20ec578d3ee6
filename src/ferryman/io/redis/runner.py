"""The blocking runner of a Redis server."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import Any, TypeVar

from ferryman.errors import FerrymanError
from ferryman.io.operation import Operation
from ferryman.io.redis.bell import Doorbell
from ferryman.io.redis.course import begin, begin_all, check_reads
from ferryman.io.redis.failures import failed_here, twin
from ferryman.io.redis.link import Link
from ferryman.io.redis.requests import Call
from ferryman.io.redis.server import Server, restart_after_fork
from ferryman.io.redis.talk import GROUP

__all__ = ["RedisRunner"]

T = TypeVar("T")


class RedisRunner:
    """The blocking runner: one connection for all threads. Thread-safe.

    Calls that wait while those of other threads are under way go out together, each for itself a transaction.
    """

    def __init__(self, server: Server, doorbell: Doorbell) -> None:
        self._server = server
        self._doorbell = doorbell
        self._link: Link | None = None
        self.start_anew()
        restart_after_fork(self)

    def start_anew(self) -> None:
        """After a fork, in the child: what waits is the parent's, as is the other end of the connection."""
        self._lock = threading.Lock()
        self._waiting: deque[_Ticket] = deque()
        self._drop_link()

    def run(self, operation: Operation[T]) -> T:
        self._doorbell.note_look()
        course = begin(operation)
        while course.call is not None:
            try:
                answer = self._perform(course.call)
            except FerrymanError as error:
                course.throw(error)
            else:
                course.send(answer)
        result: T = course.result
        return result

    def run_all(self, operations: Sequence[Operation[Any]]) -> list[Any]:
        if len(operations) == 1:
            return [self.run(operations[0])]
        self._doorbell.note_look()
        courses, call = begin_all(operations)
        if call is not None:
            answers = iter(self._perform(call))
            for course in courses:
                if course.call is not None:
                    course.send(next(answers))
        for course in courses:
            while course.call is not None:
                course.send(self._perform(check_reads(course)))
        return [course.result for course in courses]

    def wait(self, seconds: float) -> None:
        self._doorbell.wait(seconds)

    def close(self) -> None:
        with self._lock:
            self._drop_link()
        self._doorbell.close()

    # -- one group after another ---------------------------------------------------------------------

    def _perform(self, call: Call) -> Any:
        ticket = _Ticket(call, None if call.joint else self._server.pack(call))
        self._waiting.append(ticket)
        with self._lock:
            # More than one group may wait before it.
            while not ticket.done:
                self._perform_waiting(ticket)
        if ticket.error is not None:
            raise ticket.error
        return ticket.answer

    def _perform_waiting(self, own: _Ticket | None = None) -> None:
        """Perform a group of those that wait. `own` is the ticket of the thread that does it, if it has one."""
        group = [self._waiting.popleft() for _ in range(min(len(self._waiting), GROUP))]
        if own is not None and not group:
            # Another thread was interrupted just when it had taken it from the line.
            group = [own]
        try:
            self._exchange(group)
        except FerrymanError as error:
            # There is no connection to be had: that is the answer for all who wait by now.
            for ticket in [*group, *self._take_waiting()]:
                if not ticket.done:
                    ticket.fail(twin(error))
        except Exception as error:
            # A fault of ours: nobody shall wait for an answer that cannot come.
            self._drop_link()
            for ticket in group:
                ticket.fail(failed_here(error))
        except BaseException as interrupt:
            # This thread is interrupted; the others' calls have nothing to do with that.
            self._leave(group, own, interrupt)
            while self._waiting:
                self._perform_waiting()
            raise

    def _exchange(self, group: Sequence[_Ticket]) -> None:
        todo = list(group)
        while todo:
            link = self._open_link()
            talk = link.talk
            data = talk.say(todo)
            try:
                if not link.send(data):
                    talk.take_back()
                while not talk.idle:
                    link.hear()
            except OSError as error:
                talk.lose(error)
            todo, talk.again = talk.again, []  # type: ignore[assignment]
            if talk.over:
                self._part(link)

    def _open_link(self) -> Link:
        if self._link is not None and self._link.is_gone():
            self._server.note_loss()
            self._drop_link()
        if self._link is None:
            self._link = self._server.connect()
        return self._link

    def _part(self, link: Link) -> None:
        if link.talk.moved_to is not None:
            self._server.note_move(link.talk.moved_to)
        else:
            self._server.note_loss()
        self._drop_link()

    def _leave(self, group: Sequence[_Ticket], own: _Ticket | None, interrupt: BaseException) -> None:
        """Give up the connection, on which answers are still due, but not what others asked for."""
        if self._link is not None:
            self._link.talk.lose(
                ConnectionAbortedError(f"a thread of this process was interrupted by {interrupt!r}")
            )
            self._drop_link()
        self._waiting.extendleft(
            ticket for ticket in reversed(group) if not ticket.done and ticket is not own
        )

    def _take_waiting(self) -> list[_Ticket]:
        return [self._waiting.popleft() for _ in range(len(self._waiting))]

    def _drop_link(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None


class _Ticket:
    """The call of one thread; see `ferryman.io.redis.talk.Ticket`."""

    __slots__ = ("alone", "answer", "call", "done", "error", "packed", "tries")

    def __init__(self, call: Call, packed: bytes | None) -> None:
        self.call = call
        self.packed = packed
        self.tries = 0
        self.alone = False
        self.done = False
        self.answer: Any = None
        self.error: FerrymanError | None = None

    def deliver(self, answer: Any) -> None:
        self.answer = answer
        self.done = True

    def fail(self, error: FerrymanError) -> None:
        if not self.done:
            self.error = error
            self.done = True
