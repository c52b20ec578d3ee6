"""A real supervisor, a store in memory and executors that do as a test says, led turn by turn on a clock that tests move."""

from __future__ import annotations

import itertools
import selectors
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from ferryman.clock import ManualClock
from ferryman.config import Settings, WorkerSettings
from ferryman.errors import StoreError
from ferryman.io.operation import Operation, Requests, Runner
from ferryman.job import JobId, Outcome, OutcomeKind, State, WorkerId
from ferryman.store.open import open_store
from ferryman.store.records import Order, OrderKind, Take
from ferryman.worker.desk import Desk
from ferryman.worker.frames import (
    Assignment,
    CancelRequest,
    ExecutorHello,
    Frame,
    FrameReader,
    Kind,
    Returned,
    TaskFacts,
    write_frame,
)
from ferryman.worker.member import Member
from ferryman.worker.slots import SlotTable
from ferryman.worker.supervisor import Supervisor
from tests.conformance.driver import BOOM, Ferry

__all__ = ["WORK", "Begin", "Scene", "Script", "ScriptedExecutor", "VirtualTime", "obey", "scenes"]

WORK = TaskFacts(name="work", track="thread")

_LEAST_SLEEP = 0.000_1
"""Seconds that go by even if nobody sleeps for long: so nobody waits for ever by steps too small for a float."""


class VirtualTime(ManualClock):
    """What `time` and the store say, all by one clock that stands still until it is moved or slept by."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.seconds = 1_000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.seconds)
        monkeypatch.setattr(time, "monotonic_ns", lambda: int(self.seconds * 1e9))
        monkeypatch.setattr(time, "time", lambda: self.now() / 1000)
        monkeypatch.setattr(time, "sleep", lambda seconds: self.advance(max(seconds, _LEAST_SLEEP)))

    def now(self) -> int:
        return super().now() + int(self.seconds * 1000)

    def advance(self, seconds: float) -> None:
        self.seconds += seconds

    def set_forward(self, seconds: float) -> None:
        """Somebody sets the machine's clock, or it has slept: no time passes."""
        super().advance(seconds)


class ScriptedExecutor:
    """The far end of a socket pair: hears what the supervisor says, and does what its script makes of it."""

    can_kill = True

    def __init__(self, places: int, pid: int, script: Script, tasks: list[TaskFacts]) -> None:
        self.sock, self._there = socket.socketpair()
        self._there.setblocking(False)
        self.table = SlotTable.create(places)
        self.places = places
        self.pid = pid
        self.script = script
        self.tasks = {task.name: task for task in tasks}
        self.heard: list[Frame] = []
        self.waiting: list[Assignment] = []
        self.running: dict[int, Assignment] = {}
        """What runs in which slot."""
        self.cancelled: set[JobId] = set()
        self.is_ready = False
        self.is_alive = True
        self.is_closed = False
        self.drains = False
        self.has_said_bye = False
        self._reader = FrameReader()

    def kill(self) -> None:
        self.die()

    def has_ended(self) -> bool:
        return not self.is_alive

    def close(self) -> None:
        assert not self.is_closed
        self.is_closed = True
        self.sock.close()
        self._there.close()
        self.table.close()

    def die(self) -> None:
        """Its process ends."""
        self.is_alive = False
        self._there.close()

    def die_behind_its_socket(self) -> None:
        """Its process ends, but one that it has forked holds its socket open."""
        self.is_alive = False

    # -- what it says ------------------------------------------------------------------------------

    def say(self, kind: Kind, body: object = None) -> None:
        write_frame(self._there, kind, body)

    def say_nonsense(self) -> None:
        self._there.sendall(b"\0\0\0\5hello")

    def say_hello(self) -> None:
        if not self.is_ready:
            self.is_ready = True
            hello = ExecutorHello(
                pid=self.pid,
                url="memory://",
                settings=Settings(url="memory://"),
                tasks=list(self.tasks.values()),
                queues=[],
            )
            self.say(Kind.HELLO, hello)

    def say_bye(self) -> None:
        """If it was told to drain and has nothing left to do."""
        if self.drains and not self.running and not self.waiting and not self.has_said_bye:
            self.has_said_bye = True
            self.say(Kind.BYE)

    # -- what it hears -----------------------------------------------------------------------------

    def listen(self) -> None:
        """Hear all that has been said, and obey."""
        try:
            while data := self._there.recv(1 << 18):
                for frame in self._reader.feed(data):
                    self.heard.append(frame)
                    self._obey(frame)
        except BlockingIOError:
            pass

    def has_heard(self, kind: Kind) -> bool:
        return any(frame.kind is kind for frame in self.heard)

    def _obey(self, frame: Frame) -> None:
        match frame.kind:
            case Kind.RUN if self.drains:
                self._give_back(frame.body)
            case Kind.RUN:
                self.waiting += frame.body
            case Kind.RECALL:
                self._recall()
            case Kind.DRAIN:
                self.drains = True
                self._recall()
            case Kind.PING:
                self.say(Kind.PONG, frame.body)
            case Kind.CANCEL:
                self._cancel(frame.body)
            case _:
                raise AssertionError(frame)

    def _recall(self) -> None:
        recalled, self.waiting = self.waiting, []
        self._give_back([each for each in recalled if each.claim.id not in self.cancelled])
        for each in recalled:
            if each.claim.id in self.cancelled:
                self._answer(each, OutcomeKind.CANCELLED)

    def _give_back(self, assignments: Sequence[Assignment]) -> None:
        self.say(Kind.RETURNED, [Returned(each.claim.id, each.claim.lease) for each in assignments])

    def _cancel(self, request: CancelRequest) -> None:
        for each in [*self.waiting, *self.running.values()]:
            if (each.serial, self._track(each)) == (request.serial, request.track):
                self.cancelled.add(each.claim.id)

    # -- what it does ------------------------------------------------------------------------------

    def start(self) -> None:
        """Start what waits, as far as there are places."""
        for each in list(self.waiting):
            slots = self.table.slots_of(self._track(each))[: self.places]
            slot = next((slot for slot in slots if slot not in self.running), None)
            if slot is not None and len(self.running) < self.places:
                self.waiting.remove(each)
                self.table.start(slot, each.serial)
                self.running[slot] = each

    def finish(self, kind: OutcomeKind = OutcomeKind.SUCCEEDED, **fields: Any) -> JobId:
        """End the job that has run longest, and say how."""
        slot = next(iter(self.running))
        assignment = self.running.pop(slot)
        self.table.finish(slot)
        if assignment.claim.id in self.cancelled:
            kind, fields = OutcomeKind.CANCELLED, {}
        self._answer(assignment, kind, **fields)
        return assignment.claim.id

    def finish_all(self) -> None:
        while self.running:
            self.finish()

    def _answer(self, assignment: Assignment, kind: OutcomeKind, **fields: Any) -> None:
        claim = assignment.claim
        self.say(Kind.DONE, [Outcome(claim.id, claim.lease, kind, 1_000, **fields)])

    def _track(self, assignment: Assignment) -> Any:
        task = self.tasks.get(assignment.claim.task)
        return task.track if task else "thread"


Script = Callable[[ScriptedExecutor], None]
"""What an executor does before each turn of its supervisor."""


def obey(executor: ScriptedExecutor) -> None:
    """An executor as it should be, with jobs that take until the test ends them."""
    executor.say_hello()
    executor.listen()
    executor.start()
    executor.say_bye()
    if executor.has_said_bye:
        executor.die()


class Scene:
    """One worker, whose executors answer only in `turn`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
        """`settings` are the worker's."""
        self.monkeypatch = monkeypatch
        self.time = VirtualTime(monkeypatch)
        self.store = open_store("memory://", self.time)
        self.ferry = Ferry(self.store, self.time, lambda: self.store)
        self.executors: list[ScriptedExecutor] = []
        """All that have been started."""
        self.script: Script = obey
        """That of executors which are started from now on."""
        self.tasks = [WORK]
        """What the app of executors that are started from now on has."""
        self.launch_fails: Exception | None = None
        self.launches_left = 0
        """How many can be started until `launch_fails` holds."""
        self.before_call: Callable[[], None] = lambda: None
        """Happens when the supervisor asks the store something: may raise."""
        self.after_call: Callable[[], None] = lambda: None
        """Happens when the store has answered; if it raises, the answer is lost."""
        runner = self.store.runner()
        monkeypatch.setattr(self.store, "runner", lambda: _HookedRunner(runner, self))
        overrides = {"concurrency": 4, "executors": 2, **settings}
        self.supervisor = Supervisor(
            self._launch, lambda _: self.store, settings=WorkerSettings(**overrides), overrides=overrides
        )
        self.supervisor._selector.close()
        monkeypatch.setattr(self.supervisor, "_selector", _Impatient())
        self.supervisor._selector.register(
            self.supervisor._inbox, selectors.EVENT_READ, self.supervisor._hear
        )
        self._numbers = itertools.count()
        self.supervisor.crew.hire(self.supervisor.crew.shape[:1])
        self.until(lambda: len(self.ready) == len(self.supervisor.crew.shape))

    def _launch(self, places: int) -> ScriptedExecutor:
        if self.launch_fails is not None:
            if not self.launches_left:
                raise self.launch_fails
            self.launches_left -= 1
        executor = ScriptedExecutor(places, 10_000 + len(self.executors), self.script, self.tasks)
        self.executors.append(executor)
        return executor

    def end(self) -> None:
        """The end of `Supervisor.run`, by whatever way."""
        self.supervisor._end()

    # -- time --------------------------------------------------------------------------------------

    def turn(self, seconds: float = 0.01) -> bool:
        """The executors act, and the supervisor has its turn. False once that is over."""
        self.time.advance(seconds)
        if self.supervisor._is_over():
            return False
        for executor in self.alive:
            executor.script(executor)
        self.supervisor._take_in()
        if self.supervisor._desk is not None:
            self.supervisor._serve(self.supervisor._desk)
        return True

    def go_on(self, seconds: float, step: float = 0.01) -> None:
        """Let so much time go by, or less if the supervisor ends."""
        until = self.time.seconds + seconds
        while self.time.seconds < until and self.turn(step):
            pass

    def until(self, condition: Callable[[], object], seconds: float = 60.0, step: float = 0.01) -> None:
        """Turn until it holds."""
        give_up = self.time.seconds + seconds
        while not condition():
            assert self.time.seconds < give_up, f"not within {seconds:g} s: {self}"
            self.turn(step)

    def until_over(self, seconds: float = 60.0, step: float = 0.01) -> float:
        """Turn until the supervisor has ended by itself. Answers how many seconds that took."""
        begun = self.time.seconds
        self.until(lambda: self.is_over, seconds, step)
        return self.time.seconds - begun

    @property
    def is_over(self) -> bool:
        return self.supervisor._is_over()

    def __str__(self) -> str:
        members = [
            (
                member.launched.pid,
                member.ready,
                member.retiring,
                member.stalled,
                member.solo,
                len(member.jobs),
            )
            for member in self.supervisor.crew.members
        ]
        states = Counter(job.state.name for job in self.ferry.jobs())
        return f"{self.supervisor.phase}, executors {members}, jobs {dict(states)}"

    # -- executors ---------------------------------------------------------------------------------

    @property
    def alive(self) -> list[ScriptedExecutor]:
        return [executor for executor in self.executors if executor.is_alive]

    @property
    def ready(self) -> list[ScriptedExecutor]:
        """Those whose hello the supervisor has heard."""
        ready = [member.launched for member in self.supervisor.crew.members if member.ready]
        return [executor for executor in self.executors if executor in ready]

    def member(self, executor: ScriptedExecutor) -> Member:
        """How the supervisor sees an executor."""
        return next(each for each in self.supervisor.crew.members if each.launched is executor)

    def where(self, job: JobId) -> ScriptedExecutor:
        """Who runs a job."""
        (executor,) = [each for each in self.alive if job in _ids(each.running.values())]
        return executor

    def running(self) -> list[JobId]:
        """What runs, in all executors."""
        return [id_ for executor in self.alive for id_ in _ids(executor.running.values())]

    # -- jobs --------------------------------------------------------------------------------------

    def start_jobs(self, count: int) -> list[JobId]:
        """Enqueue jobs, and wait until they run."""
        ids = self.ferry.add_many(count)
        self.until(lambda: set(ids) <= set(self.running()))
        return ids

    def suspects(self, count: int = 1) -> list[JobId]:
        """Enqueue jobs beside which two executors have died."""
        other = WorkerId(f"w-{next(self._numbers)}")
        plan = [Take(other, 0, count)]
        ids = self.ferry.add_many(count, queue=other, max_attempts=10)
        self.ferry.register(other)
        for _ in range(2):
            crashed = [
                Outcome(each.id, each.lease, OutcomeKind.CRASHED, error=BOOM)
                for each in self.ferry.claim(count, worker=other, plan=plan)
            ]
            accepted = self.ferry.run(self.store.settle(other, crashed))
            assert all(accepted)
        self.ferry.run(self.store.leave(other))
        return ids

    def states(self, ids: Sequence[JobId]) -> set[State | None]:
        return set(self.ferry.states(ids))

    def deaths(self, ids: Sequence[JobId]) -> list[int]:
        return [self.ferry.job(each).deaths for each in ids]

    # -- the store ---------------------------------------------------------------------------------

    @property
    def desk(self) -> Desk:
        assert self.supervisor._desk is not None
        return self.supervisor._desk

    def order(self, kind: OrderKind) -> None:
        """Leave the worker an order in the store."""
        self.ferry.run(self.store.order([self.supervisor.id], Order(kind)))

    def refuse(self, is_refused: Callable[[Outcome], bool]) -> None:
        """From now on the store does not take such outcomes."""
        settle = self.store.settle

        def refusing(worker: WorkerId, outcomes: Sequence[Outcome]) -> Operation[list[bool]]:
            operation = settle(worker, outcomes)
            return Operation(operation.name, _refuse) if any(map(is_refused, outcomes)) else operation

        self.monkeypatch.setattr(self.store, "settle", refusing)


Begin = Callable[..., Scene]
"""Begins a scene, with these settings of the worker, which stands until the test has ended."""


def scenes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Begin]:
    """To be made a fixture of."""
    begun: list[Scene] = []

    def begin(**settings: Any) -> Scene:
        begun.append(Scene(monkeypatch, **settings))
        return begun[-1]

    yield begin
    for scene in begun:
        if scene.supervisor._selector.get_map() is not None:
            scene.end()
        scene.store.close()


class _Impatient(selectors.PollSelector):
    """Waits for nobody: time does not pass by itself here."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        return super().select(0)


class _HookedRunner:
    """The store's runner, as the supervisor sees it."""

    def __init__(self, runner: Runner, scene: Scene) -> None:
        self._runner = runner
        self._scene = scene

    def run(self, operation: Operation[Any]) -> Any:
        (answer,) = self.run_all([operation])
        return answer

    def run_all(self, operations: Sequence[Operation[Any]]) -> list[Any]:
        self._scene.before_call()
        answers = self._runner.run_all(operations)
        self._scene.after_call()
        return answers

    def wait(self, seconds: float) -> None:
        self._runner.wait(seconds)

    def close(self) -> None:
        self._runner.close()


def _refuse(now: int) -> Requests[list[bool]]:
    raise StoreError("the store does not take this")
    yield


def _ids(assignments: Any) -> list[JobId]:
    return [each.claim.id for each in assignments]
