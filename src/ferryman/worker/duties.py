"""What a supervisor does by the clock: heartbeat, rescue, prune, and a watch over executors."""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ferryman.clock import millis
from ferryman.config import RetentionSettings
from ferryman.errors import StoreBusy, StoreError, WorkerGone
from ferryman.job import ErrorInfo, Outcome, OutcomeKind
from ferryman.policy.retry import Retry, backoff_delay
from ferryman.store.records import QueueSettings, Retention, WorkerRecord
from ferryman.worker.desk import Desk, is_refusal
from ferryman.worker.identity import is_dead_neighbour, place
from ferryman.worker.member import Held, Member
from ferryman.worker.register import worker_info

if TYPE_CHECKING:
    from ferryman.worker.supervisor import Supervisor

__all__ = ["Duties"]

log = logging.getLogger("ferryman.worker")

_WATCH = 0.05
_NEIGHBOURS = 0.25
"""Seconds between looks at the processes of other workers of this machine."""
_REGISTER_FIRST, _REGISTER_MOST = 0.5, 3.0
"""Seconds between looks at the register of workers: more and more of them while it stays the same."""
_GRACE = 3.0
"""Seconds for which nobody is taken for dead by the clock when the store is back, or its time has been set: whoever lives
can say so only now."""
_RECONCILE = 60.0
"""Seconds between comparisons of what the store says we run with what we run."""
_AFTER_REFUSAL = 1.0
"""Seconds until what the store refuses is tried again. Jobs and their outcomes do not wait for that."""
_PRUNE = 5.0
_PRUNE_LATEST = 60.0
"""Seconds for which pruning waits for a lull, while there are jobs to claim. Then it keeps pace with these."""
_PRUNE_JOBS = 400
_DAY = 86_400_000

_Errand = Callable[[float], None]
"""What is done at the store; is told the time by `time.monotonic`."""


class Duties:
    """Knows when what is due. Not thread-safe: it is the supervisor's."""

    def __init__(self, supervisor: Supervisor, desk: Desk) -> None:
        self._supervisor = supervisor
        self._desk = desk
        self._store = desk.store
        self._runner = desk.runner
        self._here = place()
        self._luck = random.Random()  # noqa: S311
        now = time.monotonic()
        self._beat_at = now
        self._heartbeat_at = now + supervisor.settings.heartbeat
        self._heard = 0
        """The number of the last order."""
        self._registered: tuple[tuple[str, ...], Sequence[QueueSettings]] | None = None
        """The tasks and the queues that the store was told of."""
        self._refused: dict[_Errand, float] = {}
        """What the store has refused to have done, and when it is tried again."""
        self._neighbours: list[WorkerRecord] = []
        """The other workers that are alive, as the register had them."""
        self._neighbours_at = now
        self._register_at = now
        self._register_pause = _REGISTER_FIRST
        self._reconcile_at = now + _RECONCILE
        self._prune_at = now + _PRUNE * self._luck.random()
        self._prune_latest = self._prune_at + _PRUNE_LATEST
        self._watch_at = now
        self._memory_at = now

    def next_at(self, *, busy: bool) -> float:
        """When the next duty is due; executors are watched only while they have jobs."""
        watch = self._watch_at if busy else math.inf
        ask = min(at for at, _ in self._errands())
        return min(watch, max(ask, self._desk.retry_at) if self._desk.is_away else ask)

    def perform(self, now: float) -> None:
        """Do what is due."""
        if now >= self._watch_at:
            self._watch_at = now + _WATCH
            self._watch(now)
        self._desk.watch_clock()
        for at, errand in self._errands():
            if now >= at and not (self._desk.is_away and now < self._desk.retry_at):
                self._run(errand, now)

    def heartbeat(self) -> None:
        """Renew the leases, and do as ordered."""
        self._run(self._beat, time.monotonic())

    def tell(self) -> None:
        """Let the next heartbeat come at once: people look whether the worker has obeyed."""
        self._heartbeat_at = 0.0

    # -- errands to the store ----------------------------------------------------------------------

    def _errands(self) -> list[tuple[float, _Errand]]:
        """What is to be done, and when."""
        errands: list[tuple[float, _Errand]] = [
            (0.0 if self._beat_at < self._desk.back_at else self._heartbeat_at, self._beat),
            (self._neighbours_at, self._look_at_neighbours),
            (0.0 if self._desk.doubtful else self._reconcile_at, self.reconcile),
            (self._prune_latest if self._desk.hungry else self._prune_at, self._prune),
        ]
        if self._refused:
            return [(max(at, self._refused.get(errand, at)), errand) for at, errand in errands]
        return errands

    def _run(self, errand: _Errand, now: float) -> None:
        """Do it. If the store refuses, nothing else waits for that; of several refusals in a row the first is told."""
        try:
            errand(now)
        except StoreError as error:
            if not is_refusal(error):
                self._desk.fail(error)
                return
            self._desk.answered()
            if errand not in self._refused:
                # What is held will be let go.
                level = logging.INFO if isinstance(error, StoreBusy) else logging.ERROR
                log.log(
                    level, "the store refuses what a worker does beside its jobs, will try again: %s", error
                )
            self._refused[errand] = now + _AFTER_REFUSAL
        else:
            self._refused.pop(errand, None)

    def _beat(self, now: float) -> None:  # noqa: ARG002
        supervisor = self._supervisor
        self._beat_at = time.monotonic()
        lease = millis(supervisor.settings.lease)
        operation = self._store.heartbeat(supervisor.id, supervisor.status, lease, self._heard)
        try:
            answer = self._runner.run(operation)
        except WorkerGone:
            supervisor.begin_anew()
            return
        self._heartbeat_at = self._beat_at + supervisor.settings.heartbeat
        before = supervisor.phase
        self._desk.recovered()
        self._heard = answer.last
        for order in answer.orders:
            supervisor.obey(order)
        if supervisor.phase is not before:
            self.tell()
        if self._registered != self._known():
            self.register()

    def _look_at_neighbours(self, now: float) -> None:
        """Take over from workers that died: those of this machine that are no process any more, at once; others
        when their lease has ended. The register is asked now and then, and only a reason makes this write."""
        self._neighbours_at = now + _NEIGHBOURS
        if now >= self._register_at:
            self._look_at_register(now)
        dead = [each.info.id for each in self._neighbours if is_dead_neighbour(each.info, self._here)]
        # The store decides whether a lease has ended; this only says when to ask.
        may_be_late = now > self._desk.back_at + _GRACE
        late = self._desk.clock.now() if may_be_late else 0
        if dead or any(each.lease_until <= late for each in self._neighbours):
            self._register_at = 0.0
            for rescued in self._runner.run(self._store.rescue(dead, late=may_be_late)):
                log.warning(
                    "worker %s died; %d of its jobs run again, %d are dead",
                    rescued.worker, rescued.again, rescued.dead,
                )  # fmt: skip

    def _look_at_register(self, now: float) -> None:
        known = {each.info.id for each in self._neighbours}
        records = self._runner.run(self._store.workers(alive=True))
        self._desk.answered()
        self._neighbours = [each for each in records if each.info.id != self._supervisor.id]
        same = known == {each.info.id for each in self._neighbours}
        pause = min(self._register_pause * 1.5, _REGISTER_MOST) if same else _REGISTER_FIRST
        self._register_pause, self._register_at = pause, now + pause

    def register(self) -> None:
        """Make the worker and its queues known, or what its tasks are now. Raises StoreError."""
        supervisor = self._supervisor
        tasks, queues = known = self._known()
        info = worker_info(
            supervisor.id, supervisor.queues, tasks, supervisor.settings.concurrency, self._desk.waker.address
        )
        if self._registered is None or self._registered[1] != queues:
            self._runner.run(self._store.declare(queues))
        self._runner.run(self._store.register(info, millis(supervisor.settings.lease)))
        self._registered = known

    def look_at_tasks(self) -> None:
        """If they are others now, the store is told with the next heartbeat, which comes at once."""
        if self._registered != self._known():
            self.tell()

    def _known(self) -> tuple[tuple[str, ...], Sequence[QueueSettings]]:
        return tuple(self._supervisor.crew.facts), self._supervisor.declared

    def start_anew(self) -> None:
        """The worker is another one on the register, perhaps of a store that has been emptied. Raises StoreError."""
        self._heard = 0
        self._register_at = 0.0
        self._registered = None
        self.register()

    def reconcile(self, now: float) -> None:
        """Give back jobs that are leased to us in an answer that never came. An answer can be lost without a word, and
        its statement be carried out late, so this is done now and then without a reason, too."""
        self._reconcile_at = now + _RECONCILE
        held = self._runner.run(self._store.holding(self._supervisor.id))
        self._desk.doubtful = False
        known = self._supervisor.known_leases()
        lost = [each for each in held if (each.id, each.lease) not in known]
        if lost:
            log.warning("%d jobs were claimed in an answer that was lost; they go back", len(lost))
            self._desk.unsaid.outcomes += [
                Outcome(each.id, each.lease, OutcomeKind.RELEASED) for each in lost
            ]

    def _prune(self, now: float) -> None:
        begun = self._prune_at, self._prune_latest
        # If it fails, the next try is not at once.
        self._prune_at = self._prune_latest = now + _PRUNE
        done = self._runner.run(self._store.prune(_retention(self._supervisor.retention), _PRUNE_JOBS))
        if done.more:
            self._prune_at, self._prune_latest = begun
        else:
            self._prune_latest += _PRUNE_LATEST

    # -- executors ---------------------------------------------------------------------------------

    def _watch(self, now: float) -> None:
        supervisor = self._supervisor
        look_at_memory = now >= self._memory_at
        if look_at_memory:
            self._memory_at = now + 0.5
        for member in list(supervisor.crew.members):
            member.probe(now)
            running = member.running() if member.jobs else []
            for held, elapsed in running:
                self._check_time(member, held, elapsed, now)
            if look_at_memory and member.ready:
                self._check_memory(member, running)
            # Of one that said goodbye a while ago, only threads are left that do not end.
            lingers = member.farewell is not None and now > member.farewell + supervisor.settings.grace
            if member.doomed or lingers or member.launched.has_ended():
                supervisor.kill(member)
            elif supervisor.settings.recycle_after and member.done >= supervisor.settings.recycle_after:
                self._replace(member, f"it has done {member.done} jobs")
        supervisor.crew.relieve(now)
        supervisor.suspects.send()
        if supervisor.status.state != "draining":
            supervisor.crew.fill()

    def _check_time(self, member: Member, held: Held, elapsed: float, now: float) -> None:
        grace = self._supervisor.settings.grace
        if held.timeout is not None and elapsed > held.timeout + grace:
            error = ErrorInfo(
                "HardTimeout",
                f"did not stop {grace:g} s after its timeout of {held.timeout:g} s; its executor was killed",
            )
            self._doom(member, held, error, elapsed)
        cancelling = member.cancelling.get(held.claim.id)
        if cancelling is not None and now > cancelling[0] and member.launched.can_kill:
            member.doomed[held.claim.id] = Outcome(
                held.claim.id,
                held.claim.lease,
                OutcomeKind.CANCELLED,
                int(elapsed * 1e6),
                reason=cancelling[1],
            )

    def _check_memory(self, member: Member, running: list[tuple[Held, float]]) -> None:
        if not member.launched.can_kill:
            return  # Its memory is the program's.
        most = self._supervisor.settings.max_memory
        limited = [each for each in running if each[0].max_memory is not None]
        if not most and not limited:
            return
        taken = member.memory()
        for held, elapsed in limited:
            if held.max_memory is not None and taken > held.max_memory:
                error = ErrorInfo(
                    "MemoryLimit",
                    f"its executor took more than the {held.max_memory} MiB that the task may, and was killed\n"
                    f"(it took {taken} MiB)",
                )
                self._doom(member, held, error, elapsed)
        if most and taken > 2 * most and running and not member.doomed:
            # It grows faster than it can be drained: whoever runs longest is the likeliest culprit.
            held, elapsed = max(running, key=lambda each: each[1])
            error = ErrorInfo(
                "MemoryLimit",
                f"its executor took more than twice the {most} MiB allowed, and was killed\n(it took {taken} MiB)",
            )
            self._doom(member, held, error, elapsed)
        elif most and taken > most and member.done:
            # One that has done nothing yet takes what the app itself does: so would the next.
            self._replace(member, f"it takes {taken} MiB")

    def _doom(self, member: Member, held: Held, error: ErrorInfo, elapsed: float) -> None:
        """Settle a job in its executor's stead, which will be killed. In-process executors cannot be."""
        if not member.launched.can_kill:
            return
        claim = held.claim
        fact = self._supervisor.crew.facts.get(claim.task)
        delay = backoff_delay(fact.retry if fact else Retry(), claim.attempt, self._luck.random())
        member.doomed[claim.id] = Outcome(
            claim.id, claim.lease, OutcomeKind.RETRY, int(elapsed * 1e6), delay=millis(delay), error=error
        )
        log.warning("job %s (%s) %s", claim.id, claim.task, error.message)

    def _replace(self, member: Member, reason: str) -> None:
        if not member.retiring:
            log.info("replacing executor %d: %s", member.launched.pid, reason)
            self._supervisor.crew.retire(member)
            self._supervisor.crew.fill()


def _retention(settings: RetentionSettings) -> Retention:
    return Retention(
        succeeded=int(settings.succeeded_days * _DAY),
        succeeded_count=settings.succeeded_count,
        dead=int(settings.dead_days * _DAY),
        dead_count=settings.dead_count,
        other=int(settings.other_days * _DAY),
        other_count=settings.other_count,
        stats=int(settings.stats_days * _DAY),
    )
