"""The track of ``def`` tasks: threads that take jobs in order from one queue.

Stopping a thread's job
-----------------------
A job is stopped by an exception that CPython raises in its thread between two steps of Python code
(``PyThreadState_SetAsyncExc``). It must never hit the thread's next job, nor this file's own loop, and the many
jobs that nobody stops must not pay for it with a lock. So:

* `_Place.job` is set while a job may be hit. Who wants to stop it takes the place's lock, announces the
  stop in `_Place.stop`, and only then looks whether the job is still there; if not, the announcement is withdrawn.
* At the job's end its thread first clears `_Place.job` and then looks for an announcement. Whatever the
  order in which the two meet, one of them sees the other. If there is an announcement, the thread waits for
  the lock, after which the exception has been raised in it, or waits to be raised, or never will be; one that
  waits is withdrawn by raising None in its place.
* Each job is hit once at most. So the exception may arrive anywhere up to that point, even in this file's own
  handlers; there it is caught once more by an outer handler, after which nothing can come.
"""

from __future__ import annotations

import contextvars
import ctypes
import functools
import math
import queue
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ferryman.context import Cancelled, Context, SoftTimeout, Stopped
from ferryman.job import Claim, Outcome
from ferryman.options import Overrides
from ferryman.worker.bell import Bell
from ferryman.worker.frames import Assignment, Kind, Returned
from ferryman.worker.judge import (
    Stop,
    judge_cancelled,
    judge_completed,
    judge_error,
    judge_undecodable,
    judge_unknown,
    judge_value,
)
from ferryman.worker.outbox import Outbox
from ferryman.worker.outside import (
    Fetcher,
    aside,
    fetches_within,
    has_large_result,
    is_outside,
    judge_late,
    patience,
    stow,
)
from ferryman.worker.runnable import Runnable, read_overrides
from ferryman.worker.slots import SlotTable

__all__ = ["ThreadTrack"]

_MAX_CANCELS = 10_000
_NOTHING = object()


class _Place:
    """What one thread is at. Written by the thread, save `stop`, which belongs to who holds `lock`."""

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
        self.fetching: _Fetching | None = None
        """The job whose arguments it waits for."""


class _Fetching(NamedTuple):
    serial: int
    answers: queue.SimpleQueue[Claim | Outcome | None]
    """The first one counts; None calls the thread away."""


class ThreadTrack:
    """Thread-safe, except that only one thread, the reader, may feed and recall."""

    def __init__(
        self,
        tasks: Mapping[str, Runnable],
        app: str,
        outbox: Outbox,
        table: SlotTable,
        on_end: Callable[[], None],
    ) -> None:
        """`app` is how the app is called in messages; `on_end` is called once, after `finish`."""
        self._tasks = tasks
        self._app = app
        self._outbox = outbox
        self._table = table
        self._on_end = on_end
        self._inbox: queue.SimpleQueue[Assignment | None] = queue.SimpleQueue()
        self._places = [_Place(slot) for slot in range(table.places)]
        self._fetcher = Fetcher()
        self._cancels: dict[int, Stop] = {}
        """By serial number, until the job has ended."""
        self._ends = False
        self._left = table.places
        self._left_lock = threading.Lock()
        self._timekeeper = _Timekeeper(self._places)

    def start(self) -> None:
        """Start the threads. Their stacks have the usual size: C code that recurses needs it, and what is
        never touched takes no memory."""
        self._timekeeper.start()
        for place in self._places:
            name = f"ferryman-{place.slot}"
            threading.Thread(target=self._serve, args=(place,), name=name, daemon=True).start()

    def feed(self, assignments: Sequence[Assignment]) -> None:
        """Have these jobs run, in their order."""
        put = self._inbox.put
        for assignment in assignments:
            put(assignment)

    def recall(self) -> list[Assignment]:
        """Take back what no thread has taken. Jobs among them that were cancelled are settled."""
        recalled: list[Assignment] = []
        while (assignment := self._take()) is not None:
            stop = self._cancels.pop(assignment.serial, None)
            if stop is None:
                recalled.append(assignment)
            else:
                self._outbox.settle(judge_cancelled(assignment.claim, stop.reason), 0, idle=False)
        return recalled

    def cancel(self, serial: int, reason: str | None) -> None:
        """Stop a job, or keep it from being started. One that has ended is not disturbed."""
        stop = Stop(Cancelled, reason)
        # Told before looking: its thread sets `_Place.job` before it looks here.
        self._cancels[serial] = stop
        for place in self._places:
            job = place.job
            if job is not None and job.serial == serial:
                _stop(place, job, stop)
            fetching = place.fetching
            if fetching is not None and fetching.serial == serial:
                fetching.answers.put(None)
        if len(self._cancels) > _MAX_CANCELS:
            # Left over from jobs that ended while their cancel was on its way.
            self._cancels.pop(next(iter(self._cancels)))

    def finish(self) -> None:
        """End each thread after its current job; the queue must be empty, so recall first. Jobs whose arguments are
        being fetched are given back."""
        # Told before looking, as in `cancel`.
        self._ends = True
        for place in self._places:
            self._inbox.put(None)
            if (fetching := place.fetching) is not None:
                fetching.answers.put(None)

    def abandon(self, reason: str) -> None:
        """Stop everything: nobody wants the outcomes."""
        self.recall()
        self.finish()
        for place in self._places:
            if (job := place.job) is not None:
                _stop(place, job, Stop(Cancelled, reason))

    def _take(self) -> Assignment | None:
        try:
            return self._inbox.get_nowait()
        except queue.Empty:
            return None

    def _serve(self, place: _Place) -> None:
        take, is_idle, clock = self._inbox.get, self._inbox.empty, time.monotonic_ns
        settle, finish = self._outbox.settle, self._table.finish
        place.thread = threading.get_ident()
        while (assignment := take()) is not None:
            outcome = self._attempt(place, assignment)
            if outcome is None:
                continue
            # The slot first: a job whose outcome cannot be sent yet must not be killed for taking long.
            finish(place.slot)
            if outcome.result is not None:
                outcome = self._stowed(assignment, outcome)
            settle(outcome, clock(), is_idle())
        with self._left_lock:
            self._left -= 1
            is_last = self._left == 0
        if is_last:
            self._timekeeper.end()
            self._on_end()

    def _stowed(self, assignment: Assignment, outcome: Outcome) -> Outcome:
        runnable = self._tasks[assignment.claim.task]
        if not has_large_result(runnable, outcome):
            return outcome
        answers: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        aside(functools.partial(stow, runnable, outcome), answers.put)
        try:
            return answers.get(timeout=patience(runnable, outcome))
        except queue.Empty:
            return outcome

    def _attempt(self, place: _Place, assignment: Assignment) -> Outcome | None:
        """One job in its steps: fetch, decode, run, judge; the caller settles. None if it was given back."""
        claim = assignment.claim
        runnable = self._tasks.get(claim.task)
        if runnable is not None and is_outside(claim):
            fetched = self._fetch(place, assignment, runnable)
            if not isinstance(fetched, Claim):
                return fetched
            claim = fetched
        self._table.start(place.slot, assignment.serial)
        if runnable is None:
            return judge_unknown(claim, self._app)
        try:
            call = runnable.decode(claim)
            overrides = read_overrides(claim.options)
        except BaseException as error:
            return judge_undecodable(claim, error)
        context: Context | None = None
        if runnable.context_type is not None:
            place.cancelled = threading.Event()
            judge = functools.partial(judge_value, runnable, claim, overrides)
            context = runnable.context_type(claim, runnable.app, self._outbox.note, place.cancelled, judge)
            call = runnable.with_context(call, context)
        outcome = self._run(place, assignment, runnable, overrides, call, context)
        if context is not None and context.completed:
            return judge_completed(runnable, overrides, claim, outcome)
        return outcome

    def _fetch(self, place: _Place, assignment: Assignment, runnable: Runnable) -> Claim | Outcome | None:
        """The claim with its arguments, or what becomes of the job without; None if it was given back."""
        claim, serial = assignment.claim, assignment.serial
        self._table.fetch(place.slot, serial)
        place.fetching = _Fetching(serial, queue.SimpleQueue())
        answers = place.fetching.answers
        if self._ends or serial in self._cancels:
            answers.put(None)
        else:
            self._fetcher.ask(place.slot, runnable, claim, answers.put)
        seconds = fetches_within(runnable, claim)
        try:
            fetched = answers.get(timeout=seconds)
        except queue.Empty:
            fetched = judge_late(claim, seconds)
        place.fetching = None
        if isinstance(fetched, Claim):
            return fetched
        stop = self._cancels.pop(serial, None)
        if stop is not None:
            return judge_cancelled(claim, stop.reason)
        if fetched is None:
            self._outbox.post(Kind.RETURNED, [Returned(claim.id, claim.lease)])
        return fetched

    def _run(
        self,
        place: _Place,
        assignment: Assignment,
        runnable: Runnable,
        overrides: Overrides | None,
        call: tuple[Sequence[Any], dict[str, Any]],
        context: Context | None,
    ) -> Outcome:
        claim, function = assignment.claim, runnable.function(context)
        timeout = runnable.timeout_of(overrides)
        value: Any = _NOTHING
        error: BaseException | None = None
        stop: Stop | None = None
        began = time.monotonic_ns()
        try:
            try:
                place.job = assignment
                if timeout:
                    self._timekeeper.watch(place, assignment, timeout)
                if self._cancels and assignment.serial in self._cancels:
                    raise Cancelled
                value = contextvars.Context().run(function, *call[0], **call[1])
            except BaseException as raised:
                error = raised
            place.job = None
            if place.stop is not None:
                stop = _disarm(place)
        except Stopped as stray:
            # It came too late for the task: what the task did counts, unless the handler above lost sight of it.
            if value is _NOTHING and error is None:
                error = stray.__context__ or stray
            stop = _disarm(place)
        ran_us = (time.monotonic_ns() - began) // 1000
        place.deadline = None
        if self._cancels:
            stop = self._cancels.pop(assignment.serial, None) or stop
        if error is None:
            if context is not None and context.completed:
                value = None  # What it returns then is not looked at.
            return judge_value(runnable, claim, overrides, value, ran_us)
        try:
            luck = random.random()  # noqa: S311
            return judge_error(runnable, claim, overrides, error, stop=stop, ran_us=ran_us, luck=luck)
        finally:
            # The exception's traceback holds this frame, and the frame the exception.
            del error


def _stop(place: _Place, job: Assignment, stop: Stop) -> None:
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


def _disarm(place: _Place) -> Stop | None:
    """Make sure that nothing hits the thread from here on. Can be called again if it is hit itself."""
    place.job = None
    with place.lock:
        _raise_in(place.thread, None)
        stop, place.stop = place.stop, None
    return stop


def _raise_in(thread: int, kind: type[Stopped] | None) -> None:
    exception = None if kind is None else ctypes.py_object(kind)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), exception)


class _Timekeeper:
    """A thread that stops jobs whose soft timeout has passed. It sleeps until the next one that may."""

    def __init__(self, places: Sequence[_Place]) -> None:
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

    def watch(self, place: _Place, job: Assignment, timeout: float) -> None:
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
                _stop(place, job, Stop(SoftTimeout))
        return wakes_at
