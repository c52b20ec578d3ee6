"""No call is long because of what is many, and none is led astray by numbers that are large or by what others have deleted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import redis

from ferryman.clock import ManualClock
from ferryman.errors import StoreCorrupt, StoreFull
from ferryman.io.operation import Operation, Requests, Runner
from ferryman.io.redis import Call
from ferryman.job import PENDING, NewJob, Outcome, OutcomeKind, State, UniqueKey, WorkerId, new_ids
from ferryman.store.memory.store import MemoryStore
from ferryman.store.port import Store
from ferryman.store.records import Filter, QueueSettings, Retention, Take, WorkerInfo
from ferryman.store.redis.store import RedisStore
from tests.services.redis import redis_server
from tests.services.server import Server

W = WorkerId("w")
LEASE = 10_000_000_000


class Quay:
    """A store and its keys."""

    def __init__(self, url: str) -> None:
        self.clock = ManualClock()
        self.store = RedisStore(url, self.clock)
        self.run = self.store.runner().run
        self.client: Any = redis.Redis.from_url(url)
        self.register(W)

    def register(self, worker: WorkerId) -> None:
        info = WorkerInfo(
            id=worker, host="h", place="p", pid=1, pid_birth=1, queues=None, tasks=("t",), concurrency=1
        )
        self.run(self.store.register(info, LEASE))

    def count(self, state: State) -> int:
        return sum(lane.counts[state] for lane in self.run(self.store.lanes()))


def jobs(count: int, **fields: object) -> list[NewJob]:
    return [NewJob(id=id_, task="t", args=b"[]", **fields) for id_ in new_ids(count)]  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with redis_server(appendonly="no") as server:
        yield server


@pytest.fixture
def quay(server: Server) -> Iterator[Quay]:
    with redis.Redis.from_url(server.url) as client:
        client.flushall()
        client.config_set("maxmemory", 0)
    quay = Quay(server.url)
    yield quay
    quay.client.close()
    quay.store.close()


def test_a_claim_expires_some_thousand_late_jobs_and_leaves_the_rest_to_the_next(quay: Quay) -> None:
    quay.run(quay.store.enqueue([*jobs(9_000, ttl=10), *jobs(5)]))
    quay.clock.advance(1)
    expired, claimed = [], 0

    for _ in range(9):
        claimed += len(quay.run(quay.store.claim(W, [Take("default", 0, 10)], 10)).jobs)
        expired.append(quay.count(State.EXPIRED))

    assert expired[0] <= 2_100
    assert expired[-1] == 9_000
    assert claimed == 5


def test_a_prune_forgets_all_that_has_ended_however_much_it_is(quay: Quay) -> None:
    for n in range(3):
        unique = [new for m in range(1_000) for new in jobs(1, unique=UniqueKey(f"{n}-{m}", period=10))]
        quay.run(quay.store.enqueue(unique))
    quay.clock.advance(1)

    quay.run(quay.store.prune(Retention(), 10))

    assert (quay.client.hlen("{ferryman}:unique"), quay.client.zcard("{ferryman}:fading")) == (0, 0)


def test_workers_that_are_gone_are_forgotten_behind_a_thousand_that_are_not(quay: Quay) -> None:
    for n in range(1_100):
        quay.register(WorkerId(f"w{n}"))
    for n in range(1_050, 1_100):
        quay.run(quay.store.leave(WorkerId(f"w{n}")))
    quay.clock.advance(7_200)

    quay.run(quay.store.prune(Retention(), 10))

    assert len(quay.run(quay.store.workers())) == 1_051


@pytest.mark.parametrize("delay", [2**53, 2**62, 2**63, 2**64])
def test_a_job_that_is_put_off_for_ever_keeps_nobody_from_working(quay: Quay, delay: int) -> None:
    (late,) = jobs(1, delay=delay, unique=UniqueKey("u", period=delay))
    (never_late,) = jobs(1, ttl=delay, max_attempts=2)
    quay.run(quay.store.enqueue([late, never_late]))
    quay.run(quay.store.lock("leader", "ann", delay))

    (claim,) = quay.run(quay.store.claim(W, [Take("default", 0, 5)], 5)).jobs
    again = Outcome(claim.id, claim.lease, OutcomeKind.RETRY, delay=min(delay, 2**62))
    quay.run(quay.store.settle(W, [again]))

    assert claim.id == never_late.id
    assert quay.run(quay.store.claim(W, [Take("default", 0, 5)], 5)).jobs == []
    assert [job.state for job in quay.run(quay.store.find(Filter(), 9))] == [State.SCHEDULED] * 2
    assert len(quay.run(quay.store.pack([], 0, 9))) == 2
    assert quay.run(quay.store.enqueue(jobs(1, unique=UniqueKey("u"))))[0].duplicate
    assert quay.run(quay.store.lock("leader", "bob", 5)) is None


@pytest.mark.parametrize("number", [2**31, 2**32, 2**53, 2**63, 2**64])
def test_as_many_attempts_and_places_as_anybody_likes_are_many(quay: Quay, number: int) -> None:
    quay.run(quay.store.enqueue(jobs(3, key="k", room=number, max_attempts=number)))
    claims = quay.run(quay.store.claim(W, [Take("default", 0, 5)], 5)).jobs

    quay.run(quay.store.settle(W, [Outcome(each.id, each.lease, OutcomeKind.RETRY) for each in claims]))

    assert len(claims) == 3
    assert quay.count(State.READY) == 3
    assert len(quay.run(quay.store.pack([], 0, 9))) == 3


def test_parked_jobs_whose_records_somebody_has_deleted_are_an_error_and_no_endless_search(
    quay: Quay,
) -> None:
    quay.run(quay.store.enqueue(jobs(150, key="k")))
    quay.client.delete("{ferryman}:job")

    with pytest.raises(StoreCorrupt, match="parked"):
        quay.run(quay.store.enqueue(jobs(1, key="k", room=2)))

    assert quay.client.ping()


def test_workers_that_come_anew_to_a_full_server_make_room(quay: Quay) -> None:
    run, store, client = quay.run, quay.store, quay.client
    run(store.enqueue(jobs(2_000)))
    run(store.leave(W))
    client.config_set("maxmemory", client.info("memory")["used_memory"] - 100_000)
    with pytest.raises(StoreFull):
        run(store.enqueue(jobs(1)))

    quay.register(WorkerId("v"))
    run(store.declare([QueueSettings(name="default", fair=True), QueueSettings(name="other")]))
    claims = run(store.claim(WorkerId("v"), [Take("default", 0, 2_000)], 2_000)).jobs
    done = [Outcome(each.id, each.lease, OutcomeKind.SUCCEEDED) for each in claims]
    accepted = run(store.settle(WorkerId("v"), done))
    run(store.prune(Retention(succeeded_count=0), 2_000))

    assert accepted == [True] * 2_000
    assert not run(store.enqueue(jobs(1)))[0].duplicate


def test_jobs_that_come_and_go_while_a_queue_is_put_in_order_are_kept_in_their_order(quay: Quay) -> None:
    run, store = quay.run, quay.store
    few = QueueSettings(name="default", max_size=5_000, overflow="drop_oldest")

    def first_step(_: int) -> Requests[int]:
        done: int = yield Call("declare", (few.name, msgspec.msgpack.encode(few)))
        return done

    run(
        store.enqueue(
            [*jobs(600, delay=60_000), *jobs(600, key="k"), *jobs(1_300), *jobs(900, queue="other")]
        )
    )
    is_done = run(Operation("declare", first_step))
    claims = run(store.claim(W, [Take("default", 0, 700)], 700)).jobs
    again = [Outcome(each.id, each.lease, OutcomeKind.RETRY, delay=5_000) for each in claims[:300]]
    run(store.settle(W, again))
    run(store.cancel(Filter(queues=("default",), states=(State.SCHEDULED,)), 400))
    run(store.enqueue(jobs(50)))
    run(store.declare([few]))

    pending = run(store.find(Filter(queues=("default",), states=tuple(PENDING)), 9_999))[::-1]
    kept = quay.client.zrange("{ferryman}:arrivals:default", 0, -1)
    assert is_done == 0
    assert [spot.decode()[12:] for spot in kept] == [job.id for job in pending]
    assert run(store.queues())[0].settings.max_size == 5_000


CHILDREN: list[dict[str, object]] = [
    {},
    {"on_parent_failure": "continue"},
    {"on_parent_failure": "hold"},
    {"ttl": 90_000, "tags": ("red",)},
    {"delay": 50_000},
    {"key": "k"},
    {"key": "o", "ordered": True, "on_parent_failure": "continue"},
    {"queue": "fair", "tenant": "acme"},
    {"queue": "few"},
    {"unique": True},
]


def raise_a_family(store: Store, run: Runner, kind: OutcomeKind) -> list[tuple[object, ...]]:
    """What becomes of a thousand children of all kinds, some of whom have another parent or children of their own."""
    settings = (
        QueueSettings(name="fair", fair=True),
        QueueSettings(name="few", max_size=500, overflow="drop_oldest"),
    )
    run.run(store.declare(settings))
    parent, other = jobs(2, queue="parents")
    children: list[NewJob] = []
    for n in range(1_000):
        fields = dict(CHILDREN[n % len(CHILDREN)])
        if fields.pop("unique", None):
            fields["unique"] = UniqueKey(f"{n}")
        after = (parent.id, other.id) if n % 7 == 0 else (parent.id,)
        children += jobs(1, after=after, **fields)
        if n % 11 == 0:
            children += jobs(1, after=(children[-1].id,))
    run.run(store.enqueue([parent, other, *children]))
    (claim,) = run.run(store.claim(W, [Take("parents", 0, 1)], 1)).jobs
    run.run(store.settle(W, [Outcome(claim.id, claim.lease, kind)]))
    run.run(store.enqueue(jobs(450, queue="few")))
    return [
        (job.state, job.run_at, job.finished_at, (job.reason or "")[:6], job.queue)
        for job in run.run(store.find(Filter(), 9_999))
    ]


@pytest.mark.parametrize("kind", [OutcomeKind.SUCCEEDED, OutcomeKind.DEAD])
def test_children_who_are_told_together_fare_as_those_who_are_told_one_by_one(
    quay: Quay, kind: OutcomeKind
) -> None:
    memory = MemoryStore(ManualClock(quay.clock.now()))
    info = WorkerInfo(id=W, host="h", place="p", pid=1, pid_birth=1, queues=None, tasks=("t",), concurrency=1)
    memory.runner().run(memory.register(info, LEASE))

    one_by_one = raise_a_family(memory, memory.runner(), kind)
    together = raise_a_family(quay.store, quay.store.runner(), kind)

    assert together == one_by_one
    assert len({state for state, *_ in together}) >= 4
    memory.close()
