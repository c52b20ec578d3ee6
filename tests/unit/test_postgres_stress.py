"""Some seconds of everybody at once on PostgreSQL: producers, some in long transactions of their own, workers that come and
die, people who steer, rescuers and pruners. In the end all is done, and all that is written down is true."""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from ferryman.clock import ManualClock
from ferryman.errors import QueueFull, StoreBusy, UnknownParent, WorkerGone
from ferryman.io.operation import Operation
from ferryman.job import JobId, NewJob, Outcome, OutcomeKind, State, UniqueKey, WorkerId, new_id
from ferryman.store.open import open_store
from ferryman.store.port import Store
from ferryman.store.records import Filter, JobNote, QueueSettings, Retention, Take, WorkerStatus
from tests.services.postgres import postgres_server
from tests.services.server import Server
from tests.unit.postgres_scene import PROMISES, info_of

SECONDS = float(os.environ.get("FERRYMAN_STRESS_SECONDS", "4"))
_PROMISES = PROMISES | {
    # An ordered job may come to a key of which two jobs run.
    "a key knows its holders": PROMISES["a key knows its holders"].removesuffix(" OR room.used > room.room")
}
QUEUES = ("plain", "fair", "full")
PLAN = [Take(queue, priority, 20) for queue in QUEUES for priority in (1, 0)]
LEASE = 10_000


class Storm:
    """What all share who take part."""

    def __init__(self, url: str, seed: int) -> None:
        self.url = url
        self.seed = seed
        self.clock = ManualClock()
        self.over = threading.Event()
        self.recent: list[JobId] = []
        """Ids that others may name."""
        self.leased: Counter[tuple[JobId, int]] = Counter()
        self.settled: Counter[tuple[JobId, int]] = Counter()
        self.dead: list[WorkerId] = []
        self.failures: list[BaseException] = []
        self.done: Counter[str] = Counter()

    def open(self) -> Store:
        return open_store(f"{self.url}?schema=storm", self.clock)

    def take_part(self, role: Callable[[Storm, Store, random.Random], None], number: int) -> threading.Thread:
        def live() -> None:
            luck = random.Random(f"{self.seed} {role.__name__} {number}")
            store = self.open()
            try:
                while not self.over.is_set():
                    role(self, store, luck)
                    self.done[role.__name__] += 1
            except BaseException as error:
                self.failures.append(error)
                self.over.set()
            finally:
                store.close()

        thread = threading.Thread(target=live, name=f"{role.__name__} {number}")
        thread.start()
        return thread


def _job(storm: Storm, luck: random.Random) -> NewJob:
    kind = luck.randrange(10)
    after = tuple({luck.choice(storm.recent) for _ in range(2)}) if kind < 2 and storm.recent else ()
    job = NewJob(
        id=new_id(), task="work", args=b"[]", queue=luck.choice(QUEUES), priority=luck.randrange(2), max_attempts=2,
        tenant=luck.choice("ab"), after=after, on_parent_failure=luck.choice(("cancel", "continue")),
        key=luck.choice("xyz") if kind in (1, 2, 3) else None, room=2, ordered=kind == 3,
        unique=UniqueKey(luck.choice("uvw"), until=luck.choice(("finished", "started"))) if kind in (3, 4) else None,
        delay=luck.randrange(50) if kind == 5 else 0, ttl=luck.randrange(1, 100) if kind == 6 else None,
    )  # fmt: skip
    storm.recent.append(job.id)
    del storm.recent[:-60]
    return job


def produce(storm: Storm, store: Store, luck: random.Random) -> None:
    batch = [_job(storm, luck) for _ in range(luck.choice((1, 1, 1, 5, 20)))]
    with contextlib.suppress(QueueFull, UnknownParent):
        store.runner().run(store.enqueue(batch))
    storm.over.wait(0.002)


def produce_deferred(storm: Storm, store: Store, luck: random.Random) -> None:
    with psycopg.connect(storm.url) as connection:
        guest = store.using(connection)
        try:
            for _ in range(luck.randrange(1, 3)):
                # One unique key at most, as those who take several have to agree on their order.
                batch = [_job(storm, luck) for _ in range(3)]
                if any(job.unique for job in batch):
                    batch = batch[:1]
                guest.runner.run(guest.enqueue(batch))
                if any(job.unique for job in batch):
                    break
            storm.over.wait(luck.random() * 0.05)
        except (QueueFull, UnknownParent):
            pass
        if luck.random() < 0.3:
            connection.rollback()


def work(storm: Storm, store: Store, luck: random.Random) -> None:
    """The life of a worker."""
    worker, run_all = WorkerId(new_id()), store.runner().run_all
    store.runner().run(store.register(info_of(worker), LEASE))
    outcomes: list[Outcome] = []
    for _ in range(luck.randrange(5, 60)):
        if storm.over.is_set():
            break
        notes = [
            JobNote(each.id, each.lease, luck.random(), "so far")
            for each in luck.sample(outcomes, len(outcomes) // 2)
        ]
        noted: list[Operation[Any]] = [store.annotate(worker, notes)] if notes else []
        said: list[Operation[Any]] = [store.settle(worker, outcomes)] if outcomes else []
        said.append(store.claim(worker, PLAN, 30))
        try:
            try:
                answers = run_all([*noted, *said])
            except StoreBusy:
                # Notes wait for nobody: a job of them is being steered.
                assert noted
                answers = run_all(said)
        except WorkerGone:
            return
        for outcome, kept in zip(outcomes, answers[-2] if outcomes else (), strict=True):
            storm.settled[outcome.id, outcome.lease] += kept
        claims = list(answers[-1].jobs)
        for claim in claims:
            storm.leased[claim.id, claim.lease] += 1
        luck.shuffle(claims)
        kinds = (
            [*[OutcomeKind.SUCCEEDED] * 5, *OutcomeKind] if luck.random() < 0.7 else [OutcomeKind.SUCCEEDED]
        )
        outcomes = [
            Outcome(claim.id, claim.lease, luck.choice(kinds), delay=luck.choice((0, 0, 20)))
            for claim in claims
        ]
        if luck.random() < 0.1:
            store.runner().run(store.heartbeat(worker, WorkerStatus(), LEASE))
    if luck.random() < 0.5:
        store.runner().run(store.leave(worker))
    else:
        storm.dead.append(worker)


def rescue(storm: Storm, store: Store, luck: random.Random) -> None:
    dead = storm.dead[-5:]
    store.runner().run(store.rescue(dead))
    storm.over.wait(luck.random() * 0.05)


def steer(storm: Storm, store: Store, luck: random.Random) -> None:
    ids = tuple(luck.sample(storm.recent, min(len(storm.recent), 10)))
    which = luck.choice(
        (Filter(ids=ids), Filter(queues=(luck.choice(QUEUES),)), Filter(states=(luck.choice(list(State)),)))
    )
    operations: tuple[Operation[Any], ...] = (
        store.cancel(which, 20), store.replay(which, 20), store.reprioritise(which, luck.randrange(2), 20),
        store.delete(which, 20), store.edit(luck.choice(ids) if ids else JobId(new_id()), b"x"),
        store.declare([QueueSettings(name="fair", fair=luck.random() < 0.8)]),
        store.prune(Retention(succeeded=luck.choice((0, 1_000)), dead=2_000, other=500), 50),
    )  # fmt: skip
    store.runner().run(luck.choice(operations))
    storm.over.wait(luck.random() * 0.02)


@pytest.fixture
def server() -> Iterator[Server]:
    with postgres_server(synchronous_commit="off", deadlock_timeout="100ms") as server:
        yield server


@pytest.mark.parametrize("seed", [1])
def test_a_storm_leaves_everything_as_it_has_to_be(server: Server, seed: int) -> None:
    storm = Storm(server.url, seed)
    store = storm.open()
    run = store.runner().run
    run(store.declare([
        QueueSettings(name="fair", fair=True), QueueSettings(name="full", max_size=30, overflow="drop_oldest"),
    ]))  # fmt: skip

    threads = [
        storm.take_part(role, number)
        for role, count in ((produce, 2), (produce_deferred, 2), (work, 3), (rescue, 1), (steer, 2))
        for number in range(count)
    ]
    end = time.monotonic() + SECONDS
    while time.monotonic() < end and not storm.over.is_set():
        time.sleep(0.005)
        storm.clock.advance(0.005)
    storm.over.set()
    for thread in threads:
        thread.join()
    if storm.failures:
        raise storm.failures[0]
    # Of a queue that has become fair just now, jobs have no tags that were ready before.
    run(store.declare([QueueSettings(name="fair")]))

    with psycopg.connect(server.url, autocommit=True, options="-c search_path=storm") as admin:
        assert {
            name: rows for name, query in _PROMISES.items() if (rows := admin.execute(query).fetchall())
        } == {}
        _drain(storm, store)
        assert {
            name: rows for name, query in _PROMISES.items() if (rows := admin.execute(query).fetchall())
        } == {}
        assert (
            admin.execute("SELECT seq, state, flags, key, missing FROM job WHERE state < 5").fetchall() == []
        )
        assert admin.execute("SELECT key FROM room").fetchall() == []
    store.close()
    assert max(storm.leased.values()) == 1
    assert max(storm.settled.values()) == 1
    assert "deadlock detected" not in server.log
    assert all(storm.done[role] > 5 for role in ("produce", "produce_deferred", "work", "rescue", "steer"))


def _drain(storm: Storm, store: Store) -> None:
    run, worker = store.runner().run, WorkerId("last")
    run(store.register(info_of(worker), 10**12))
    storm.clock.advance(2 * LEASE / 1_000)
    run(store.rescue())
    for _ in range(10_000):
        storm.clock.advance(0.1)
        claimed = run(store.claim(worker, PLAN, 200))
        outcomes = [Outcome(claim.id, claim.lease, OutcomeKind.SUCCEEDED) for claim in claimed.jobs]
        kept: list[bool] = run(store.settle(worker, outcomes))
        assert all(kept)
        if not claimed.jobs and claimed.next_due is None:
            return
    raise AssertionError("it does not come to an end")
