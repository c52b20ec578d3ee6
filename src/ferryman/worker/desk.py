"""What a worker says to its store: outcomes, notes and claims, in one transaction whenever there is something
to say. Batches are whatever has gathered meanwhile; nothing waits for one to fill."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Sequence
from typing import Any

from ferryman.errors import StoreError
from ferryman.io.operation import Operation, Runner
from ferryman.job import Claim, Outcome, OutcomeKind, WorkerId
from ferryman.policy.priority import strict_plan
from ferryman.store.port import Store, Waker
from ferryman.store.records import Claimed, JobNote, Take

__all__ = ["MOST_JOBS", "Desk"]

log = logging.getLogger("ferryman.worker")

MOST_JOBS = 400
"""Jobs claimed, and outcomes settled, in one transaction at most."""

_DOUBT = 1.0
"""Seconds after a vain claim during which a ring is looked into before it is believed: it may be meant for
workers of other queues."""

_LOOK_WHEN_BUSY = 0.2
"""Seconds between looks into the store while there is a backlog."""

_STILL_DUE = 20
"""ms after which to claim again if a job is due that was not let in: others that are at it hold it up."""

_RETRY_FIRST, _RETRY_MOST = 0.1, 1.0
"""Seconds between tries while the store does not answer, more or less: a fleet shall not come back in step."""


class Desk:
    """Keeps what is to be said until it has been said. Not thread-safe: it is the supervisor's."""

    def __init__(self, store: Store, worker: WorkerId) -> None:
        self.store = store
        self.runner: Runner = store.runner()
        self.waker: Waker = store.waker()
        self.worker = worker
        self.outcomes: list[Outcome] = []
        self.notes: list[JobNote] = []
        self.failed = 0
        """Attempts that failed."""
        self.hungry = True
        """There may be something to claim."""
        self._lanes: set[tuple[str, int]] = set()
        self._claims = 0
        self._vain_claim_at = 0.0
        self._next_due: float | None = None
        self._ahead = 0.0
        """ms by which the store's clock is ahead of ours."""
        self._look_at = 0.0
        self.retry_at = 0.0
        """When to try again, while the store does not answer."""
        self._retry_delay = 0.0
        self._sent = 0
        """How many of the first outcomes have been sent before, and may have been heard, although no answer came."""
        self.doubtful = False
        """A claim has failed: its answer may have been lost, and jobs with it."""

    def close(self) -> None:
        """Let go of the bell; the store is not this desk's to close."""
        self.waker.close()

    # -- when --------------------------------------------------------------------------------------

    def wake_at(self, now: float, *, may_claim: bool) -> float:
        """When `turn` or `look` should be called next."""
        if now < self.retry_at:
            return self.retry_at
        if self.outcomes or self.notes or (self.hungry and may_claim):
            return now
        wake = now + self.waker.poll
        return wake if self._next_due is None else min(wake, self._next_due)

    def ring(self) -> bool:
        """The bell was rung. True if orders wait."""
        self.waker.drain()
        if time.monotonic() - self._vain_claim_at < _DOUBT:
            return self._peek()
        self.hungry = True
        return False

    def look(self, now: float) -> bool:
        """Whether a scheduled job's time has come, or the store has changed without a ring. True if orders wait."""
        if self._next_due is not None and now >= self._next_due:
            self._next_due = None
            self.hungry = True
        elif now >= self._look_at and now >= self.retry_at:
            # With a backlog there is no need to look for work, but still for orders.
            self._look_at = now + _LOOK_WHEN_BUSY if self.hungry else 0.0
            try:
                return self.waker.changed() and self._peek()
            except StoreError as error:
                self.fail(error)
        return False

    def _peek(self) -> bool:
        try:
            signs = self.runner.run(self.store.peek(self.worker))
        except StoreError as error:
            self.fail(error)
            return False
        self.hungry = self.hungry or signs.work
        self._expect(signs.next_due, signs.now)
        return signs.orders

    def _expect(self, due: int | None, now: int) -> None:
        self._ahead = now - time.time() * 1000
        self._next_due = None if due is None else time.monotonic() + max(_STILL_DUE, due - now) / 1000

    def store_time(self) -> float:
        """What the store's clock says by now, in ms, as far as can be told without asking: the machines of a fleet
        need not agree on the time."""
        return time.time() * 1000 + self._ahead

    # -- what --------------------------------------------------------------------------------------

    def turn(self, room: int) -> Sequence[Claim]:
        """Say what there is to say, and claim up to `room` jobs. Answers those.

        Raises WorkerGone if this worker was taken for dead: then nothing was said.
        """
        if time.monotonic() < self.retry_at:
            return ()
        operations: list[Operation[Any]] = []
        notes = self.notes[:MOST_JOBS]
        if notes:
            operations.append(self.store.annotate(self.worker, notes))
        # What a job said of itself goes ahead of its outcome, after which it would be void.
        outcomes = self.outcomes[:MOST_JOBS] if len(notes) == len(self.notes) else []
        if outcomes:
            operations.append(self.store.settle(self.worker, outcomes))
        if room:
            operations.append(self.store.claim(self.worker, self._plan(room), room))
        if not operations:
            return ()
        try:
            answers = self.runner.run_all(operations)
        except StoreError as error:
            self.doubtful = self.doubtful or room > 0
            self._sent = max(self._sent, len(outcomes))
            self.fail(error)
            return ()
        self.recovered()
        del self.notes[: len(notes)]
        if outcomes:
            del self.outcomes[: len(outcomes)]
            self._hear_verdict(outcomes, answers[-2 if room else -1])
            self._sent = max(0, self._sent - len(outcomes))
        return self._learn(answers[-1]) if room else ()

    def _plan(self, room: int) -> list[Take]:
        self._claims += 1
        return [
            Take(queue, priority, count)
            for (queue, priority), count in strict_plan(self._lanes, room, self._claims)
        ]

    def _learn(self, claimed: Claimed) -> Sequence[Claim]:
        new_lanes = {(lane.queue, lane.priority) for lane in claimed.lanes} - self._lanes
        self._lanes |= new_lanes
        self.hungry = bool(claimed.lanes) and bool(claimed.jobs or new_lanes)
        if not claimed.jobs and not new_lanes:
            self._vain_claim_at = time.monotonic()
        self._expect(claimed.next_due, claimed.now)
        return claimed.jobs

    def _hear_verdict(self, outcomes: Sequence[Outcome], accepted: Sequence[bool]) -> None:
        for place, (outcome, kept) in enumerate(zip(outcomes, accepted, strict=True)):
            if kept:
                self.failed += outcome.kind in (OutcomeKind.RETRY, OutcomeKind.DEAD, OutcomeKind.CRASHED)
            elif not outcome.completed and place >= self._sent:
                log.warning("job %s: the outcome came after its lease had ended; it is void", outcome.id)

    # -- trouble -----------------------------------------------------------------------------------

    def fail(self, error: StoreError) -> None:
        """The store did not do its part: keep everything, and try again, sooner at first."""
        if not self._retry_delay:
            log.error("the store does not answer, will try again: %s", error)
        self._retry_delay = min(_RETRY_MOST, self._retry_delay * 2 or _RETRY_FIRST)
        self.retry_at = time.monotonic() + self._retry_delay * (0.5 + random.random())  # noqa: S311

    def recovered(self) -> None:
        """The store has answered."""
        if self._retry_delay:
            log.warning("the store answers again")
            self._retry_delay = 0.0

    def forget(self, worker: WorkerId) -> None:
        """Start over as another worker: what was to be said about the old one's jobs is void."""
        self.worker = worker
        self.outcomes.clear()
        self.notes.clear()
        self._sent = 0
        self.doubtful = False
        self.hungry = True
