"""The supervisor: claims, hands out, settles, heartbeats, watches. It never runs user code.

One thread does it all, around a `select` over the executors' sockets and the store's bell. Each turn of the
loop takes in what came, and then talks to the store once. `desk.py` does the talking, `crew.py` keeps the
executors, `duties.py` does what goes by the clock.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import math
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from ferryman.config import RetentionSettings, Settings, WorkerSettings
from ferryman.errors import ConfigError, FerrymanError, StoreError, WorkerGone
from ferryman.job import Claim, JobId, Outcome, WorkerId
from ferryman.store.port import Store
from ferryman.store.records import Order, QueueSettings, WorkerStatus
from ferryman.values import counted
from ferryman.worker.chore import Chore
from ferryman.worker.crew import Crew
from ferryman.worker.desk import MOST_JOBS, Desk
from ferryman.worker.duties import Duties
from ferryman.worker.frames import ExecutorHello, Frame, Kind
from ferryman.worker.identity import new_worker_id
from ferryman.worker.member import Launch, Member
from ferryman.worker.suspects import Suspects, give_back_unknown, refuse_monsters
from ferryman.worker.sweeper import Sweeper

__all__ = ["OpenStore", "Phase", "Supervisor"]

log = logging.getLogger("ferryman.worker")

OpenStore = Callable[[str], Store]

_LAST_WORDS = 3.0
"""Seconds that a worker which ends takes to say the rest."""


class Phase(enum.Enum):
    """Where a worker is in its life."""

    ACTIVE = "active"
    PAUSED = "paused"
    DRAINING = "draining"
    KILLED = "killed"


class Supervisor:
    """One start of one worker. `run` serves until it was told to stop; other threads may tell it to."""

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
        self.id: WorkerId = new_worker_id()
        self.settings = settings
        self.retention = RetentionSettings()
        self.phase = Phase.ACTIVE
        self.crew = Crew(launch, settings)
        self.done = 0
        self._open_store = open_store
        self._overrides = overrides or {}
        self.queues = queues
        self.declared: Sequence[QueueSettings] = ()
        """The settings of queues that the app has told."""
        self._on_ready = on_ready
        self._desk: Desk | None = None
        self._duties: Duties | None = None
        self._chores: list[Chore] = []
        self.suspects = Suspects(self.crew)
        self._deadline = 0.0
        self._told: deque[str] = deque()
        self._is_stopping = False
        """Somebody has told it to stop; who does so again means it."""
        self._inbox, self._outbox = socket.socketpair()
        self._outbox.setblocking(False)  # If it is full, the supervisor will hear anyway.
        self._listened_at = self._came_at = time.monotonic()
        """When it listened last to its executors, and the earliest moment at which they can have said what it heard then."""
        self._selector = selectors.DefaultSelector()

    # -- from outside ------------------------------------------------------------------------------

    def stop(self) -> None:
        """Finish what runs, give back the rest, and end; a second call ends at once. Safe to call from a signal
        handler and from other threads."""
        self._tell("stop")

    def reload(self) -> None:
        """Replace all executors, since the code has changed. Safe to call from other threads."""
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
            self.crew.hire(self.crew.shape[:1])
            while not self._is_over():
                self._take_in()
                if self._desk is not None:
                    self._serve(self._desk)
        finally:
            self._end()

    def _is_over(self) -> bool:
        if self.phase is not Phase.DRAINING:
            return self.phase is Phase.KILLED
        unsaid = self._desk is not None and self._desk.unsaid and not self._desk.is_stuck
        return (not self.crew.members and not unsaid) or time.monotonic() > self._deadline

    def _end(self) -> None:
        """Kill what still runs; what it ran goes back."""
        self.phase = Phase.KILLED
        for member in list(self.crew.members):
            self._lose(member, "its worker stopped before it was done")
        with contextlib.ExitStack() as stack:
            for closing in (self._outbox, self._inbox, self._selector):
                stack.callback(closing.close)
            for chore in self._chores:
                stack.callback(chore.stop)
            if self._desk is not None:
                stack.callback(self._desk.close)
                with contextlib.suppress(FerrymanError):
                    self._take_leave(self._desk)

    def _take_leave(self, desk: Desk) -> None:
        """Say the rest, and leave. It is tried again while there is time: what a worker still holds that went without a
        word waits for the end of its lease."""
        give_up = time.monotonic() + _LAST_WORDS
        while desk.say_the_rest(give_up) or not desk.is_away:
            try:
                # Whoever leaves says of all that it holds that it did not get done; so it does of what the store refuses.
                if desk.doubtful and self._duties is not None:
                    self._duties.reconcile(time.monotonic())
                else:
                    desk.runner.run(desk.store.leave(self.id))
                    return
            except StoreError as error:
                desk.fail(error)
                if not desk.await_retry(give_up):
                    return

    # -- one turn ----------------------------------------------------------------------------------

    def _take_in(self) -> None:
        """Wait until something happens, and take note of it."""
        self._watch_members()
        begun = time.monotonic()
        ready = self._selector.select(self._patience())
        # What is there at once may have come at any time since it listened last: the store's time is not the executor's.
        self._came_at = time.monotonic() - (begun - self._listened_at)
        self._listened_at = time.monotonic()
        for key, mask in ready:
            if isinstance(key.data, Member):
                if key.data not in self.crew.members:
                    continue  # an earlier event of this round made an end of it
                if mask & selectors.EVENT_WRITE:
                    key.data.flush()
                if mask & selectors.EVENT_READ:
                    self._hear_member(key.data)
            else:
                key.data()

    def _patience(self) -> float:
        if self._desk is None or self._duties is None:
            return 1.0
        now = time.monotonic()
        wake = self._duties.next_at(busy=self.crew.is_busy())
        wake = min(wake, self._desk.wake_at(now, may_claim=self._wanted(now) > 0))
        if self.phase is Phase.DRAINING:
            wake = min(wake, self._deadline)
        return max(0.0, wake - now)

    def _serve(self, desk: Desk) -> None:
        """Talk to the store, hand out what it gave, and then see to the duties: no job shall wait for them."""
        now = time.monotonic()
        try:
            claims = desk.turn(self._wanted(now) if desk.hungry else 0)
            if claims:
                self._hand_out(claims)
            if self._duties is not None:
                self._duties.perform(now)
                if desk.look(now):
                    self._duties.heartbeat()
        except WorkerGone:
            self.begin_anew()

    def _wanted(self, now: float) -> int:
        """How many jobs to claim; 0 while the executors hold plenty."""
        if self.phase is not Phase.ACTIVE:
            return 0
        room = min(self.crew.room(now) - len(self.suspects), MOST_JOBS)
        if room <= 0:
            return 0
        worth_it = room * 2 >= self.crew.held() or room >= self.crew.shape[0] or self.crew.has_idle_place()
        return room if worth_it else 0

    def _hand_out(self, claims: Sequence[Claim]) -> None:
        claims, refused = refuse_monsters(claims)
        self._conclude(refused)
        if "reload" in self._told:
            # Executors that are about to go would put off for long what the next ones know.
            claims, early = give_back_unknown(claims, self.crew.facts)
            self._conclude(early)
        self.crew.hand_out(self.suspects.pick_out(claims), time.monotonic())
        self.suspects.send()

    # -- hearing -----------------------------------------------------------------------------------

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

    def _hear(self) -> None:
        self._inbox.recv(256)
        while self._told:
            match self._told.popleft():
                case "reload":
                    # Of several at once, the last one counts.
                    if self._is_staffed() and "reload" not in self._told:
                        log.info("replacing the executors")
                        self.crew.renew()
                case _ if self._is_stopping or self._desk is None:
                    self.phase = Phase.KILLED
                case _:
                    self._is_stopping = True
                    self.drain()

    def _hear_bell(self) -> None:
        if self._desk is not None and self._duties is not None:
            try:
                orders = self._desk.ring()
            except WorkerGone:
                self.begin_anew()
                return
            if orders:
                self._duties.heartbeat()

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
                self._conclude([each for each in body if member.take_off(each.id, each.lease)])
                self.done += len(body)
                member.progressed(body, time.monotonic())
            case Kind.NOTES if self._desk is not None:
                self._desk.unsaid.add_notes(body)
            case Kind.RETURNED:
                self._conclude(self.crew.outcomes_of_returned(member, body))
            case Kind.PONG:
                member.answered(body, self._came_at)
            case Kind.HELLO:
                self._welcome(member, body)
            case Kind.BROKEN:
                self._refuse(member, body)
            case Kind.BYE:
                member.retiring = True
                member.farewell = time.monotonic()
            case _:
                member.reject(f"executors do not send {frame.kind.name} frames")

    def _conclude(self, outcomes: Sequence[Outcome]) -> None:
        """So these jobs ended; the store will hear of it."""
        if self._desk is not None:
            self._desk.unsaid.outcomes += outcomes

    # -- beginning ---------------------------------------------------------------------------------

    def _welcome(self, member: Member, hello: ExecutorHello) -> None:
        if self.phase is Phase.KILLED:
            return
        member.ready = True
        member.facts = self.crew.facts = {fact.name: fact for fact in hello.tasks}
        self.declared = hello.queues
        if self._duties is None:
            self._open(hello)
        else:
            self._duties.look_at_tasks()
        self._fill()

    def _refuse(self, member: Member, story: str) -> None:
        if self._desk is None and self.phase is not Phase.KILLED:
            raise ConfigError(story)
        # Code that was reloaded is broken for the moment: the next change starts another.
        log.error("an executor could not start: %s", story)
        member.retiring = True
        member.farewell = time.monotonic()
        self.crew.wait_before_hiring()

    def _open(self, hello: ExecutorHello) -> None:
        self._adopt(hello.settings)
        desk = Desk(self._open_store(hello.url), self.id, self.settings.heartbeat)
        duties = Duties(self, desk)
        duties.register()
        self._desk, self._duties = desk, duties
        self._selector.register(desk.waker.fileno(), selectors.EVENT_READ, self._hear_bell)
        self._chores.append(Chore("tidying the store", desk.store.tidy))
        if hello.settings.blobs.url is not None:
            sweeper = Sweeper(desk.store, hello.settings.blobs.url, self.id)
            self._chores.append(Chore("sweeping large payloads", sweeper.sweep))
        for chore in self._chores:
            chore.start()
        served = "all queues" if self.queues is None else f"queues {', '.join(self.queues)}"
        log.info(
            "worker %s serves %s of %s with %s, %s at a time in %s",
            self.id, served, desk.store.url, counted(len(hello.tasks), "task"),
            counted(self.settings.concurrency, "job"), counted(len(self.crew.shape), "executor"),
        )  # fmt: skip
        if self._on_ready is not None:
            self._on_ready()

    def _adopt(self, settings: Settings) -> None:
        """The app's own settings of the worker, of which those of the command line have precedence."""
        self.retention = settings.retention
        self.settings = msgspec.structs.replace(settings.worker, **self._overrides)
        self.crew.adopt(self.settings)

    # -- steering: also for the duties -------------------------------------------------------------

    @property
    def status(self) -> WorkerStatus:
        """What the heartbeat says."""
        state: Any = "draining" if self.phase is Phase.KILLED else self.phase.value
        failed = self._desk.failed if self._desk is not None else 0
        return WorkerStatus(state=state, running=self.crew.running(), done=self.done, failed=failed)

    def known_leases(self) -> set[tuple[JobId, int]]:
        """All jobs that were claimed and whose outcome the store has not acknowledged."""
        known = self.suspects.leases()
        if self._desk is not None:
            known |= self._desk.given_up
            known.update((outcome.id, outcome.lease) for outcome in self._desk.unsaid.outcomes)
        for member in self.crew.members:
            known.update((held.claim.id, held.claim.lease) for held in member.jobs.values())
        return known

    def obey(self, order: Order) -> None:
        """Do what the store was told that this worker should."""
        log.info("ordered to %s%s", order.kind, f" job {order.job}" if order.job else "")
        match order.kind:
            case "cancel" if order.job is not None:
                self._cancel(order.job, order.reason)
            case "pause" if self.phase is Phase.ACTIVE:
                self.phase = Phase.PAUSED
            case "resume" if self.phase is Phase.PAUSED:
                self.phase = Phase.ACTIVE
                if self._desk is not None:
                    self._desk.hungry = True
            case "drain":
                self.drain(math.inf)
            case "stop":
                self.drain()
            case _:
                pass

    def drain(self, patience: float | None = None) -> None:
        """Claim no more, finish what runs within so many seconds, give back the rest."""
        patience = self.settings.shutdown_timeout if patience is None else patience
        if self.phase in (Phase.DRAINING, Phase.KILLED):
            self._deadline = min(self._deadline, time.monotonic() + patience)
            log.info("stopping within %g s", max(0.0, self._deadline - time.monotonic()))
            return
        log.info("stopping%s", _last_jobs(self.crew.running(), patience))
        self.phase = Phase.DRAINING
        self._deadline = time.monotonic() + patience
        self._conclude(self.suspects.give_back())
        for member in [each for each in self.crew.members if not each.ready]:
            self._dismiss(member)
        self.crew.retire_all()
        if self._duties is not None:
            self._duties.tell()

    def _cancel(self, id_: JobId, reason: str | None) -> None:
        if (outcome := self.suspects.cancel(id_, reason)) is not None:
            self._conclude([outcome])
        else:
            self.crew.cancel(id_, reason)

    # -- losses ------------------------------------------------------------------------------------

    def begin_anew(self) -> None:
        """This worker was taken for dead, and its jobs are others' now: stop running them, and start over."""
        log.warning("worker %s was taken for dead; its jobs are run by others", self.id)
        for member in list(self.crew.members):
            self._dismiss(member)
        self.suspects.give_back()
        if not self._is_staffed():
            if self._desk is not None:
                self._desk.forget(self.id)
            return
        self.id = new_worker_id()
        log.info("it starts anew as %s", self.id)
        if self._desk is not None:
            self._desk.forget(self.id)
            try:
                if self._duties is not None:
                    self._duties.start_anew()
            except StoreError as error:
                self._desk.fail(error)
        self._fill()

    def kill(self, member: Member) -> None:
        """Have done with an executor that has ended, or is killed for the sake of its doomed jobs."""
        self._lose(member)

    def _lose(self, member: Member, reason: str | None = None) -> None:
        """An executor is dead, or is killed with this: each of its jobs gets what it deserves."""
        # Outcomes that it sent before are as good as any.
        while frames := member.receive():
            for frame in frames:
                self._understand(member, frame)
        if self._desk is None and reason is None:
            raise ConfigError(
                "the executor ended while it loaded the app, without a word; try to import the app"
            )
        lost = member.casualties()
        if reason is None and not member.doomed and not member.retiring:
            log.error("executor %d died with %d jobs", member.launched.pid, len(lost))
        self._dismiss(member)
        self._conclude(self.crew.outcomes_of_lost(member, lost, reason))
        if not member.ready or (reason is None and not (member.retiring or member.done or lost)):
            self.crew.wait_before_hiring()
        self._fill()

    def _is_staffed(self) -> bool:
        """Whether executors that end are to be replaced: not when the worker is about to end itself."""
        return self.phase in (Phase.ACTIVE, Phase.PAUSED)

    def _fill(self) -> None:
        if self._is_staffed():
            self.crew.fill()

    def _dismiss(self, member: Member) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(member)
        self.crew.dismiss(member)


def _last_jobs(count: int, patience: float) -> str:
    if not count:
        return ""
    time_left = "as long as it takes" if patience == math.inf else f"{patience:g} s at most"
    return f": {counted(count, 'job')} {'runs' if count == 1 else 'run'} on, for {time_left}"
