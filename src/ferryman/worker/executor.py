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
)
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
        """`sock` is this side's end of the socket pair; `table` says by its places how many jobs of a track
        run at once; `label` is how the app is called in messages.

        Raises if the annotations of a task make no sense.
        """
        self._sock = sock
        self._hello = ExecutorHello(
            pid=os.getpid(),
            url=app.settings.url,
            settings=app.settings,
            tasks=[facts(task) for task in app.tasks.values()],
            queues=list(app.queue_settings.values()),
        )
        self._outbox = Outbox(sock)
        tasks = runnables(app)
        self._threads = ThreadTrack(
            tasks, label or repr(app), self._outbox, table, self._listen, self._track_ended
        )
        self._loop: LoopTrack | None = None
        self._loop_tasks = {name for name, runnable in tasks.items() if runnable.track == "loop"}
        if self._loop_tasks:
            from ferryman.worker.loop import LoopTrack

            self._loop = LoopTrack(tasks, self._outbox, table, self._track_ended)
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
        try:
            self._outbox.start()
            self._threads.start()
            if self._loop is not None:
                self._loop.start()
        except RuntimeError:  # There can be no more threads; those that were started shall end.
            self._abandon()
            raise
        # Only now: no job shall be begun by an executor that may not come to be.
        self._outbox.post(Kind.HELLO, self._hello)
        self._threads.all_said.result()
        with self._tracks_lock:
            if self._tracks == 0:
                return True
        self._abandon()
        return False

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
                if track == "thread":
                    self._threads.cancel(serial, reason)
                elif self._loop is not None:
                    self._loop.cancel(serial, reason)
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
        elif self._loop is None:
            self._threads.feed(assignments)
        else:
            names = self._loop_tasks
            self._threads.feed([each for each in assignments if each.claim.task not in names])
            awaited = [each for each in assignments if each.claim.task in names]
            if awaited:
                self._loop.feed(awaited)

    def _recall(self) -> None:
        recalled = self._threads.recall()
        if self._loop is not None:
            recalled += self._loop.recall()
        self._give_back(recalled)

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
        with contextlib.suppress(OSError):
            # Wakes who leads: that thread sees the end of the stream.
            self._sock.shutdown(socket.SHUT_RD)

    def _abandon(self) -> None:
        self._outbox.abandon()
        reason = "its worker is gone"
        self._threads.abandon(reason)
        if self._loop is not None:
            self._loop.abandon(reason)
