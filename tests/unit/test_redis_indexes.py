"""Every line, index and count of the store says what its jobs say, after days of everything and whatever the clock does;
and when the jobs are gone, nothing of them is left."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import pytest

from ferryman.io.operation import Operation
from ferryman.job import FINISHED, PENDING, Outcome, OutcomeKind, State, WorkerId
from ferryman.store.cargo import Parcel
from ferryman.store.records import Filter, JobNote, Order, QueueSettings, Retention, Take, WorkerStatus
from tests.services.redis import redis_server

from .redis_trap import LEASE, Trap, info, job

TURNS = 70
EVERYTHING = 10**6
PREFIX = "{ferryman}:"
ARRIVED = {State.SCHEDULED, State.PARKED, State.DEAD, State.CANCELLED, State.EXPIRED}
LASTING = {"arranged", "lanes", "paused", "queue", "seq"}
"""What is known of queues, whether there are jobs or not, and the last number given."""
OF_WORKERS = {"alive", "kv", "lock", "minutes", "orders", "stat", "worker", "workers"}


class Day(Trap):
    """Workers that come and go, and people who do all that can be done."""

    def __init__(self, url: str, seed: int) -> None:
        super().__init__(url)
        self.luck = Random(seed)
        self.crew: dict[WorkerId, list[Outcome]] = {}
        self.born = 0
        self.run(
            self.store.declare(
                [
                    QueueSettings(name="fair", fair=True, weights={"acme": 2}),
                    QueueSettings(name="few", max_size=3, overflow="drop_oldest"),
                ]
            )
        )

    def turn(self) -> None:
        self.clock.advance(self.luck.choice([0, 0.001, 0.4, 3, 60, -0.2, -30]))
        usual, rare = [self.enqueue, self.work, self.settle], [self.come, self.go, self.look_after, self.move]
        self.luck.choice([*usual, *usual, *rare, self.steer])()

    def come(self) -> None:
        self.born += 1
        worker = WorkerId(f"w{self.born}")
        self.run(self.store.register(info(worker), LEASE))
        self.crew[worker] = []

    def enqueue(self) -> None:
        ids = [each.id for each in self.run(self.store.find(Filter(), 20))]
        later = [
            job(after=(id_,), on_parent_failure="hold") for id_ in self.luck.sample(ids, min(3, len(ids)))
        ]
        new = self.luck.choice([self.all_kinds(), later, [job(queue="few") for _ in range(3)]])
        self.run(self.store.enqueue(new))

    def work(self) -> None:
        for worker, held in self.crew.items():
            plan = [
                Take(*lane, 3)
                for lane in (("keyed", 2), ("fair", 0), ("keyed", 0), ("default", 0), ("few", 0))
            ]
            claims = self.run(self.store.claim(worker, plan, 6)).jobs
            held += [Outcome(each.id, each.lease, OutcomeKind.SUCCEEDED, ran_us=900) for each in claims]
            self.run(
                self.store.annotate(worker, [JobNote(each.id, each.lease, 0.5, "half") for each in held[:2]])
            )

    def settle(self) -> None:
        for worker, held in self.crew.items():
            ended, held[:] = held[:5], held[5:]
            self.run(
                self.store.settle(
                    worker, [self.become(one, self.luck.choice(list(OutcomeKind))) for one in ended]
                )
            )

    def steer(self) -> None:
        which = Filter(states=tuple(self.luck.sample(list(State), 3)))
        store, limit = self.store, self.luck.choice([1, 4, 20])
        asked: list[Operation[Any]] = [
            store.cancel(which, limit, "enough"),
            store.replay(which, limit),
            store.reprioritise(which, self.luck.choice([0, 2]), limit),
            store.delete(which, limit),
            store.declare([QueueSettings(name="fair", fair=self.luck.random() < 0.5)]),
        ]
        self.run(self.luck.choice(asked))

    def go(self) -> None:
        if len(self.crew) > 1:
            worker = self.luck.choice(list(self.crew))
            if self.luck.random() < 0.5:
                self.run(self.store.leave(worker))
                del self.crew[worker]
            else:
                for rescued in self.run(self.store.rescue([worker])):
                    del self.crew[rescued.worker]

    def look_after(self) -> None:
        for worker in self.crew:
            self.run(self.store.order([worker], Order("pause")))
            self.run(self.store.heartbeat(worker, WorkerStatus(), LEASE * 100, 0))
        self.run(self.store.lock("leader", "ann", 500))
        self.run(self.store.kv_put("known", b"value", expected=None, ttl=500))
        self.run(self.store.prune(Retention(succeeded_count=20, dead_count=9, other=9_000), 30))

    def move(self) -> None:
        for held in self.crew.values():
            held.clear()
        for worker in self.crew:
            self.run(self.store.leave(worker))
        self.crew.clear()
        # With nobody at work, parents and children go together.
        parcels = self.run(self.store.pack(sorted(PENDING | FINISHED), 0, EVERYTHING))
        self.run(self.store.forget([parcel.job.id for parcel in parcels]))
        self.run(self.store.unpack(parcels))

    def end(self) -> None:
        """All jobs are deleted, all workers leave, and all that ends with time ends."""
        for worker in self.crew:
            self.run(self.store.leave(worker))
        while self.run(self.store.delete(Filter(), EVERYTHING)):
            pass
        self.clock.advance(1e7)
        self.run(self.store.prune(Retention(), EVERYTHING))

    # -- what the keys should hold -----------------------------------------------------------------

    def jobs(self) -> list[Parcel]:
        return self.run(self.store.pack(list(State), 0, EVERYTHING))

    def held(self) -> dict[str, Any]:
        """Every key of the store, by its short name."""
        return {key.decode().removeprefix(PREFIX): value for key, value in self.all_there_is().items()}


def spot(parcel: Parcel) -> bytes:
    return f"{parcel.seq:011x}:{parcel.job.id}".encode()


def lines_of(parcel: Parcel) -> Iterator[tuple[str, float | None]]:
    """The lines that a job should be in, and its rank there; None where that is not to be told from the job."""
    new, state = parcel.job, parcel.state
    yield "all", 0
    if state is State.WAITING:
        yield "waiting", 0
    elif state is State.SCHEDULED:
        yield "scheduled", parcel.run_at
    elif state is State.READY:
        yield f"ready:{new.queue}:{new.priority}", None
    elif state is State.PARKED:
        yield f"parked:{new.key}", 0 if new.ordered else -new.priority
    elif state is State.RUNNING:
        yield f"running:{parcel.worker}", parcel.started_at
    else:
        yield state.label, parcel.finished_at
    if state in ARRIVED:
        yield f"arrived:{state.label}", 0
    if new.deadline is not None and state in PENDING:
        yield "deadline", new.deadline
    for tag in new.tags:
        yield f"tag:{tag}", 0


def expected_lines(parcels: list[Parcel]) -> dict[str, dict[bytes, float | None]]:
    lines: dict[str, dict[bytes, float | None]] = defaultdict(dict)
    there = {parcel.job.id for parcel in parcels}
    for parcel in parcels:
        for line, rank in lines_of(parcel):
            lines[line][spot(parcel)] = rank
        for parent in parcel.job.after:
            if parent in there:
                lines[f"children:{parent}"][spot(parcel)] = None
    return lines


LINES = {
    "all",
    "waiting",
    "scheduled",
    "ready",
    "parked",
    "running",
    "arrived",
    "deadline",
    "tag",
    "children",
} | {state.label for state in FINISHED}


def check_lines(held: dict[str, Any], parcels: list[Parcel]) -> None:
    expected = expected_lines(parcels)
    found = {name: dict(value) for name, value in held.items() if name.partition(":")[0] in LINES}
    assert {name: set(line) for name, line in found.items()} == {
        name: set(line) for name, line in expected.items()
    }
    for name, line in expected.items():
        assert {each: rank for each, rank in line.items() if rank is not None} in ({}, found[name]), name


def check_counts(held: dict[str, Any], parcels: list[Parcel]) -> None:
    counts: dict[str, Counter[bytes]] = defaultdict(Counter)
    keys: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for parcel in parcels:
        new = parcel.job
        counts[f"count:{parcel.state.label}"][f"{new.queue}:{new.priority}".encode()] += 1
        if new.key is not None and parcel.state not in FINISHED:
            keys[new.key][0] += parcel.holds
            keys[new.key][1] += 1
    found = {name: value for name, value in held.items() if name.startswith("count:")}
    assert {name: {k: int(v) for k, v in value.items()} for name, value in found.items()} == counts
    places = {
        name.decode(): [int(n) for n in value.split()[1:]] for name, value in held.get("key", {}).items()
    }
    assert places == keys


def check_the_rest(held: dict[str, Any], parcels: list[Parcel], now: int) -> None:
    ids = {parcel.job.id.encode() for parcel in parcels}
    assert set(held.get("job", {})) == ids
    assert set(held.get("life", {})) <= ids
    hanging = {
        f"{name}:{parcel.job.id}"
        for parcel in parcels
        for name, some in (
            ("parents", parcel.job.after),
            ("attempts", parcel.attempts),
            ("notes", parcel.notes),
        )
        if some
    }
    assert {name for name in held if name.partition(":")[0] in ("parents", "attempts", "notes")} == hanging
    kept = {spot(each) for each in parcels if each.result and each.result_until and each.result_until > now}
    over = {spot(each) for each in parcels if each.result_until and each.result_until <= now}
    results = {member for member, _ in held.get("result_until", ())}
    assert kept <= results <= kept | over
    ending = {
        f"{table} ".encode() + name
        for table, at in (("unique", 1), ("lock", 1), ("kv", 1))
        for name, value in held.get(table, {}).items()
        if value.split(b" ")[at] != b"0"
    }
    assert {member for member, _ in held.get("fading", ())} == ending
    lasting = {k for k, v in held.get("unique", {}).items() if v.endswith(b" 0")}
    holders = {
        parcel.job.unique.key.encode() for parcel in parcels if parcel.holds_unique and parcel.job.unique
    }
    assert lasting <= holders
    waiting = {spot(each) for each in parcels if each.job.queue == "few" and each.state in PENDING}
    if b"few" in held.get("arranged", ()):
        assert {member for member, _ in held.get("arrivals:few", ())} == waiting
    assert {name.partition(":")[2] for name in held if name.startswith("orders:")} <= {
        member.decode() for member, _ in held.get("alive", ())
    }


KNOWN = (
    LINES
    | LASTING
    | OF_WORKERS
    | {
        "job",
        "life",
        "key",
        "count",
        "parents",
        "attempts",
        "notes",
        "result_until",
        "unique",
        "fading",
        "tenants",
    }
    | {"arrivals"}
)


@pytest.fixture(scope="module")
def server_url() -> Iterator[str]:
    with redis_server(appendonly="no") as server:
        yield server.url


@pytest.fixture
def begin(server_url: str) -> Iterator[Callable[[int], Day]]:
    days: list[Day] = []

    def begin(seed: int) -> Day:
        days.append(Day(server_url, seed))
        return days[-1]

    clean = Trap(server_url)
    clean.client.flushdb()
    yield begin
    for day in [*days, clean]:
        day.store.close()
        day.client.close()


@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_done_each_key_holds_what_the_jobs_say(begin: Callable[[int], Day], seed: int) -> None:
    day = begin(seed)
    day.come()

    for _ in range(TURNS):
        day.turn()
        held, parcels = day.held(), day.jobs()
        check_lines(held, parcels)
        check_counts(held, parcels)
        check_the_rest(held, parcels, day.clock.now())
        assert {name.partition(":")[0] for name in held} <= KNOWN

    assert day.jobs()


@pytest.mark.parametrize("seed", range(2))
def test_nothing_is_left_of_jobs_and_workers_that_are_gone(begin: Callable[[int], Day], seed: int) -> None:
    day = begin(seed)
    day.come()
    for _ in range(TURNS):
        day.turn()

    day.end()

    assert {name.partition(":")[0] for name in day.held()} <= LASTING | {"tenants"}
