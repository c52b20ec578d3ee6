"""Long stories with thousands of jobs, told to the memory store and to Redis: both must know the same at each turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import pytest

from ferryman.clock import ManualClock
from ferryman.io.operation import Operation
from ferryman.job import Claim, ErrorInfo, JobId, NewJob, Outcome, OutcomeKind, State, WorkerId
from ferryman.store.memory.store import MemoryStore
from ferryman.store.port import Store
from ferryman.store.records import Filter, QueueSettings, Retention, Take, WorkerInfo
from ferryman.store.redis.store import RedisStore
from tests.services.redis import redis_server

W = WorkerId("w")
JOBS = 14_000
EVERYTHING = 10**9
QUEUES = ("plain", "other", "fair", "few")
PLAN = [(queue, priority) for queue in QUEUES for priority in (3, 0)]
ENDS = [OutcomeKind.SUCCEEDED] * 5 + [OutcomeKind.DEAD, OutcomeKind.CANCELLED, OutcomeKind.RETRY]

Verb = Callable[[Store], Operation[Any]]


class Story:
    def __init__(self, url: str, seed: int) -> None:
        self.luck = Random(seed)
        self.clock = ManualClock()
        self.memory: Store = MemoryStore(clock=self.clock)
        self.redis: Store = RedisStore(f"{url}?prefix=story-{seed}", self.clock)
        self.born = 0
        self.held: list[Claim] = []
        info = WorkerInfo(
            id=W, host="h", place="p", pid=1, pid_birth=1, queues=None, tasks=("a", "b"), concurrency=1
        )
        self.both(lambda store: store.register(info, EVERYTHING))
        self.both(
            lambda store: store.declare(
                [
                    QueueSettings(name="fair", fair=True, weights={"x": 2}),
                    QueueSettings(name="few", max_size=1_500, overflow="drop_oldest"),
                ]
            )
        )

    def close(self) -> None:
        self.redis.close()

    def both(self, verb: Verb) -> tuple[Any, Any]:
        one, other = (store.runner().run(verb(store)) for store in (self.memory, self.redis))
        return one, other

    def same(self, verb: Verb, told: Callable[[Any], Any] = lambda answer: answer) -> Any:
        one, other = self.both(verb)
        assert told(one) == told(other)
        return one

    def enqueue(self) -> None:
        pick = self.luck.choice
        fields = {
            "queue": pick(QUEUES),
            "priority": pick([0, 0, 3]),
            "delay": pick([0, 0, 0, 5_000]),
            "tenant": pick([None, "x", "y"]),
            "tags": pick([(), (), ("red",), ("red", "blue")]),
            "key": pick([None, None, None, "k"]),
            "max_attempts": pick([1, 3]),
            "ttl": pick([None, None, None, 60_000]),
        }
        jobs = []
        for _ in range(pick([1, 5, 50, 400, 1_400])):
            self.born += 1
            jobs.append(NewJob(id=JobId(f"{self.born:032x}"), task=pick("ab"), args=b"x", **fields))  # type: ignore[arg-type]
        self.same(lambda store: store.enqueue(jobs), lambda answers: [each.id for each in answers])

    def work(self) -> None:
        pick = self.luck.choice
        limit = pick([3, 100, 700])
        # How many due jobs one claim promotes is each store's to say.
        for _ in range(20):
            self.both(lambda store: store.claim(W, [], 0))
        claimed = self.same(
            lambda store: store.claim(W, [Take(*lane, limit) for lane in PLAN], limit),
            lambda answer: [(claim.id, claim.lease, claim.attempt) for claim in answer.jobs],
        )
        self.held += claimed.jobs
        done = [claim for claim in self.held if self.luck.random() < 0.9]
        self.held = [claim for claim in self.held if claim not in done]
        outcomes = [self.outcome(claim, pick(ENDS)) for claim in done]
        self.same(lambda store: store.settle(W, outcomes))

    def outcome(self, claim: Claim, kind: OutcomeKind) -> Outcome:
        failed = kind in (OutcomeKind.DEAD, OutcomeKind.RETRY)
        error = ErrorInfo("Oops", self.luck.choice("uv")) if failed else None
        return Outcome(claim.id, claim.lease, kind, error=error, delay=2_000 if failed else 0)

    def prune(self) -> None:
        retention = Retention(succeeded_count=self.luck.choice([0, 100, 500]), dead_count=300, other=20_000)
        self.same(lambda store: store.prune(retention, EVERYTHING))

    def which(self) -> Filter:
        luck = self.luck
        fields: dict[str, Any] = {}
        if luck.random() < 0.5:
            fields["queues"] = tuple(luck.sample([*QUEUES, "nowhere"], luck.choice([1, 2])))
        if luck.random() < 0.7:
            fields["states"] = tuple(luck.sample(list(State), luck.choice([1, 1, 2, 4])))
        if luck.random() < 0.2:
            fields["tasks"] = ("a",)
        if luck.random() < 0.3:
            fields["tags"] = tuple(luck.sample(["red", "blue"], luck.choice([1, 2])))
        if luck.random() < 0.1:
            fields["causes"] = ("Oops: u",)
        if luck.random() < 0.1:
            fields["since"] = self.clock.now() - 20_000
        return Filter(**fields)

    def steer(self) -> None:
        which, limit, priority = self.which(), self.luck.choice([1, 20, 300]), self.luck.choice([0, 3])
        verbs: list[Callable[[Store, int], Operation[int]]] = [
            lambda store, most: store.cancel(which, most),
            lambda store, most: store.replay(which, most),
            lambda store, most: store.reprioritise(which, priority, most),
            lambda store, most: store.delete(which, most),
        ]
        verb = self.luck.choice(verbs)
        # It may stop early for the server's sake, but not before the first.
        count = self.redis.runner().run(verb(self.redis, limit))
        assert self.memory.runner().run(verb(self.memory, count or limit)) == count

    def search(self) -> None:
        which, limit = self.which(), self.luck.choice([1, 10, 600, 100_000])
        before: list[int | None] = [None, None]
        for _ in range(3):
            one, other = (
                store.runner().run(store.find(which, limit, start))
                for store, start in zip((self.memory, self.redis), before, strict=True)
            )
            assert [(job.id, job.state, job.priority) for job in one] == [
                (job.id, job.state, job.priority) for job in other
            ]
            if not one:
                break
            before = [one[-1].seq, other[-1].seq]
        self.same(lambda store: store.causes(which))

    def compare(self) -> None:
        self.same(
            lambda store: store.lanes(),
            lambda lanes: {
                (lane.queue, lane.priority): {state: n for state, n in lane.counts.items() if n}
                for lane in lanes
                if any(lane.counts.values())
            },
        )


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with redis_server(appendonly="no") as server:
        yield server.url


@pytest.mark.parametrize("seed", range(3))
def test_a_long_story_is_the_same_in_memory_and_in_redis(url: str, seed: int) -> None:
    story = Story(url, seed)

    while story.born < JOBS:
        story.enqueue()
        story.clock.advance(story.luck.choice([0, 0.001, 0.5, 3]))
        if story.luck.random() < 0.6:
            story.work()
        story.compare()
        if story.luck.random() < 0.1:
            story.prune()
            story.compare()
    for turn in range(60):
        story.search()
        if turn % 3 == 0:
            story.steer()
            story.compare()

    story.same(
        lambda store: store.find(Filter(), EVERYTHING),
        lambda jobs: [(job.id, job.state, job.priority, job.attempt) for job in jobs],
    )
    story.close()


def test_a_job_that_was_claimed_is_not_dropped_from_its_full_queue(url: str) -> None:
    store = RedisStore(f"{url}?prefix=full", ManualClock())
    run = store.runner().run
    info = WorkerInfo(id=W, host="h", place="p", pid=1, pid_birth=1, queues=None, tasks=("t",), concurrency=1)
    run(store.register(info, EVERYTHING))
    run(store.declare([QueueSettings(name="few", max_size=2, overflow="drop_oldest")]))
    jobs = [NewJob(id=JobId(f"{n:032x}"), task="t", args=b"", queue="few") for n in range(6)]
    for job in jobs[:3]:
        run(store.enqueue([job]))
    (claim,) = run(store.claim(W, [Take("few", 0, 1)], 1)).jobs

    for job in jobs[3:]:
        run(store.enqueue([job]))

    states = [job.state for job in run(store.get([job.id for job in jobs])) if job]
    assert claim.id == jobs[1].id
    assert states == [
        State.CANCELLED,
        State.RUNNING,
        State.CANCELLED,
        State.CANCELLED,
        State.READY,
        State.READY,
    ]
    store.close()
