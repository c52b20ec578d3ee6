"""The track of ``async def`` tasks: one event loop in one thread, with so many jobs at once as there are places.

All state belongs to the loop's thread, save the queue of what waits, which is filled from the gangway and may be taken
back.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import contextvars
import functools
import logging
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from ferryman.context import Cancelled, Context, SoftTimeout
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

__all__ = ["LoopTrack"]

log = logging.getLogger("ferryman.worker")

_LAST_STEPS = 1.0
"""Seconds that asynchronous generators, which tasks have left, get to end."""

T = TypeVar("T")


class _Run:
    """A job that was started."""

    __slots__ = ("assignment", "cancelled", "context", "overrides", "runnable", "slot", "stop", "task")

    def __init__(
        self, assignment: Assignment, slot: int, runnable: Runnable, overrides: Overrides | None
    ) -> None:
        self.assignment = assignment
        self.slot = slot
        self.runnable = runnable
        self.overrides = overrides
        self.task: asyncio.Task[None] | None = None
        """Set once its first step was taken."""
        self.stop: Stop | None = None
        self.cancelled: threading.Event | None = None
        self.context: Context | None = None


class LoopTrack:
    """Its methods are for the reader, `feed` and `take_back` for whoever has the lock of the `Gangway`."""

    def __init__(
        self,
        tasks: Mapping[str, Runnable],
        outbox: Outbox,
        table: SlotTable,
        gangway: Gangway,
        on_end: Callable[[], None],
        on_fault: Callable[[], None],
    ) -> None:
        """`gangway` must know of each job that is done, and feeds no more than there are places. `on_end` is called once, after `finish`; or `on_fault`, if the loop cannot go on and its jobs are stuck."""
        self._tasks = tasks
        self._outbox = outbox
        self._table = table
        self._gangway = gangway
        self._on_end = on_end
        self._on_fault = on_fault
        self._waiting: collections.deque[Assignment] = collections.deque()
        self._free = list(reversed(table.slots_of("loop")))
        self._runs: dict[int, _Run] = {}
        self._cancels: dict[int, Stop] = {}
        """By serial number, of jobs that have not been started."""
        self._fetcher = Fetcher(table.places)
        self._fetching: dict[int, asyncio.Future[Claim | Outcome | None]] = {}
        """By serial number, arguments on their way from a place outside the store."""
        self._stowing: set[asyncio.Future[Outcome | None]] = set()
        """Results on their way there."""
        self._fills_soon = False
        self._context = contextvars.Context()
        self._ends = False
        self._ended = False
        self._loop: asyncio.AbstractEventLoop

    def start(self) -> None:
        """Start the loop's thread. To be called ahead of all else."""
        self._loop = asyncio.new_event_loop()
        try:
            threading.Thread(target=self._serve, name="ferryman-loop", daemon=True).start()
        except RuntimeError:
            self._loop.close()
            raise

    def feed(self, assignments: Sequence[Assignment]) -> None:
        """Have these jobs run, in their order."""
        self._waiting.extend(assignments)
        if not self._fills_soon:
            self._fills_soon = True
            self._call(self._fill)

    def take_back(self) -> list[Assignment]:
        """What has not been started."""
        waiting: list[Assignment] = []
        with contextlib.suppress(IndexError):  # The loop may be quicker.
            while self._waiting:
                waiting.append(self._waiting.popleft())
        return waiting

    def forget_cancel(self, serial: int) -> Stop | None:
        """Why a job was cancelled that was taken back, if it was."""
        return self._cancels.pop(serial, None)

    def cancel(self, serial: int, reason: str | None) -> None:
        """Stop a job, or keep it from being started. One that has ended is not disturbed."""
        self._call(self._cancel, serial, Stop(Cancelled, reason))

    def answer(self, ping: int) -> bool:
        """Answer a ping as soon as no task blocks the loop. False if it has ended."""
        return self._call(self._outbox.post, Kind.PONG, ping)

    def finish(self) -> None:
        """End the loop after the current jobs; nothing may wait, so take back first. Jobs whose arguments are being
        fetched are given back."""
        self._call(self._finish)

    def abandon(self, reason: str) -> None:
        """Stop everything, as `finish`: nobody wants the outcomes."""
        self._call(self._abandon, Stop(Cancelled, reason))

    def _call(self, function: Callable[..., None], *args: Any) -> bool:
        with contextlib.suppress(RuntimeError):  # The loop has ended, and with it all its jobs.
            self._loop.call_soon_threadsafe(function, *args)
            return True
        return False

    # -- in the loop's thread --------------------------------------------------------------------------

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            while not self._ended:
                # A task of a task that raises SystemExit, and anybody who calls `stop`, leaves the loop; the jobs are
                # still in it.
                with contextlib.suppress(SystemExit, KeyboardInterrupt):
                    self._loop.run_forever()
        except BaseException:
            # Memory may have run out in the loop itself. Nobody knows which jobs it has lost.
            self._on_fault()
            log.critical("the executor stops: its event loop has failed", exc_info=True)
            return
        with contextlib.suppress(BaseException):
            self._loop.run_until_complete(self._last_steps())
        self._loop.close()
        self._on_end()

    async def _last_steps(self) -> None:
        """Let generators end, cancel their end if it takes long, and wait no longer if they do not care."""
        closing = self._loop.create_task(self._loop.shutdown_asyncgens())
        await asyncio.wait([closing], timeout=_LAST_STEPS)
        if not closing.done():
            closing.cancel()
            await asyncio.wait([closing], timeout=_LAST_STEPS)

    def _fill(self) -> None:
        # Ahead of the look: whoever feeds later calls again.
        self._fills_soon = False
        while self._waiting:
            try:
                assignment = self._waiting.popleft()
            except IndexError:
                break  # The reader has taken it back.
            self._start(assignment, self._free.pop())
        if not self._gangway.is_crowded:
            self._outbox.flush()
        is_idle = not (self._runs or self._fetching or self._stowing)
        if self._ends and is_idle and not self._ended:  # Another stop would cut the last steps short.
            self._ended = True
            self._loop.stop()

    def _start(self, assignment: Assignment, slot: int) -> None:
        claim = assignment.claim
        if not is_outside(claim):
            self._begin(assignment, slot, claim)
            return
        if (stop := self._cancels.pop(assignment.serial, None)) is not None:
            self._settle(slot, judge_cancelled(claim, stop.reason))
            return
        self._table.fetch(slot, assignment.serial)
        runnable = self._tasks[claim.task]
        seconds = fetches_within(runnable, claim)
        fetching: asyncio.Future[Claim | Outcome | None] = self._loop.create_future()
        self._fetching[assignment.serial] = fetching
        late = self._loop.call_later(seconds, _answer, fetching, judge_late(claim, seconds))
        fetching.add_done_callback(lambda _: late.cancel())
        fetching.add_done_callback(lambda done: self._fetched(assignment, slot, done.result()))
        self._fetcher.ask(runnable, claim, lambda answer: self._call(_answer, fetching, answer))

    def _fetched(self, assignment: Assignment, slot: int, fetched: Claim | Outcome | None) -> None:
        """The claim with its arguments, or what becomes of the job without; None if it was called away."""
        claim = assignment.claim
        del self._fetching[assignment.serial]
        if isinstance(fetched, Claim):
            self._begin(assignment, slot, fetched)
        elif (stop := self._cancels.pop(assignment.serial, None)) is not None:
            self._settle(slot, judge_cancelled(claim, stop.reason))
        elif fetched is None:
            self._outbox.post(Kind.RETURNED, [Returned(claim.id, claim.lease)])
            self._leave(slot)
        else:
            self._settle(slot, fetched)

    def _aside(self, call: Callable[[], T]) -> asyncio.Future[T | None]:
        """What a call returns that never raises and may hang. None if nobody waits for it any more."""
        future: asyncio.Future[T | None] = self._loop.create_future()
        aside(call, lambda answer: self._call(_answer, future, answer))
        return future

    def _begin(self, assignment: Assignment, slot: int, claim: Claim) -> None:
        """Decode, and have it run."""
        self._table.start(slot, assignment.serial)
        runnable = self._tasks[claim.task]
        if runnable.at_most_once and claim.attempt > 1:
            self._settle(slot, judge_begun_before(claim))
            return
        try:
            call = runnable.decode(claim)
            overrides = read_overrides(claim.options)
        except BaseException as error:
            self._settle(slot, judge_undecodable(claim, error))
            return
        run = _Run(assignment, slot, runnable, overrides)
        run.stop = self._cancels.pop(assignment.serial, None)
        if runnable.context_type is not None:
            run.cancelled = threading.Event()
            judge = functools.partial(judge_value, runnable, claim, overrides)
            run.context = runnable.context_type(claim, runnable.app, self._outbox.note, run.cancelled, judge)
            call = runnable.with_context(call, run.context)
        self._runs[assignment.serial] = run
        # A context of its own: else a job would inherit the variables of the one in whose wake it is started.
        task = self._loop.create_task(self._run(run, *call), context=contextvars.Context())
        task.add_done_callback(functools.partial(self._left, run))

    async def _run(self, run: _Run, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """Run, judge and settle."""
        claim, runnable, overrides = run.assignment.claim, run.runnable, run.overrides
        timer = None
        began = time.monotonic_ns()
        try:
            if run.stop is not None:
                raise Cancelled
            run.task = asyncio.current_task()
            timeout = runnable.timeout_of(overrides)
            if timeout:
                timer = self._loop.call_later(timeout, self._stop, run, Stop(SoftTimeout))
            value = await runnable.function(run.context)(*args, **kwargs)
        except BaseException as error:
            ran_us = (time.monotonic_ns() - began) // 1000
            luck = random.random()  # noqa: S311
            outcome = judge_error(runnable, claim, overrides, error, stop=run.stop, ran_us=ran_us, luck=luck)
        else:
            ran_us = (time.monotonic_ns() - began) // 1000
            if run.context is not None and run.context.completed:
                value = None  # What it returns then is not looked at.
            outcome = judge_value(runnable, claim, overrides, value, ran_us)
        if timer is not None:
            timer.cancel()
        if run.context is not None and run.context.completed:
            outcome = judge_completed(runnable, overrides, claim, outcome)
        # Nobody may stop it any more.
        del self._runs[run.assignment.serial]
        if has_large_result(runnable, outcome):
            outcome = await self._stowed(run, outcome)
        self._settle(run.slot, outcome)

    def _left(self, run: _Run, task: asyncio.Task[None]) -> None:
        """A job's task is done."""
        if self._runs.pop(run.assignment.serial, None) is not None:
            # It has not settled it: one that is cancelled ahead of its first step is dropped by asyncio without a word.
            claim, luck = run.assignment.claim, random.random()  # noqa: S311
            error = (None if task.cancelled() else task.exception()) or asyncio.CancelledError()
            self._settle(
                run.slot,
                judge_error(run.runnable, claim, run.overrides, error, stop=run.stop, ran_us=0, luck=luck),
            )

    async def _stowed(self, run: _Run, outcome: Outcome) -> Outcome:
        # It has ended: it must not be killed for taking long.
        self._table.finish(run.slot)
        stowing = self._aside(functools.partial(stow, run.runnable, outcome))
        self._stowing.add(stowing)
        try:
            deadline = patience(run.runnable, outcome)
            while not stowing.done():
                with contextlib.suppress(asyncio.CancelledError):  # Meant for the task, which has ended.
                    await asyncio.wait([stowing], timeout=deadline)
                    break
        finally:
            self._stowing.discard(stowing)
        return (stowing.result() if stowing.done() else None) or outcome

    def _settle(self, slot: int, outcome: Outcome) -> None:
        self._table.finish(slot)
        self._outbox.settle(outcome, time.monotonic_ns(), idle=False)
        self._leave(slot)

    def _leave(self, slot: int) -> None:
        """Make room for another job."""
        self._free.append(slot)
        if not self._fills_soon:
            # Outcomes of jobs that end in the same round of the loop are sent together.
            self._fills_soon = True
            self._loop.call_soon(self._fill, context=self._context)
        self._gangway.leave()

    def _cancel(self, serial: int, stop: Stop) -> None:
        run = self._runs.get(serial)
        if run is not None:
            self._stop(run, stop)
        elif serial in self._fetching:
            self._cancels[serial] = stop
            _answer(self._fetching[serial], None)
        elif any(each.serial == serial for each in self._waiting.copy()):
            self._cancels[serial] = stop

    def _stop(self, run: _Run, stop: Stop) -> None:
        before = run.stop
        if before is None or stop.kind is Cancelled:
            run.stop = stop
        if before is None:
            if run.cancelled is not None:
                run.cancelled.set()
            if run.task is not None:
                run.task.cancel()

    def _finish(self) -> None:
        self._ends = True
        for fetching in self._fetching.values():
            _answer(fetching, None)
        self._fill()

    def _abandon(self, stop: Stop) -> None:
        for run in list(self._runs.values()):
            self._stop(run, stop)
        for stowing in self._stowing:
            _answer(stowing, None)
        self._finish()


def _answer(future: asyncio.Future[T], answer: T) -> None:
    """The first answer counts."""
    if not future.done():
        future.set_result(answer)
