"""What a worker says to its store: outcomes, notes and claims, in one transaction whenever there is something
to say. Batches are whatever has gathered meanwhile; nothing waits for one to fill."""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Sequence
from typing import Any

from ferryman.errors import StoreBusy, StoreError
from ferryman.io.operation import Operation, Runner
from ferryman.job import Claim, JobId, OutcomeKind, WorkerId
from ferryman.policy.priority import strict_plan
from ferryman.store.port import Store, Waker
from ferryman.store.records import Claimed, Take
from ferryman.worker.storeclock import StoreClock
from ferryman.worker.unsaid import Sayings, Unsaid, plainly

__all__ = ["MOST_JOBS", "Desk", "is_refusal"]

log = logging.getLogger("ferryman.worker")

MOST_JOBS = 400
"""Jobs claimed in one transaction at most."""

_DOUBT = 1.0
"""Seconds after a vain claim during which a ring is looked into before it is believed: it may be meant for
workers of other queues."""

_LOOK_WHEN_BUSY = 0.2
"""Seconds between looks into the store while there is a backlog."""

_STILL_DUE = 20
"""ms after which to claim again if a job is due that was not let in: others that are at it hold it up."""

_QUIET = 0.2
"""Seconds for which no notes are said, when somebody's open transaction has the row of one of their jobs."""

_MOST_IN_DOUBT = 10
"""Refused outcomes from which on no other job is run to find out whether it is they that are at fault."""

_DOUBTS = 5
"""How often an outcome is refused before it is said in other words."""

_RETRY_FIRST, _RETRY_MOST = 0.1, 1.0
"""Seconds between tries while the store does not answer, more or less: a fleet shall not come back in step."""


class Desk:
    """Keeps what is to be said until it has been said. Not thread-safe: it is the supervisor's."""

    def __init__(self, store: Store, worker: WorkerId, heartbeat: float = 5.0) -> None:
        """`heartbeat`: seconds between those of this worker, by which it renews its leases."""
        self.store = store
        self.runner: Runner = store.runner()
        self.waker: Waker = store.waker()
        self.worker = worker
        self._heartbeat = heartbeat
        self.unsaid = Unsaid()
        self.failed = 0
        """Attempts that failed."""
        self.hungry = True
        """There may be something to claim."""
        self._lanes: set[tuple[str, int]] = set()
        self._claims = 0
        self._vain_claim_at = 0.0
        self._next_due: float | None = None
        self.clock = StoreClock()
        self.back_at = -math.inf
        """When the store was found to answer again after it had not for longer than a heartbeat, or a clock to have
        been set."""
        self._away_since: float | None = None
        self._look_at = 0.0
        self.retry_at = 0.0
        """When to try again, while the store does not answer."""
        self._retry_delay = 0.0
        self._quiet_until = 0.0
        self._sent = 0
        """How many of the first outcomes have been sent before, and may have been heard, although no answer came."""
        self._refused = False
        """What was said last has been refused, for whatever reason."""
        self._accepted = 0
        """Outcomes that were accepted one by one."""
        self._doubts: dict[tuple[JobId, int, bool], list[int]] = {}
        """Of what was refused by itself: how many others had been accepted before, and how often it was."""
        self.given_up: set[tuple[JobId, int]] = set()
        """Leases of whose end the store wants to hear in no words."""
        self.doubtful = False
        """A claim has failed: its answer may have been lost, and jobs with it."""

    @property
    def is_away(self) -> bool:
        """Whether the store does not answer at all. One that refuses what was said of a job is there."""
        return self._away_since is not None

    @property
    def is_stuck(self) -> bool:
        """Whether all that is left has been refused again and again. While others' outcomes come, these tell whose fault
        that is; at the end of a worker none do."""
        return bool(self._doubts) and all(
            times >= _DOUBTS and accepted_before == self._accepted
            for accepted_before, times in self._doubts.values()
        )

    def close(self) -> None:
        """Let go of the bell; the store is not this desk's to close."""
        self.waker.close()

    # -- when --------------------------------------------------------------------------------------

    def wake_at(self, now: float, *, may_claim: bool) -> float:
        """When `turn` or `look` should be called next."""
        if now < self.retry_at:
            return self.retry_at
        is_quiet = now < self._quiet_until
        says = self.unsaid.next_without_notes().outcomes if is_quiet else self.unsaid
        if says or (self.hungry and may_claim):
            return now
        wake = self._quiet_until if self.unsaid else now + self.waker.poll
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
        if self.clock.learn(now):
            self.back_at = time.monotonic()
        self._next_due = None if due is None else time.monotonic() + max(_STILL_DUE, due - now) / 1000

    def watch_clock(self) -> None:
        """If this machine's clock has been set, leases may seem to have ended: others need time to say that they live, and
        this worker says so itself although it has nothing to ask."""
        if self.clock.was_set_here():
            self.back_at = time.monotonic()

    # -- what --------------------------------------------------------------------------------------

    def turn(self, room: int) -> Sequence[Claim]:
        """Say what there is to say, and claim up to `room` jobs. Answers those.

        Raises WorkerGone if this worker was taken for dead: then nothing was said.
        """
        if time.monotonic() < self.retry_at:
            return ()
        said = self._next(time.monotonic())
        if self._refused and any(said):
            return self._turn_one_by_one(said, room)
        operations: list[Operation[Any]] = []
        if said.notes:
            operations.append(self.store.annotate(self.worker, said.notes))
        if said.outcomes:
            operations.append(self.store.settle(self.worker, said.outcomes))
        if room:
            operations.append(self.store.claim(self.worker, self._plan(room), room))
        if not operations:
            return ()
        try:
            answers = self.runner.run_all(operations)
        except StoreError as error:
            if isinstance(error, StoreBusy) and said.notes:
                # Nothing was done. Outcomes and claims need not wait for what a job has to say of itself.
                self._quiet_until = time.monotonic() + _QUIET
                return ()
            self.doubtful = self.doubtful or room > 0
            self._sent = max(self._sent, len(said.outcomes))
            self._refused = is_refusal(error)
            self.fail(error)
            return ()
        self.recovered()
        self._refused = False
        self._hear_verdict(said, answers[-2 if room else -1] if said.outcomes else ())
        return self._learn(answers[-1]) if room else ()

    def _next(self, now: float) -> Sayings:
        return self.unsaid.next() if now >= self._quiet_until else self.unsaid.next_without_notes()

    def _turn_one_by_one(self, said: Sayings, room: int) -> Sequence[Claim]:
        """After a refusal, which may be of what a single job said: each by itself, so that the others are heard."""
        refusals: list[tuple[Sayings, StoreError]] = []
        claims: Sequence[Claim] = ()
        try:
            for part in said.parts():
                try:
                    self._say(part)
                    self._accepted += len(part.outcomes)
                    self._doubts.pop(part.what, None)
                except StoreError as error:
                    if not is_refusal(error):
                        raise
                    self.unsaid.heard(part)
                    refusals.append((part, error))
                    self._doubts.setdefault(part.what, [self._accepted, 0])[1] += 1
            # If the store refuses how any job ends, no more shall be run than it takes to find that out.
            doubted = [part for part, error in refusals if not isinstance(error, StoreBusy)]
            if doubted and not all(self._is_at_fault(part) for part in doubted):
                is_worth_a_try = len(doubted) == 1 or (self.is_stuck and len(doubted) < _MOST_IN_DOUBT)
                room = min(room, 1) if is_worth_a_try else 0
            if room:
                claims = self._learn(self.runner.run(self.store.claim(self.worker, self._plan(room), room)))
        except StoreError as error:
            self.doubtful = self.doubtful or room > 0
            self._sent = max(self._sent, 1)
            self.fail(error)
        else:
            if refusals:
                self.fail(refusals[0][1])
            else:
                self.recovered()
        self._refused = bool(refusals)
        for part, refusal in reversed(refusals):
            self._doubt(part, refusal)
        return claims

    def _is_at_fault(self, part: Sayings) -> bool:
        """Whether other jobs' outcomes have been accepted since this was refused for the first time."""
        return self._doubts[part.what][0] < self._accepted

    def _doubt(self, part: Sayings, refusal: StoreError) -> None:
        """It was refused by itself. If that goes on while the outcomes of others are accepted, an outcome is said in
        plain words, and what cannot be put more plainly is not said any more."""
        if isinstance(refusal, StoreBusy):
            # That passes, and is no fault of what was said.
            self._doubts[part.what][1] = 0
        if not self._is_at_fault(part) or self._doubts[part.what][1] < _DOUBTS:
            self.unsaid.put_back(part)
            return
        del self._doubts[part.what]
        log.error("the store refuses what was said of job %s: %s", part.what[0], refusal)
        for outcome in part.outcomes:
            plain = plainly(outcome, refusal)
            if plain != outcome:
                self.unsaid.outcomes.append(plain)
            else:
                self.given_up.add((outcome.id, outcome.lease))

    def _say(self, said: Sayings) -> None:
        accepted: list[bool] = []
        if said.notes:
            self.runner.run(self.store.annotate(self.worker, said.notes))
        if said.outcomes:
            accepted = self.runner.run(self.store.settle(self.worker, said.outcomes))
        self._hear_verdict(said, accepted)

    def say_the_rest(self, give_up: float) -> bool:
        """Say all that there is, before the end. False if some of it could not be said until then, by
        `time.monotonic`."""
        while self.unsaid:
            if not self.await_retry(give_up):
                return False
            self.turn(0)
        return True

    def await_retry(self, give_up: float) -> bool:
        """Wait until there is something to say that the store may take. False if it is later than `give_up`."""
        now, again = time.monotonic(), self.retry_at
        if not self.unsaid.next_without_notes().outcomes:
            again = max(again, self._quiet_until)
        time.sleep(max(0.0, min(again, give_up) - now))
        return now <= give_up

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

    def _hear_verdict(self, said: Sayings, accepted: Sequence[bool]) -> None:
        self.unsaid.heard(said)
        for place, (outcome, kept) in enumerate(zip(said.outcomes, accepted, strict=True)):
            if kept:
                self.failed += outcome.kind in (OutcomeKind.RETRY, OutcomeKind.DEAD, OutcomeKind.CRASHED)
            elif not outcome.completed and place >= self._sent:
                log.warning("job %s: the outcome came after its lease had ended; it is void", outcome.id)
        self._sent = max(0, self._sent - len(said.outcomes))

    # -- trouble -----------------------------------------------------------------------------------

    def fail(self, error: StoreError) -> None:
        """The store did not do its part: keep everything, and try again, sooner at first."""
        if not self._retry_delay:
            log.error("the store does not answer, will try again: %s", error)
        if is_refusal(error):
            self.answered()  # It refuses, so it is there.
        elif self._away_since is None:
            self._away_since = time.monotonic()
        self._retry_delay = min(_RETRY_MOST, self._retry_delay * 2 or _RETRY_FIRST)
        self.retry_at = time.monotonic() + self._retry_delay * (0.5 + random.random())  # noqa: S311

    def recovered(self) -> None:
        """The store has done what it was asked."""
        if self._retry_delay:
            log.warning("the store answers again")
            self._retry_delay = 0.0
        self.answered()

    def answered(self) -> None:
        """The store is there."""
        if self._away_since is not None:
            now = time.monotonic()
            if now - self._away_since > self._heartbeat:
                self.back_at = now
            self._away_since = None

    def forget(self, worker: WorkerId) -> None:
        """Start over as another worker: what was to be said about the old one's jobs is void."""
        self.worker = worker
        self.unsaid.clear()
        self._doubts.clear()
        self.given_up.clear()
        self._refused = False
        self._sent = 0
        self.doubtful = False
        self.hungry = True


def is_refusal(error: StoreError) -> bool:
    """Whether the store is there, but does not take what it was told, now or ever."""
    return type(error) is StoreError or isinstance(error, StoreBusy)
