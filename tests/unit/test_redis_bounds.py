"""No call is long because of what is many, and none is led astray by numbers that are large or by what others have deleted."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from ferryman.clock import ManualClock
from ferryman.errors import StoreCorrupt
from ferryman.job import NewJob, Outcome, OutcomeKind, State, UniqueKey, WorkerId, new_ids
from ferryman.store.records import Filter, Retention, Take, WorkerInfo
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
        self.client = redis.Redis.from_url(url)
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
