"""The track of ``def`` tasks: threads that take jobs in order from one queue, and of which one listens for all.

Who listens
-----------
A thread that is woken costs a job as much time as all else in its executor. So no thread is there to listen alone; they
take turns, as leader and followers (Schmidt, O'Ryan, Kircher and Pyarali, 2000). The leader waits for what the
supervisor says. If it is a job, no other waits, and there are threads for all that are not done, the leader calls a
follower to lead, and runs the job itself. There is one thread more than places: whatever the others run, one listens.
"""

from __future__ import annotations

import contextlib
import contextvars
import enum
import functools
import queue
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from typing import Any

from ferryman.context import Cancelled, Context, Stopped
from ferryman.job import Claim, Outcome
from ferryman.options import Overrides
from ferryman.worker.frames import Assignment, Kind, Returned
from ferryman.worker.gangway import Gangway
from ferryman.worker.judge import (
    Stop,
    judge_begun_before,
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
from ferryman.worker.stopping import Fetching, Place, Timekeeper, disarm, stop_job

__all__ = ["ThreadTrack"]

_MAX_CANCELS = 10_000
_NOTHING = object()


class _Call(enum.Enum):
    """What a thread may find in the queue in place of a job."""

    LEAD = enum.auto()
    END = enum.auto()


class ThreadTrack:
    """Its methods are for who leads, from inside `listen`; and for anybody once `listen` has answered False. `feed` and
    `take_back` are for anybody, if there is a `Gangway`: that has a lock."""

    def __init__(
        self,
        tasks: Mapping[str, Runnable],
        app: str,
        outbox: Outbox,
        table: SlotTable,
        gangway: Gangway | None,
        listen: Callable[[], bool],
        on_end: Callable[[], None],
    ) -> None:
        """`app` is how the app is called in messages. `gangway` must know of each job that is done, and then no more
        jobs are fed than there are places. `listen` waits for what is said next, and obeys it; once it has
        answered False it is not called again. `on_end` is called once, after `finish`."""
        self._tasks = tasks
        self._app = app
        self._outbox = outbox
        self._table = table
        self._gangway = gangway
        self._listen = listen
        self._on_end = on_end
        self.all_said: Future[None] = Future()
        """Done when nothing more will be heard; or an exception of a thread that should not have ended."""
        self._inbox: queue.SimpleQueue[Assignment | _Call] = queue.SimpleQueue()
        self._heard: list[Assignment] = []
        """By the leader, just now, and not put into the queue yet."""
        self._leader = 0
        """The thread that listens."""
        self._lock = threading.Lock() if gangway is None else gangway.lock
        """Whoever feeds or takes back has it, if there is anybody but the leader."""
        self._places = [Place(slot) for slot in table.slots_of("thread")]
        """One for each thread: so the serial numbers that a slot shows only grow."""
        self._most = table.places
        self._given = 0
        """Jobs that were fed; those that were taken back are not counted."""
        self._done = [0] * len(self._places)
        """How many of them each thread has had done."""
        self._fetcher = Fetcher(table.places)
        self._cancels: dict[int, Stop] = {}
        """By serial number, until the job has ended."""
        self._ends = False
        self._abandoned: Stop | None = None
        self._left = table.places
        self._left_lock = threading.Lock()
        self._timekeeper = Timekeeper(self._places)

    def start(self) -> None:
        """Start the threads, or none if there cannot be so many. Their stacks have the usual size: C code that
        recurses needs it, and what is never touched takes no memory."""
        self._timekeeper.start()
        try:
            for place in self._places:
                name = f"ferryman-{place.slot}"
                threading.Thread(target=self._serve, args=(place,), name=name, daemon=True).start()
        except RuntimeError:
            for _ in self._places:
                self._inbox.put(_Call.END)
            self._timekeeper.end()
            raise

    def listen(self) -> None:
        """Hear from now on what is said."""
        self._inbox.put(_Call.LEAD)

    def feed(self, assignments: Sequence[Assignment]) -> None:
        """Have these jobs run, in their order."""
        self._given += len(assignments)
        if self._heard or threading.get_ident() == self._leader:
            # What came while the leader listens waits until it knows which of them it runs itself: a thread that is
            # woken for it might not run it later than one behind it.
            self._heard += assignments
            return
        for each in assignments:
            self._inbox.put(each)

    def take_back(self) -> list[Assignment]:
        """What no thread has taken."""
        if self._ends:
            return []  # All was taken back before. What is in the queue now are the threads' calls to end.
        waiting: list[Assignment] = []
        with contextlib.suppress(queue.Empty):
            while True:
                found = self._inbox.get_nowait()
                if not isinstance(found, _Call):
                    waiting.append(found)
        waiting += self._heard
        self._heard.clear()
        self._given -= len(waiting)
        return waiting

    def forget_cancel(self, serial: int) -> Stop | None:
        """Why a job was cancelled that was taken back, if it was."""
        return self._cancels.pop(serial, None)

    def cancel(self, serial: int, reason: str | None) -> None:
        """Stop a job, or keep it from being started. One that has ended is not disturbed."""
        stop = Stop(Cancelled, reason)
        # Told before looking: its thread sets `Place.job` before it looks here.
        self._cancels[serial] = stop
        for place in self._places:
            job = place.job
            if job is not None and job.serial == serial:
                stop_job(place, job, stop)
            fetching = place.fetching
            if fetching is not None and fetching.serial == serial:
                fetching.answers.put(None)
        if len(self._cancels) > _MAX_CANCELS:
            # Left over from jobs that ended while their cancel was on its way.
            self._cancels.pop(next(iter(self._cancels)))

    def finish(self) -> None:
        """End each thread but the leader after its current job; the queue must be empty, so take back first. Jobs whose
        arguments are being fetched are given back."""
        # Told before looking, as in `cancel`.
        self._ends = True
        for _ in range(self._most):
            self._inbox.put(_Call.END)
        for place in self._places:
            if (fetching := place.fetching) is not None:
                fetching.answers.put(None)

    def abandon(self, reason: str) -> None:
        """Stop everything, as `finish`: nobody wants the outcomes."""
        # Told before looking, as in `cancel`.
        self._abandoned = Stop(Cancelled, reason)
        self.finish()
        for place in self._places:
            if (job := place.job) is not None:
                stop_job(place, job, self._abandoned)

    def _serve(self, place: Place) -> None:
        try:
            self._take_turns(place)
        except BaseException as error:
            # Perhaps it was to listen, and nobody does now.
            with contextlib.suppress(InvalidStateError):
                self.all_said.set_exception(error)

    def _take_turns(self, place: Place) -> None:
        take, clock = self._inbox.get, time.monotonic_ns
        settle, finish = self._outbox.settle, self._table.finish
        done, number, gangway = self._done, place.slot, self._gangway
        place.thread = threading.get_ident()
        while (found := take()) is not _Call.END:
            assignment = self._lead() if found is _Call.LEAD else found
            if assignment is None:
                self.all_said.set_result(None)
                return
            outcome = self._attempt(place, assignment)
            if outcome is None:
                done[number] += 1
                if gangway is not None:
                    gangway.leave()
                continue
            # The slot first: a job whose outcome cannot be sent yet must not be killed for taking long.
            finish(number)
            if outcome.result is not None:
                outcome = self._stowed(assignment, outcome)
            done[number] += 1
            idle = self._given - sum(done) < self._most if gangway is None else gangway.leave()
            settle(outcome, clock(), idle)
        self._count_down()

    def _lead(self) -> Assignment | None:
        """Listen for all until there is a job for this thread itself, and another one leads. None: all has been said."""
        self._leader = threading.get_ident()
        while self._listen():
            if self._heard and (own := self._hand_out()) is not None:
                self._leader = 0
                self._inbox.put(_Call.LEAD)
                return own
        return None

    def _hand_out(self) -> Assignment | None:
        """Put what was heard into the queue, but for a job that the leader runs itself."""
        with self._lock:
            heard, self._heard = self._heard, []
            own = None
            # None that waits may be started after a later one. And of so few, each has a thread, as has the call to lead.
            if self._inbox.empty() and self._given - sum(self._done) <= self._most:
                own, *heard = heard
            for assignment in heard:
                self._inbox.put(assignment)
        return own

    def _count_down(self) -> None:
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

    def _attempt(self, place: Place, assignment: Assignment) -> Outcome | None:
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
        if runnable.at_most_once and claim.attempt > 1:
            return judge_begun_before(claim)
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

    def _fetch(self, place: Place, assignment: Assignment, runnable: Runnable) -> Claim | Outcome | None:
        """The claim with its arguments, or what becomes of the job without; None if it was given back."""
        claim, serial = assignment.claim, assignment.serial
        self._table.fetch(place.slot, serial)
        place.fetching = Fetching(serial, queue.SimpleQueue())
        answers = place.fetching.answers
        if self._ends or serial in self._cancels:
            answers.put(None)
        else:
            self._fetcher.ask(runnable, claim, answers.put)
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
        place: Place,
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
                if self._abandoned or (self._cancels and assignment.serial in self._cancels):
                    raise Cancelled
                value = contextvars.Context().run(function, *call[0], **call[1])
            except BaseException as raised:
                error = raised
            place.job = None
            if place.stop is not None:
                stop = disarm(place)
        except Stopped as stray:
            # It came too late for the task: what the task did counts, unless the handler above lost sight of it.
            if value is _NOTHING and error is None:
                error = stray.__context__ or stray
            stop = disarm(place)
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
