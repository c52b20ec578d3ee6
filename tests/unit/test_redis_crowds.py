"""Producers that come in crowds: single jobs that wait together go out together, and each caller gets its own answer."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

import pytest

from ferryman.errors import QueueFull, StoreError
from ferryman.job import JobId, NewJob, UniqueKey, new_id
from ferryman.store.records import Enqueued, Filter, QueueSettings
from ferryman.store.redis.store import RedisStore
from tests.services.redis import redis_server
from tests.services.server import Server

from .redis_trial import ask, fact

CALLS = "cmdstat_fcall"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with redis_server(appendonly="no") as server:
        yield server


@pytest.fixture
def store(server: Server) -> Iterator[RedisStore]:
    ask(server.url, "FLUSHALL")
    store = RedisStore(server.url)
    yield store
    store.close()


def job(args: bytes = b"[]", **fields: object) -> NewJob:
    return NewJob(**{"id": new_id(), "task": "t", "args": args, **fields})  # type: ignore[arg-type]


def enqueue_apart(store: RedisStore, jobs: Sequence[NewJob]) -> list[Enqueued | BaseException]:
    """Each by a coroutine of its own, all at once."""

    async def live() -> list[Enqueued | BaseException]:
        runner = store.async_runner()
        await runner.run(store.lanes())
        asked = (runner.run(store.enqueue([each])) for each in jobs)
        answers = await asyncio.gather(*asked, return_exceptions=True)
        await runner.close()
        return [answer if isinstance(answer, BaseException) else answer[0] for answer in answers]

    return asyncio.run(live())


def calls(server: Server) -> int:
    """How many calls that write the server has carried out."""
    stats = ask(server.url, "INFO", "commandstats").decode()
    lines = [line for line in stats.splitlines() if line.startswith(f"{CALLS}:")]
    return int(lines[0].partition("calls=")[2].partition(",")[0]) if lines else 0


def test_single_jobs_of_one_shape_are_stored_by_a_few_calls_in_their_order(
    store: RedisStore, server: Server
) -> None:
    jobs = [job(b"%d" % n) for n in range(1_000)]
    ask(server.url, "CONFIG", "RESETSTAT")

    answers = enqueue_apart(store, jobs)

    stored = store.runner().run(store.find(Filter(), 2_000))[::-1]
    assert answers == [Enqueued(each.id) for each in jobs]
    assert [each.id for each in stored] == [each.id for each in jobs]
    assert calls(server) <= 10
    assert [each.args for each in store.runner().run(store.get([jobs[7].id, jobs[999].id])) if each] == [
        b"7",
        b"999",
    ]


def test_jobs_of_several_shapes_keep_what_is_theirs(store: RedisStore) -> None:
    jobs = [job(b"%d" % n, queue=f"q{n % 3}", priority=n % 2, delay=n % 4) for n in range(200)]

    enqueue_apart(store, jobs)

    stored = store.runner().run(store.get([each.id for each in jobs]))
    assert [(each.queue, each.priority, each.args) for each in stored if each] == [
        (each.queue, each.priority, each.args) for each in jobs
    ]


def test_each_of_a_crowd_learns_whether_its_own_job_is_a_duplicate(store: RedisStore) -> None:
    known = job()
    store.runner().run(store.enqueue([known]))
    twin = job()
    unique = [job(unique=UniqueKey("u")) for _ in range(3)]

    answers = enqueue_apart(store, [job(), known, twin, *unique, twin, job()])

    told = [(answer.id, answer.duplicate) for answer in answers if isinstance(answer, Enqueued)]
    assert [duplicate for _, duplicate in told] == [False, True, False, False, True, True, True, False]
    assert [id_ for id_, duplicate in told if duplicate] == [known.id, unique[0].id, unique[0].id, twin.id]


def test_of_a_crowd_at_a_bounded_queue_as_many_are_let_in_as_have_room(store: RedisStore) -> None:
    store.runner().run(store.declare([QueueSettings(name="few", max_size=5)]))

    answers = enqueue_apart(store, [job(queue="few") for _ in range(20)])

    assert [isinstance(answer, Enqueued) for answer in answers] == [True] * 5 + [False] * 15
    assert all(isinstance(answer, QueueFull) for answer in answers[5:])
    assert jobs_of_few(store) == 5


def jobs_of_few(store: RedisStore) -> int:
    (lane,) = [lane for lane in store.runner().run(store.lanes()) if lane.queue == "few"]
    return sum(lane.counts.values())


def test_a_batch_that_redis_would_not_take_is_refused_before_it_is_sent(
    store: RedisStore, server: Server
) -> None:
    one = job()
    received = fact(server.url, "total_net_input_bytes")

    with pytest.raises(StoreError, match="smaller batches"):
        store.runner().run(store.enqueue([one] * 500_001))

    assert fact(server.url, "total_net_input_bytes") < received + 10_000
    assert store.runner().run(store.get([JobId(one.id)])) == [None]
