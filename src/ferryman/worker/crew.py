"""The executors of a worker: how many there are, who gets which jobs, and what becomes of those of a lost one."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Iterable, Sequence

from ferryman.config import WorkerSettings
from ferryman.errors import FerrymanError
from ferryman.job import Claim, ErrorInfo, JobId, Outcome, OutcomeKind
from ferryman.policy.prefetch import share
from ferryman.worker.frames import Kind, Returned, TaskFacts
from ferryman.worker.member import Casualty, Launch, Member

__all__ = ["Crew"]

log = logging.getLogger("ferryman.worker")

_RELIEF = 2
"""Executors started beyond the usual number, at most, while all others are stalled."""

_RELIEF_AFTER = 0.3
"""Seconds for which all must have been stalled: many an ``async def`` task blocks its loop for a moment."""

_RELIEF_IDLE = 10.0
"""Seconds without a job after which a relief executor is let go."""

_HIRE_AGAIN = 1.0
"""Seconds between starts of executors that die before they have said hello."""


class Crew:
    """All executors of one worker. Not thread-safe: it is the supervisor's."""

    def __init__(self, launch: Launch, settings: WorkerSettings) -> None:
        self._launch = launch
        self.settings = settings
        self.members: list[Member] = []
        self.facts: dict[str, TaskFacts] = {}
        self.shape = _shape(settings)
        """How many places each executor has; together they are as many as jobs may run at once."""
        self._hire_at = 0.0
        self._is_outdated = False
        """All executors are to be replaced as soon as others can be started."""
        self._complaint: str | None = None
        """Why an executor could not be started, as long as none can."""
        self._held_since: float | None = None
        """Since when all executors are stalled."""

    def adopt(self, settings: WorkerSettings) -> None:
        """These settings hold. An executor that was started for another number of places is replaced."""
        self.settings = settings
        self.shape = _shape(settings)
        if any(member.places not in self.shape for member in self.members):
            self.renew()

    # -- hiring ------------------------------------------------------------------------------------

    def hire(self, shape: Iterable[int], *, relief: bool = False) -> None:
        """Start an executor of so many places each; they are of use once they have said hello."""
        for places in shape:
            member = Member(self._launch(places), places)
            member.relief = relief
            self.members.append(member)

    def fill(self) -> None:
        """Start those that are missing."""
        if time.monotonic() < self._hire_at:
            return
        if self._is_outdated:
            self.renew()
        else:
            staying = (member.places for member in self.members if not (member.retiring or member.relief))
            self._try_to_hire((Counter(self.shape) - Counter(staying)).elements())

    def _try_to_hire(self, shape: Iterable[int], *, relief: bool = False) -> bool:
        before = len(self.members)
        try:
            self.hire(shape, relief=relief)
        except Exception as error:
            # Those that are there run on; perhaps this machine has room for another later, or the code makes sense then.
            if repr(error) != self._complaint:
                is_expected = isinstance(error, (FerrymanError, OSError, RuntimeError))
                log.error(
                    "an executor could not be started, will try again: %s", error, exc_info=not is_expected
                )
            self._complaint = repr(error)
            self.wait_before_hiring()
            return False
        if len(self.members) > before:
            self._complaint = None
        return True

    def wait_before_hiring(self) -> None:
        """Starting did not work; do not try again at once."""
        self._hire_at = time.monotonic() + _HIRE_AGAIN

    def renew(self) -> None:
        """Replace all executors: each finishes what it runs. As long as others cannot be started, they stay."""
        before = list(self.members)
        self._is_outdated = not self._try_to_hire(self.shape)
        if self._is_outdated:
            for member in self.members[len(before) :]:
                self.dismiss(member)
        else:
            for member in before:
                self.retire(member)

    def retire(self, member: Member) -> None:
        """Let an executor finish what it runs, and end."""
        if not member.retiring:
            member.retiring = True
            member.send(Kind.DRAIN)

    def retire_all(self) -> None:
        """Let all executors finish what they run, and end."""
        for member in self.members:
            self.retire(member)

    def dismiss(self, member: Member) -> None:
        """Have done with an executor; kill it if it lives."""
        if member in self.members:
            self.members.remove(member)
            member.launched.kill()
            member.launched.close()

    # -- handing out -------------------------------------------------------------------------------

    def held(self) -> int:
        """Jobs handed out and not done."""
        return sum(len(member.jobs) for member in self.members)

    def running(self) -> int:
        """Jobs that can be running: no executor runs more than it has places."""
        return sum(min(member.places, len(member.jobs)) for member in self.members)

    def is_busy(self) -> bool:
        """Whether any job is out."""
        return any(member.jobs for member in self.members)

    def has_idle_place(self) -> bool:
        """Whether a job could be started at this very moment."""
        return self._spare() > 0 and any(each.places_free() for each in self._able())

    def room(self, now: float) -> int:
        """How many jobs can be handed out without making any of them wait long."""
        return sum(self._rooms(self._able(), now))

    def _rooms(self, able: Sequence[Member], now: float) -> list[int]:
        """How many jobs each of them can be given. Relief executors bring places, and so do those that are there while
        others finish what they run; but the worker's concurrency holds. An executor that has a place which must stay
        free gets no jobs ahead, since it would start them."""
        spare = self._spare()
        if spare < 0:
            return [0] * len(able)
        rooms: list[int] = []
        for member in able:
            free = member.places_free()
            fills = min(free, spare)
            spare -= fills
            rooms.append(member.room(now) if fills == free else fills)
        return rooms

    def _spare(self) -> int:
        """How many more jobs may run, beside the suspects for which executors are kept free. Less than none if one of
        those waits until others have ended."""
        kept = sum(member.solo is not None and not member.jobs for member in self.members)
        return self.settings.concurrency - self.running() - kept

    def _able(self) -> list[Member]:
        """Those who answer; if nobody does, all."""
        able = [member for member in self.members if member.ready and not member.stalled]
        return able or [member for member in self.members if member.ready]

    def hand_out(self, claims: Sequence[Claim], now: float) -> None:
        """Give each job to an executor: to the emptiest that answers, but a task that makes executors stall
        to those that are stalled already, lest none be left for other queues."""
        if not claims:
            return
        able = self._able()
        hogs = self._hogs() if len(able) == 1 and len(self.members) > 1 else set()
        if hogs:
            claims = self._confine([claim for claim in claims if claim.task in hogs]) + [
                claim for claim in claims if claim.task not in hogs
            ]
        shares = share(len(claims), self._rooms(able, now))
        start = 0
        for member, count in zip(able, shares, strict=True):
            member.assign(claims[start : start + count])
            start += count
        if start < len(claims):
            self._wait_behind(able).assign(claims[start:])

    def _wait_behind(self, able: Sequence[Member]) -> Member:
        """Who gets what there is no room for, because an executor was lost meanwhile: of those that take jobs one whose
        places are all taken, so that they wait there."""
        return max(
            able,
            key=lambda member: (
                member.takes_jobs,
                not member.places_free(),
                member.places - len(member.jobs),
            ),
        )

    def _confine(self, claims: list[Claim]) -> list[Claim]:
        """Give jobs of hogging tasks to stalled executors with free places. Answers those for which none is left."""
        for member in self.members:
            if member.stalled and claims:
                count = max(0, min(member.places_free(), self._spare()))
                member.assign(claims[:count])
                claims = claims[count:]
        return claims

    def _hogs(self) -> set[str]:
        """Tasks that run in stalled executors."""
        return {held.claim.task for member in self.members if member.stalled for held, _ in member.running()}

    def isolate(self, claim: Claim) -> bool:
        """Give a suspect an executor for itself. False if none is empty yet; one will be."""
        candidates = [member for member in self.members if member.ready and not member.retiring]
        for member in candidates:
            if not member.jobs and member.solo in (None, claim.id):
                # Perhaps another one was kept free for it.
                self.unreserve(claim.id)
                member.solo = claim.id
                if self.running() >= self.settings.concurrency:
                    return False  # Others bring more places than may be used; the next one to end makes room.
                member.assign([claim])
                return True
        # The one with the least to do takes nothing more until it is empty.
        if candidates and not any(member.solo for member in candidates):
            min(candidates, key=lambda member: len(member.jobs)).solo = claim.id
        return False

    def unreserve(self, id_: JobId) -> None:
        """No executor need be kept free for this suspect any more."""
        for member in self.members:
            if member.solo == id_:
                member.solo = None

    def cancel(self, id_: JobId, reason: str | None) -> None:
        """Ask the executor of a job to stop it; kill the executor if it has not done so after the grace."""
        for member in self.members:
            held = member.jobs.get(id_)
            if held is not None:
                member.cancel(held, reason)
                member.cancelling[id_] = (time.monotonic() + self.settings.grace, reason or "cancelled")

    # -- relief ------------------------------------------------------------------------------------

    def relieve(self, now: float) -> None:
        """Keep one executor that answers: start another when all are stalled, let it go when it is not needed."""
        ready = [member for member in self.members if not member.retiring]
        if ready and all(member.ready and member.stalled for member in ready):
            self._held_since = now if self._held_since is None else self._held_since
            may_hire = now >= max(self._hire_at, self._held_since + _RELIEF_AFTER)
            if len(ready) < len(self.shape) + _RELIEF and may_hire:
                log.info("all executors are held by tasks that compute; starting another one")
                self._try_to_hire(self.shape[:1], relief=True)
            return
        self._held_since = None
        for member in ready:
            idle = member.ready and not member.jobs and now - member.idle_since > _RELIEF_IDLE
            if member.relief and idle and sum(not other.stalled for other in ready) > 1:
                self.retire(member)

    # -- losses ------------------------------------------------------------------------------------

    def outcomes_of_returned(self, member: Member, returned: Sequence[Returned]) -> list[Outcome]:
        """What becomes of jobs that an executor gave back. A cancel that it got too late for them still holds."""
        outcomes: list[Outcome] = []
        for each in returned:
            cancelling = member.cancelling.get(each.id)
            if not member.take_off(each.id, each.lease):
                continue
            kind = OutcomeKind.RELEASED if cancelling is None else OutcomeKind.CANCELLED
            reason = None if cancelling is None else cancelling[1]
            outcomes.append(Outcome(each.id, each.lease, kind, reason=reason))
        return outcomes

    def outcomes_of_lost(self, member: Member, lost: Sequence[Casualty], reason: str | None) -> list[Outcome]:
        """What becomes of the jobs of an executor that is dead.

        `reason` says why it was killed on purpose, if not for the sake of some of its jobs (`Member.doomed`).
        Jobs that had not been started go back. Of the others, those for whose sake it was killed have
        failed; of an executor that died by itself, each may have been the one that did it, also one whose arguments
        were being fetched: they may be larger than its memory.
        """
        died_by_itself = reason is None and not member.doomed
        outcomes: list[Outcome] = []
        for job in lost:
            claim = job.claim
            if claim.id in member.cancelling:
                _, asked = member.cancelling[claim.id]
                outcomes.append(
                    Outcome(claim.id, claim.lease, OutcomeKind.CANCELLED, job.ran_us, reason=asked)
                )
            elif not job.started and not (job.fetching and died_by_itself):
                outcomes.append(Outcome(claim.id, claim.lease, OutcomeKind.RELEASED))
            elif claim.id in member.doomed:
                outcomes.append(member.doomed[claim.id])
            elif died_by_itself:
                what = "its arguments were fetched" if job.fetching else "it ran"
                # The first line groups dead letters by cause, so the process stands in the second.
                error = ErrorInfo(
                    "ExecutorDied", f"its executor died while {what}\n(process {member.launched.pid})"
                )
                outcomes.append(Outcome(claim.id, claim.lease, OutcomeKind.CRASHED, job.ran_us, error=error))
            else:
                outcomes.append(
                    self._bystander(job, reason or "its executor was killed because of another job")
                )
        return outcomes

    def _bystander(self, job: Casualty, reason: str) -> Outcome:
        """A job that was stopped by no fault of its own gets its attempt back, unless it must not run twice."""
        claim = job.claim
        fact = self.facts.get(claim.task)
        if fact is not None and fact.at_most_once:
            error = ErrorInfo("Stopped", reason)
            return Outcome(claim.id, claim.lease, OutcomeKind.DEAD, job.ran_us, error=error)
        return Outcome(claim.id, claim.lease, OutcomeKind.SNOOZED, job.ran_us, reason=reason)


def _shape(settings: WorkerSettings) -> tuple[int, ...]:
    """How many places each executor has, the largest first."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    size = min(settings.executors or cores, settings.concurrency)
    places, larger = divmod(settings.concurrency, size)
    return (places + 1,) * larger + (places,) * (size - larger)
