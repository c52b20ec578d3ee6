"""The supervisor: claims, hands out, settles, heartbeats, watches. It never runs user code.

One thread does it all, around a `select` over the executors' sockets and the store's bell. Each turn of the
loop takes in what came, and then talks to the store once: notes, outcomes and the next claim go in one
transaction. Batches are whatever has gathered meanwhile; nothing waits for one to fill.
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from ferryman.config import RetentionSettings, Settings, WorkerSettings
from ferryman.errors import ConfigError, FerrymanError, StoreError, WorkerGone
from ferryman.io.operation import Operation, Runner
from ferryman.job import MAX_DEATHS, Claim, JobId, Outcome, OutcomeKind, WorkerId
from ferryman.policy.priority import strict_plan
from ferryman.store.port import JobNote, Order, Store, Take, Waker, WorkerStatus
from ferryman.worker.crew import Crew
from ferryman.worker.duties import Duties
from ferryman.worker.frames import ExecutorHello, Frame, Kind
from ferryman.worker.identity import new_worker_id
from ferryman.worker.member import Launch, Member
from ferryman.worker.register import worker_info

__all__ = ["OpenStore", "Supervisor"]

log = logging.getLogger("ferryman.worker")

OpenStore = Callable[[str], Store]

_TURN_JOBS = 2_000
"""Jobs claimed, and outcomes settled, in one transaction at most."""

_EMPTY_PEEK = 1.0
"""Seconds for which a vain claim makes the next ring be looked into before it is believed."""


class Supervisor:
    """One start of one worker. `run` serves until it was told to stop; other threads may call `stop`."""

    def __init__(
        self,
        launch: Launch,
        open_store: OpenStore,
        *,
        settings: WorkerSettings,
        overrides: dict[str, Any] | None = None,
        queues: tuple[str, ...] | None = None,
        on_ready: Callable[[], None] | None = None,
    ) -> None:
        """`settings` hold until the app has told its own, of which `overrides` have precedence."""
        self._open_store = open_store
        self._overrides = overrides or {}
        self._queues = queues
        self._on_ready = on_ready
        self.settings = settings
        self.id: WorkerId = new_worker_id()
        self.crew = Crew(launch, settings)
        self._selector = selectors.DefaultSelector()
        self._inbox, self._outbox = socket.socketpair()
        self._told: deque[str] = deque()
        self.state = "active"
        self._deadline: float | None = None
        self._store: Store | None = None
        self._runner: Runner | None = None
        self._waker: Waker | None = None
        self._duties: Duties | None = None
        self.retention = RetentionSettings()
        self.done = 0
        self.failed = 0
        self._outcomes: list[Outcome] = []
        self._notes: list[JobNote] = []
        self._suspects: deque[Claim] = deque()
        self._lanes: set[tuple[str, int]] = set()
        self._turns = 0
        self._hungry = True
        self._vain_claim_at = 0.0
        self._next_due: float | None = None
        self._retry_at = 0.0
        self._retry_delay = 0.0

    # -- from outside ------------------------------------------------------------------------------

    def stop(self, *, now: bool = False) -> None:
        """Finish what runs, give back the rest, and end; or end at once. Safe to call from a signal handler
        and from other threads."""
        self._tell("kill" if now else "stop")

    def reload(self) -> None:
        """Replace all executors, since the code has changed."""
        self._tell("reload")

    def _tell(self, what: str) -> None:
        self._told.append(what)
        with contextlib.suppress(OSError):
            self._outbox.send(b"!")

    # -- the life ----------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until told to stop. Raises ConfigError if the app cannot be loaded, StoreError if the store
        cannot be used at the start."""
        self._selector.register(self._inbox, selectors.EVENT_READ, self._hear)
        try:
            self.crew.hire(1)
            self._await_first_hello()
            while not self._is_over():
                self._take_in(self._patience())
                self._turn()
        finally:
            self._end()

    def _await_first_hello(self) -> None:
        while self._store is None and not self._is_over():
            self._take_in(1.0)

    def _is_over(self) -> bool:
        if self.state == "killed":
            return True
        if self.state != "draining":
            return False
        if not self.crew.members and not self._outcomes:
            return True
        return self._deadline is not None and time.monotonic() > self._deadline

    def _end(self) -> None:
        """Kill what still runs; what it ran goes back."""
        for member in list(self.crew.members):
            self._lose(member, "its worker stopped before it was done")
        if self._store is not None and self._runner is not None:
            self._suspects.clear()
            with contextlib.suppress(FerrymanError):
                if self._outcomes:
                    self._runner.run(self._store.settle(self.id, self._outcomes))
                self._runner.run(self._store.leave(self.id))
        if self._waker is not None:
            self._waker.close()
        self._selector.close()
        self._inbox.close()
        self._outbox.close()

    # -- taking in ---------------------------------------------------------------------------------

    def _patience(self) -> float:
        """How long to wait for something to happen."""
        now = time.monotonic()
        if self._has_business() and now >= self._retry_at:
            return 0.0
        wake = now + (self._waker.poll if self._waker else 1.0)
        if self._duties is not None:
            wake = min(wake, self._duties.next_at(busy=self.crew.is_busy()))
        if self._next_due is not None:
            wake = min(wake, self._next_due)
        if self._retry_at > now:
            wake = min(wake, self._retry_at)
        return max(0.0, wake - now)

    def _has_business(self) -> bool:
        return bool(self._outcomes or self._notes) or (self._may_claim() and self._hungry)

    def _take_in(self, patience: float) -> None:
        self._watch_members()
        for key, mask in self._selector.select(patience):
            if isinstance(key.data, Member):
                if mask & selectors.EVENT_WRITE:
                    key.data.flush()
                if mask & selectors.EVENT_READ:
                    self._hear_member(key.data)
            else:
                key.data()
        if self._duties is not None:
            self._duties.perform(time.monotonic())
        if self._waker is not None and not self._hungry:
            self._look()

    def _watch_members(self) -> None:
        """Have the selector know of executors that came, and of those that do not read fast enough."""
        known = self._selector.get_map()
        for member in self.crew.members:
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if member.wants_to_write else 0)
            key = known.get(member.fileno())
            if key is None:
                self._selector.register(member, events, member)
            elif key.events != events:
                self._selector.modify(member, events, member)

    def _look(self) -> None:
        """Whether the time of a scheduled job has come, or the store has changed without a ring."""
        if self._next_due is not None and time.monotonic() >= self._next_due:
            self._next_due = None
            self._hungry = True
        elif self._waker is not None and self._waker.changed():
            self._peek()

    def _peek(self) -> None:
        assert self._store is not None and self._runner is not None
        try:
            signs = self._runner.run(self._store.peek(self.id))
        except WorkerGone:
            self._hungry = True
            return
        except StoreError as error:
            self._store_failed(error)
            return
        self._hungry = self._hungry or signs.work
        if signs.next_due is not None:
            self._set_due(signs.next_due, signs.now)
        if signs.orders and self._duties is not None:
            self._duties.heartbeat()

    def _hear(self) -> None:
        self._inbox.recv(256)
        while self._told:
            match self._told.popleft():
                case "stop" if self.state != "draining":
                    self.drain()
                case "stop" | "kill":
                    self.state = "killed"
                case "reload":
                    log.info("replacing the executors")
                    self.crew.renew()

    def _hear_bell(self) -> None:
        assert self._waker is not None
        self._waker.drain()
        if time.monotonic() - self._vain_claim_at < _EMPTY_PEEK:
            self._peek()
        else:
            self._hungry = True

    def _hear_member(self, member: Member) -> None:
        frames = member.receive()
        if frames is None:
            self._lose(member)
            return
        for frame in frames:
            self._understand(member, frame)

    def _understand(self, member: Member, frame: Frame) -> None:
        body = frame.body
        match frame.kind:
            case Kind.DONE:
                self._collect(member, body)
            case Kind.NOTES:
                self._notes += body
            case Kind.RETURNED:
                for returned in body:
                    if member.take_off(returned.id, returned.lease):
                        self._outcomes.append(Outcome(returned.id, returned.lease, OutcomeKind.RELEASED))
            case Kind.PONG:
                member.answered(body, time.monotonic())
            case Kind.HELLO:
                self._welcome(member, body)
            case Kind.BROKEN:
                self._refuse(member, body)
            case Kind.BYE:
                member.retiring = True
            case _:
                raise FerrymanError(f"an executor sent a {frame.kind.name} frame")

    def _collect(self, member: Member, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            if member.take_off(outcome.id, outcome.lease):
                self._outcomes.append(outcome)
        self.done += len(outcomes)
        member.progressed(len(outcomes), time.monotonic())

    def _welcome(self, member: Member, hello: ExecutorHello) -> None:
        member.ready = True
        self.crew.facts = {fact.name: fact for fact in hello.tasks}
        if self._store is None:
            self._open(hello)
        self.crew.fill()

    def _refuse(self, member: Member, story: str) -> None:
        if self._store is None:
            self._dismiss(member)
            raise ConfigError(story)
        # A reload of code that is broken for the moment: the next change starts another.
        log.error("an executor could not start: %s", story)
        member.retiring = True
        self.crew.wait_before_hiring()

    def _open(self, hello: ExecutorHello) -> None:
        self._adopt(hello.settings)
        store = self._open_store(hello.url)
        self._runner = store.runner()
        self._waker = store.waker()
        self._runner.run(store.declare(hello.queues))
        self._store = store
        self._register()
        self._selector.register(self._waker.fileno(), selectors.EVENT_READ, self._hear_bell)
        self._duties = Duties(self, store, self._runner)
        self._duties.perform(time.monotonic())
        served = "all queues" if self._queues is None else f"queues {', '.join(self._queues)}"
        log.info(
            "worker %s serves %s of %s with %d tasks, %d jobs at a time in %d executors",
            self.id, served, store.url, len(hello.tasks), self.settings.concurrency, self.crew.size,
        )  # fmt: skip
        if self._on_ready is not None:
            self._on_ready()

    def _adopt(self, settings: Settings) -> None:
        """The app's own settings of the worker, of which those of the command line have precedence."""
        self.retention = settings.retention
        adopted = msgspec.structs.replace(settings.worker, **self._overrides)
        places = self.crew.places
        self.settings = self.crew.settings = adopted
        self.crew.resize()
        if self.crew.places != places:
            # The first executor was started for another number of places.
            self.crew.renew()

    def _register(self) -> None:
        assert self._store is not None and self._runner is not None and self._waker is not None
        info = worker_info(
            self.id, self._queues, tuple(self.crew.facts), self.settings.concurrency, self._waker.address
        )
        self._runner.run(self._store.register(info, int(self.settings.lease * 1000)))

    # -- talking to the store ----------------------------------------------------------------------

    def _turn(self) -> None:
        now = time.monotonic()
        if self._store is None or now < self._retry_at:
            return
        operations: list[Operation[Any]] = []
        notes, outcomes = self._notes, self._outcomes[:_TURN_JOBS]
        if notes:
            operations.append(self._store.annotate(self.id, notes))
        if outcomes:
            operations.append(self._store.settle(self.id, outcomes))
        room = self._wanted(now) if self._hungry and self._may_claim() else 0
        if room:
            plan = [Take(queue, priority, count) for (queue, priority), count in
                    strict_plan(self._lanes, room, self._turns)]  # fmt: skip
            operations.append(self._store.claim(self.id, plan, room))
            self._turns += 1
        if not operations:
            return
        answers = self._ask(operations)
        if answers is None:
            return
        self._notes = []
        if outcomes:
            del self._outcomes[: len(outcomes)]
            self._hear_verdict(outcomes, answers[-2 if room else -1])
        if room:
            self._hand_out(answers[-1], room)

    def _ask(self, operations: Sequence[Operation[Any]]) -> list[Any] | None:
        assert self._runner is not None
        try:
            answers = self._runner.run_all(operations)
        except WorkerGone:
            self._begin_anew()
            return None
        except StoreError as error:
            self._store_failed(error)
            return None
        if self._retry_delay:
            log.warning("the store answers again")
            self._retry_delay = 0.0
        return answers

    def _store_failed(self, error: StoreError) -> None:
        """Keep everything, and try again: sooner at first, then each 2 s."""
        if not self._retry_delay:
            log.error("the store does not answer, will try again: %s", error)
        self._retry_delay = min(2.0, self._retry_delay * 2 or 0.1)
        self._retry_at = time.monotonic() + self._retry_delay

    def _hear_verdict(self, outcomes: Sequence[Outcome], accepted: Sequence[bool]) -> None:
        for outcome, kept in zip(outcomes, accepted, strict=True):
            if not kept:
                log.warning("job %s: the outcome came after its lease had ended; it is void", outcome.id)
            elif outcome.kind not in (OutcomeKind.SUCCEEDED, OutcomeKind.RELEASED, OutcomeKind.SNOOZED):
                self.failed += outcome.kind is not OutcomeKind.CANCELLED

    def _may_claim(self) -> bool:
        return self.state == "active" and self._store is not None and self.crew.has_room(time.monotonic())

    def _wanted(self, now: float) -> int:
        """How many jobs to claim; 0 while the executors still hold plenty."""
        room, places = self.crew.room(now), self.crew.places
        held = self.crew.held()
        return min(room, _TURN_JOBS) if room * 2 >= held or room >= places else 0

    def _hand_out(self, claimed: Any, asked: int) -> None:
        claims: Sequence[Claim] = claimed.jobs
        new_lanes = {(lane.queue, lane.priority) for lane in claimed.lanes} - self._lanes
        self._lanes |= new_lanes
        self._hungry = bool(claimed.lanes) and (bool(claims) or bool(new_lanes))
        if not claims and not new_lanes:
            self._vain_claim_at = time.monotonic()
        if claimed.next_due is not None:
            self._set_due(claimed.next_due, claimed.now)
        suspects = [claim for claim in claims if claim.deaths >= MAX_DEATHS - 1]
        if suspects:
            self._suspects.extend(suspects)
            claims = [claim for claim in claims if claim.deaths < MAX_DEATHS - 1]
        self.crew.hand_out(claims, time.monotonic())
        self.send_suspects()

    def send_suspects(self) -> None:
        """Jobs that were there at two deaths run alone, so that the third tells who it was."""
        while self._suspects:
            if not self.crew.isolate(self._suspects[0]):
                return
            self._suspects.popleft()

    def _set_due(self, due: int, now: int) -> None:
        self._next_due = time.monotonic() + max(0, due - now) / 1000

    def _begin_anew(self) -> None:
        """This worker was taken for dead, and its jobs are others' now: stop running them, and start over."""
        log.warning("worker %s was taken for dead; its jobs are run by others. It starts anew", self.id)
        for member in list(self.crew.members):
            self._dismiss(member)
        self._outcomes.clear()
        self._notes.clear()
        self._suspects.clear()
        self.id = new_worker_id()
        try:
            self._register()
        except StoreError as error:
            self._store_failed(error)
        self._hungry = True
        self.crew.fill()

    # -- what the duties need ----------------------------------------------------------------------

    @property
    def status(self) -> WorkerStatus:
        """What the heartbeat says."""
        state: Any = self.state if self.state in ("active", "paused", "draining") else "draining"
        return WorkerStatus(state=state, running=self.crew.running(), done=self.done, failed=self.failed)

    def taken_for_dead(self) -> None:
        """A heartbeat came too late."""
        self._begin_anew()

    def store_failed(self, error: StoreError) -> None:
        """A duty could not reach the store."""
        self._store_failed(error)

    def obey(self, order: Order) -> None:
        """Do what the store was told that this worker should."""
        log.info("ordered to %s%s", order.kind, f" job {order.job}" if order.job else "")
        match order.kind:
            case "cancel":
                if order.job is not None:
                    self._cancel(order.job, order.reason)
            case "pause" if self.state == "active":
                self.state = "paused"
            case "resume" if self.state == "paused":
                self.state = "active"
                self._hungry = True
            case "drain" | "stop":
                self.drain()
            case _:
                pass

    def drain(self) -> None:
        """Claim no more, finish what runs, give back the rest."""
        if self.state == "draining":
            return
        log.info(
            "stopping: %d jobs run on, for %g s at most", self.crew.running(), self.settings.shutdown_timeout
        )
        self.state = "draining"
        self._deadline = time.monotonic() + self.settings.shutdown_timeout
        for claim in self._suspects:
            self._outcomes.append(Outcome(claim.id, claim.lease, OutcomeKind.RELEASED))
        self._suspects.clear()
        self.crew.retire_all()

    def _cancel(self, id_: JobId, reason: str | None) -> None:
        for claim in self._suspects:
            if claim.id == id_:
                self._suspects.remove(claim)
                self._outcomes.append(
                    Outcome(id_, claim.lease, OutcomeKind.CANCELLED, reason=reason or "cancelled")
                )
                return
        self.crew.cancel(id_, reason)

    def kill(self, member: Member) -> None:
        """Kill an executor for the sake of its doomed jobs."""
        self._lose(member)

    # -- losing an executor ------------------------------------------------------------------------

    def _lose(self, member: Member, reason: str | None = None) -> None:
        """An executor is dead, or is killed with this: each of its jobs gets what it deserves."""
        if reason is None and not member.retiring:
            self._drain_socket(member)
        lost = member.casualties()
        if reason is None and not member.doomed and not member.retiring:
            log.error("executor %d died with %d jobs", member.launched.pid, len(lost))
        self._dismiss(member)
        self._outcomes += self.crew.outcomes_of_lost(member, lost, reason)
        if self.state not in ("draining", "killed"):
            if not member.ready:
                self.crew.wait_before_hiring()
            self.crew.fill()

    def _drain_socket(self, member: Member) -> None:
        """Outcomes that it sent before it died are as good as any."""
        while frames := member.receive():
            for frame in frames:
                self._understand(member, frame)

    def _dismiss(self, member: Member) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(member)
        self.crew.dismiss(member)
