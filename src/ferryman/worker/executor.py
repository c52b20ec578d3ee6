"""The part of a worker that runs jobs: reads frames, feeds the two tracks, and answers.

It is the same in a child process (`ferryman.worker.child`) and in threads beside its supervisor.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ferryman.app import App
from ferryman.worker.frames import (
    Assignment,
    CancelRequest,
    ExecutorHello,
    FrameError,
    FrameReader,
    Kind,
    Returned,
    Track,
)
from ferryman.worker.gangway import Gangway
from ferryman.worker.judge import judge_cancelled
from ferryman.worker.outbox import Outbox
from ferryman.worker.runnable import facts, runnables
from ferryman.worker.slots import SlotTable
from ferryman.worker.threads import ThreadTrack

if TYPE_CHECKING:
    from ferryman.worker.loop import LoopTrack

__all__ = ["Executor"]

_READ_BYTES = 1 << 18

log = logging.getLogger("ferryman.worker")


class Executor:
    """Runs an app's jobs until it is drained or its supervisor is gone. Use it once."""

    def __init__(self, app: App, sock: socket.socket, table: SlotTable, label: str | None = None) -> None:
        """`sock` is this side's end of the socket pair; `table` says by its places how many jobs run
        at once; `label` is how the app is called in messages.

        Raises ConfigError if the annotations of a task make no sense.
        """
        known = dict(app.tasks)  # Others may be made meanwhile, by another thread.
        self._sock = sock
        self._hello = ExecutorHello(
            pid=os.getpid(),
            url=app.settings.url,
            settings=app.settings,
            tasks=[facts(task) for task in known.values()],
            queues=list(app.queue_settings.values()),
        )
        self._outbox = Outbox(sock)
        tasks = runnables(known)
        self._awaited = {name for name, runnable in tasks.items() if runnable.track == "loop"}
        self._gangway = Gangway(table.places, self._awaited) if self._awaited else None
        self._threads = ThreadTrack(
            tasks, label or repr(app), self._outbox, table, self._gangway, self._listen, self._track_ended
        )
        self._loop: LoopTrack | None = None
        if self._gangway is not None:
            from ferryman.worker.loop import LoopTrack

            self._loop = LoopTrack(
                tasks, self._outbox, table, self._gangway, self._track_ended, self._hang_up
            )
            self._gangway.connect(self._threads, self._loop)
        self._tracks = 1 if self._loop is None else 2
        self._tracks_lock = threading.Lock()
        self.is_at_rest = threading.Event()
        """Set once no task runs any more."""
        self._drains = False
        self._reader = FrameReader()

    def run(self) -> bool:
        """Serve until told to end. True once drained, False if the supervisor is gone.

        In the latter case running jobs were told to stop, but may not have: their leases will be taken over,
        so a process that is only an executor should end at once.
        """
        self._start()
        # Only now: no job shall be begun by an executor that may not come to be. And hello is its first word.
        self._outbox.post(Kind.HELLO, self._hello)
        self._threads.listen()
        self._threads.all_said.result()
        with self._tracks_lock:
            if self._tracks == 0:
                return True
        self._abandon()
        return False

    def _start(self) -> None:
        # There may be no more threads; then those that were started shall end.
        with contextlib.ExitStack() as undo:
            undo.callback(self.is_at_rest.set)
            self._outbox.start()
            undo.callback(self._outbox.abandon)
            if self._loop is not None:
                self._loop.start()
                undo.callback(self._loop.finish)
            self._threads.start()
            undo.pop_all()

    def _listen(self) -> bool:
        """Wait for what the supervisor says next, and obey it. False if it will say nothing more."""
        try:
            if data := self._sock.recv(_READ_BYTES):
                for kind, body in self._reader.feed(data):
                    self._obey(kind, body)
                return True
        except FrameError as error:
            log.critical("the executor stops: %s", error)
        except OSError:
            pass  # The supervisor is gone, as if it had closed the socket.
        return False

    def _obey(self, kind: Kind, body: object) -> None:
        match kind, body:
            case Kind.RUN, list(assignments):
                self._feed(assignments)
            case Kind.CANCEL, CancelRequest(serial=serial, track=track, reason=reason):
                self._cancel(serial, track, reason)
            case Kind.RECALL, None:
                self._recall()
            case Kind.PING, int(number):
                if self._loop is None or not self._loop.answer(number):
                    self._outbox.post(Kind.PONG, number)
            case Kind.DRAIN, None:
                self._drain()
            case _:
                raise FrameError(f"a {kind.name} frame was sent to an executor")

    def _feed(self, assignments: Sequence[Assignment]) -> None:
        if self._drains:
            self._give_back(assignments)
        else:
            (self._gangway or self._threads).feed(assignments)

    def _cancel(self, serial: int, track: Track, reason: str | None) -> None:
        if self._gangway is not None and (waiting := self._gangway.withdraw(serial, track)) is not None:
            self._outbox.settle(judge_cancelled(waiting.claim, reason), 0, idle=False)
        elif track == "thread":
            self._threads.cancel(serial, reason)
        elif self._loop is not None:
            self._loop.cancel(serial, reason)

    def _recall(self) -> None:
        self._give_back([each for each in self._take_back() if not self._was_cancelled(each)])

    def _take_back(self) -> list[Assignment]:
        """All that has not been started."""
        return (self._gangway or self._threads).take_back()

    def _was_cancelled(self, assignment: Assignment) -> bool:
        """Whether a job that was taken back was cancelled before. Then it is settled."""
        loop = self._loop if assignment.claim.task in self._awaited else None
        stop = (loop or self._threads).forget_cancel(assignment.serial)
        if stop is not None:
            self._outbox.settle(judge_cancelled(assignment.claim, stop.reason), 0, idle=False)
        return stop is not None

    def _give_back(self, assignments: Sequence[Assignment]) -> None:
        self._outbox.post(Kind.RETURNED, [Returned(each.claim.id, each.claim.lease) for each in assignments])

    def _drain(self) -> None:
        if self._drains:
            return
        self._drains = True
        self._recall()
        self._threads.finish()
        if self._loop is not None:
            self._loop.finish()

    def _track_ended(self) -> None:
        with self._tracks_lock:
            self._tracks -= 1
            if self._tracks:
                return
        self.is_at_rest.set()
        if not self._drains:
            return
        self._outbox.post(Kind.BYE)
        self._outbox.close()
        self._hang_up()

    def _hang_up(self) -> None:
        """Listen no more: whoever leads sees the end of the stream, as if the supervisor were gone."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RD)

    def _abandon(self) -> None:
        self._outbox.abandon()
        self._take_back()
        reason = "its worker is gone"
        self._threads.abandon(reason)
        if self._loop is not None:
            self._loop.abandon(reason)
