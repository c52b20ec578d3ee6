"""Stopping what a thread runs, and nothing else.

A job is stopped by an exception that CPython raises in its thread between two steps of Python code
(``PyThreadState_SetAsyncExc``). It must never hit the thread's next job, nor the loop around them, and the many
jobs that nobody stops must not pay for it with a lock. So:

* `Place.job` is set while a job may be hit. Who wants to stop it takes the place's lock, announces the
  stop in `Place.stop`, and only then looks whether the job is still there; if not, the announcement is withdrawn.
* At the job's end its thread first clears `Place.job` and then looks for an announcement. Whatever the
  order in which the two meet, one of them sees the other. If there is an announcement, the thread waits for
  the lock, after which the exception has been raised in it, or waits to be raised, or never will be; one that
  waits is withdrawn by raising None in its place.
* Each job is hit once at most. So the exception may arrive anywhere up to that point, even in handlers of
  `ferryman.worker.threads`; there it is caught once more by an outer handler, after which nothing can come.
"""

from __future__ import annotations

import ctypes
import math
import queue
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

from ferryman.context import Cancelled, SoftTimeout, Stopped
from ferryman.job import Claim, Outcome
from ferryman.worker.bell import Bell
from ferryman.worker.frames import Assignment
from ferryman.worker.judge import Stop

__all__ = ["Fetching", "Place", "Timekeeper", "disarm", "stop_job"]


class Place:
    """What the thread that has it is at. Written by that thread, save `stop`, which belongs to who holds `lock`."""

    __slots__ = ("cancelled", "deadline", "fetching", "job", "lock", "slot", "stop", "thread")

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.thread = 0
        self.lock = threading.Lock()
        self.job: Assignment | None = None
        """The job that may be hit now."""
        self.stop: Stop | None = None
        """Set: the job is about to be hit, or was."""
        self.deadline: tuple[float, Assignment] | None = None
        """When the job's soft timeout passes, by `time.monotonic`."""
        self.cancelled: threading.Event | None = None
        """What the job's context shows."""
        self.fetching: Fetching | None = None
        """The job whose arguments it waits for."""


class Fetching(NamedTuple):
    serial: int
    answers: queue.SimpleQueue[Claim | Outcome | None]
    """The first one counts; None calls the thread away."""


def stop_job(place: Place, job: Assignment, stop: Stop) -> None:
    """Raise in the place's thread if it still runs the job and has not been hit."""
    with place.lock:
        before = place.stop
        place.stop = before or stop
        if place.job is not job:
            place.stop = before
        elif before is not None:
            # One hit is all there is; but a cancel changes what is made of it.
            place.stop = stop if stop.kind is Cancelled else before
        else:
            if place.cancelled is not None:
                place.cancelled.set()
            _raise_in(place.thread, stop.kind)


def disarm(place: Place) -> Stop | None:
    """Make sure that nothing hits the thread from here on. Can be called again if it is hit itself."""
    place.job = None
    with place.lock:
        _raise_in(place.thread, None)
        stop, place.stop = place.stop, None
    return stop


def _raise_in(thread: int, kind: type[Stopped] | None) -> None:
    exception = None if kind is None else ctypes.py_object(kind)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), exception)


class Timekeeper:
    """A thread that stops jobs whose soft timeout has passed. It sleeps until the next one that may."""

    def __init__(self, places: Sequence[Place]) -> None:
        self._places = places
        self._handled: list[tuple[float, Assignment] | None] = [None] * len(places)
        self._wakes_at = math.inf
        self._ended = False
        self._bell = Bell()

    def start(self) -> None:
        threading.Thread(target=self._serve, name="ferryman-timekeeper", daemon=True).start()

    def end(self) -> None:
        self._ended = True
        self._bell.ring()

    def watch(self, place: Place, job: Assignment, timeout: float) -> None:
        """Stop the job after so many seconds, unless its place's deadline is taken away before."""
        moment = time.monotonic() + timeout
        place.deadline = (moment, job)
        if moment < self._wakes_at:
            self._bell.ring()

    def _serve(self) -> None:
        while not self._ended:
            # While looking it cannot say when it will wake up next, so every new deadline rings.
            self._wakes_at = math.inf
            self._wakes_at = wakes_at = self._look(time.monotonic())
            pause = wakes_at - time.monotonic()
            self._bell.wait(-1 if pause == math.inf else min(max(pause, 0.0), 3_600.0))

    def _look(self, now: float) -> float:
        """Stop what is over its time; answers when the next one will be."""
        wakes_at = math.inf
        for number, place in enumerate(self._places):
            deadline = place.deadline
            if deadline is None or deadline is self._handled[number]:
                continue
            moment, job = deadline
            if moment > now:
                wakes_at = min(wakes_at, moment)
            else:
                self._handled[number] = deadline
                stop_job(place, job, Stop(SoftTimeout))
        return wakes_at
