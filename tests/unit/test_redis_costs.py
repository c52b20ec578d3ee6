"""What runs for each batch must not cost more with a longer history: the server tells every command that a call runs.

Times say little on a busy machine, so what is held here is how many commands a call runs, and that none of them goes through
a whole key that grows with the jobs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import pytest
import redis

from ferryman.clock import ManualClock
from ferryman.io.operation import Operation
from ferryman.job import ErrorInfo, NewJob, Outcome, OutcomeKind, State, UniqueKey, WorkerId, new_ids
from ferryman.store.port import Store
from ferryman.store.records import Filter, QueueSettings, Retention, Take, WorkerInfo, WorkerStatus
from ferryman.store.redis.store import RedisStore
from tests.services.redis import redis_server

W = WorkerId("w")
MANY = 100_000
SOME = 6_000
"""Jobs of each state that are neither ready nor running."""
BATCH = 100
SHORT = 5_000
"""A key of no more entries may be read in one go."""

FEW, EACH, WALK = 60, 24, 700
"""Commands of a call that does the same for all its jobs; further ones for each job; of a search, which reads two thousand
jobs in steps and asks at each of them how far it can leap."""
WORDS = 20_000
"""Of all commands of a call: what is read or written of each of some thousand jobs is a few."""

WHOLE = ("HGETALL", "HKEYS", "HVALS", "SMEMBERS")
RANGES = ("LRANGE", "ZRANGE", "ZREVRANGE")
BY_VALUE = ("ZRANGEBYSCORE", "ZREVRANGEBYSCORE", "ZRANGEBYLEX", "ZREVRANGEBYLEX")


class Performed(NamedTuple):
    """A call of a function and the commands that it ran, in words."""

    function: str
    commands: list[list[str]]


class Harbour:
    """A store with a hundred thousand jobs, and an ear at its server."""

    def __init__(self, url: str) -> None:
        self.clock = ManualClock()
        self.store = RedisStore(url, self.clock)
        self.run = self.store.runner().run
        self.client: Any = redis.Redis.from_url(url, decode_responses=True)

    def fill(self) -> None:
        store, run = self.store, self.run
        run(store.register(worker(W), 3_600_000))
        run(store.declare([QueueSettings(name="fair", fair=True)]))
        for kind in (OutcomeKind.SUCCEEDED, OutcomeKind.DEAD, OutcomeKind.CANCELLED):
            for _ in range(SOME // 1_000):
                run(store.enqueue(jobs(1_000)))
                run(store.settle(W, self.claimed(1_000, kind)))
                self.clock.advance(0.001)
        for _ in range(SOME // 1_000):
            run(store.enqueue(jobs(1_000, delay=3_600_000, tags=("late",))))
            run(store.enqueue(jobs(1_000, queue="fair", tenant="acme")))
            run(store.enqueue(jobs(1_000, queue="keyed", key="k")))
            self.clock.advance(0.001)
        run(store.enqueue(jobs(10, ttl=1)))
        self.clock.advance(0.001)
        run(store.claim(W, [], 0))
        for _ in range((MANY - 6 * SOME) // 4_000):
            run(store.enqueue(jobs(4_000)))
            self.clock.advance(0.001)

    def claimed(self, count: int, kind: OutcomeKind) -> list[Outcome]:
        claims = self.run(self.store.claim(W, [Take("default", 0, count)], count)).jobs
        assert len(claims) == count
        error = ErrorInfo("ValueError", "boom") if kind is OutcomeKind.DEAD else None
        return [Outcome(claim.id, claim.lease, kind, error=error) for claim in claims]

    def heard(self, operation: Operation[Any]) -> list[Performed]:
        """Perform an operation; all the calls that it made."""
        performed: list[Performed] = []
        with self.client.monitor() as monitor:
            self.run(operation)
            self.client.echo("over")
            for told in monitor.listen():
                words = told["command"].split(" ")
                if words[0] == "ECHO":
                    break
                if words[0] in ("FCALL", "FCALL_RO"):
                    performed.append(Performed(words[1], []))
                elif told["client_type"] == "lua":
                    performed[-1].commands.append(words)
        assert performed
        return performed

    def scans(self, performed: list[Performed]) -> list[str]:
        """Commands that went through a whole key, if it is large."""
        return [
            " ".join(words[:4])
            for _, commands in performed
            for words in commands
            if self._is_whole(words) and self._size(words[1]) > SHORT
        ]

    def _is_whole(self, words: Sequence[str]) -> bool:
        command = words[0]
        if command in BY_VALUE:
            return "LIMIT" not in words
        return command in WHOLE or (command in RANGES and words[2:4] == ["0", "-1"])

    def _size(self, key: str) -> int:
        sizes = {"hash": "HLEN", "set": "SCARD", "zset": "ZCARD", "list": "LLEN", "none": "EXISTS"}
        return int(self.client.execute_command(sizes[self.client.type(key)], key))


def jobs(count: int, **fields: Any) -> list[NewJob]:
    return [NewJob(id=id_, task="t", args=b"[]", **fields) for id_ in new_ids(count)]


def worker(id_: WorkerId) -> WorkerInfo:
    return WorkerInfo(
        id=id_, host="h", place="p", pid=1, pid_birth=1, queues=None, tasks=("t",), concurrency=1
    )


@contextlib.contextmanager
def filled_harbour() -> Iterator[Harbour]:
    with redis_server(appendonly="no") as server:
        harbour = Harbour(server.url)
        harbour.fill()
        yield harbour
        harbour.client.close()
        harbour.store.close()


@pytest.fixture(scope="module")
def harbour() -> Iterator[Harbour]:
    """One for calls whose costs must not depend on what other tests have done there."""
    with filled_harbour() as harbour:
        yield harbour


@pytest.fixture(scope="module")
def archive() -> Iterator[Harbour]:
    """One in which nothing is changed, for searches: how far they walk depends on what there is."""
    with filled_harbour() as archive:
        yield archive


@pytest.fixture
def annex(harbour: Harbour) -> Iterator[Harbour]:
    """An empty one beside it."""
    annex = Harbour(f"{harbour.store.url.removesuffix('0')}1")
    annex.run(annex.store.register(worker(W), 3_600_000))
    yield annex
    annex.client.flushdb()
    annex.client.close()
    annex.store.close()


def most(performed: list[Performed]) -> int:
    """The commands of the call that ran most."""
    return max(len(commands) for _, commands in performed)


def longest(performed: list[Performed]) -> int:
    """The words of the call that said most."""
    return max(sum(len(words) for words in commands) for _, commands in performed)


def test_the_ear_hears_a_scan(harbour: Harbour) -> None:
    key = next(key for key in harbour.client.scan_iter() if key.endswith(":all"))

    performed = [Performed("none", [["ZRANGE", key, "0", "-1"], ["HGETALL", key.replace(":all", ":life")]])]

    assert len(harbour.scans(performed)) == 2


def test_a_batch_of_plain_jobs_is_enqueued_by_a_few_commands(harbour: Harbour) -> None:
    performed = harbour.heard(harbour.store.enqueue(jobs(BATCH)))

    assert (len(performed), harbour.scans(performed)) == (1, [])
    assert most(performed) <= FEW


def test_a_batch_of_jobs_with_everything_costs_some_commands_each(harbour: Harbour) -> None:
    parents = jobs(1)
    rich = [
        new
        for n in range(BATCH)
        for new in jobs(
            1,
            key=f"of-{n}",
            unique=UniqueKey(f"u-{n}"),
            tags=("red",),
            after=(parents[0].id,),
            ttl=9_000_000,
        )
    ]

    performed = harbour.heard(harbour.store.enqueue([*parents, *rich]))

    assert (len(performed), harbour.scans(performed)) == (1, [])
    assert most(performed) <= FEW + EACH * BATCH


def test_a_batch_is_claimed_by_a_few_commands(harbour: Harbour) -> None:
    performed = harbour.heard(harbour.store.claim(W, [Take("default", 0, BATCH)], BATCH))

    assert (len(performed), harbour.scans(performed)) == (1, [])
    assert most(performed) <= FEW


def test_a_claim_asks_no_lane_that_has_nothing(annex: Harbour) -> None:
    of_each = [new for n in range(2_000) for new in jobs(1, queue=f"q{n}")]
    plan = [Take(new.queue, 0, 1) for new in of_each] * 2
    annex.run(annex.store.enqueue(of_each))
    claims = annex.run(annex.store.claim(W, plan, 2_000)).jobs
    annex.run(annex.store.settle(W, [Outcome(each.id, each.lease, OutcomeKind.SUCCEEDED) for each in claims]))
    annex.run(annex.store.enqueue(jobs(3, queue="q1500")))

    performed = annex.heard(annex.store.claim(W, plan, 10))

    assert annex.scans(performed) == []
    assert most(performed) <= FEW
    assert {lane.queue: lane.counts[State.READY] for lane in annex.run(annex.store.lanes())}["q1500"] == 1


def test_a_batch_that_succeeded_is_settled_by_a_few_commands(harbour: Harbour) -> None:
    outcomes = harbour.claimed(BATCH, OutcomeKind.SUCCEEDED)

    performed = harbour.heard(harbour.store.settle(W, outcomes))

    assert (len(performed), harbour.scans(performed)) == (1, [])
    assert most(performed) <= FEW


@pytest.mark.parametrize("kind", sorted(set(OutcomeKind) - {OutcomeKind.SUCCEEDED}))
def test_any_outcome_costs_some_commands_each(harbour: Harbour, kind: OutcomeKind) -> None:
    outcomes = harbour.claimed(BATCH, kind)

    performed = harbour.heard(harbour.store.settle(W, outcomes))

    assert (len(performed), harbour.scans(performed)) == (1, [])
    assert most(performed) <= FEW + EACH * BATCH


def test_jobs_of_a_full_key_are_let_in_one_by_one(harbour: Harbour) -> None:
    (claim,) = harbour.run(harbour.store.claim(W, [Take("keyed", 0, 1)], 1)).jobs

    performed = harbour.heard(
        harbour.store.settle(W, [Outcome(claim.id, claim.lease, OutcomeKind.SUCCEEDED)])
    )

    assert (len(performed), harbour.scans(performed)) == (1, [])
    assert most(performed) <= FEW


@pytest.mark.parametrize("kind", [OutcomeKind.SUCCEEDED, OutcomeKind.DEAD])
def test_children_are_told_in_pages(annex: Harbour, kind: OutcomeKind) -> None:
    (parent,) = jobs(1)
    annex.run(annex.store.enqueue([parent, *jobs(SOME, after=(parent.id,))]))

    performed = annex.heard(annex.store.settle(W, annex.claimed(1, kind)))

    assert annex.scans(performed) == []
    assert most(performed) <= FEW + 12 * SOME // 250
    assert max(len(words) for _, commands in performed for words in commands) <= SOME // 3
    states = {lane.queue: lane.counts for lane in annex.run(annex.store.lanes())}["default"]
    assert states[State.READY if kind is OutcomeKind.SUCCEEDED else State.CANCELLED] == SOME


def test_a_queue_that_drops_its_oldest_is_put_in_order_step_by_step(harbour: Harbour) -> None:
    bounded = [QueueSettings(name=name, max_size=SOME, overflow="drop_oldest") for name in ("keyed", "tiny")]

    declared = harbour.heard(harbour.store.declare(bounded))
    filled = harbour.heard(harbour.store.enqueue(jobs(SOME, queue="tiny")))
    dropped = harbour.heard(harbour.store.enqueue([*jobs(5, queue="tiny"), *jobs(5, queue="keyed", key="k")]))

    assert harbour.scans([*declared, *filled, *dropped]) == []
    assert longest(declared) <= WORDS
    assert most(filled) <= FEW
    assert (len(dropped), longest(dropped) <= WORDS) == (1, True)
    assert most(dropped) <= FEW + EACH * 20
    for name in ("keyed", "tiny"):
        oldest = harbour.run(harbour.store.find(Filter(queues=(name,)), 2 * MANY))[-8:]
        assert sum(job.state is State.CANCELLED for job in oldest) >= 4
        harbour.run(harbour.store.delete(Filter(queues=(name,), states=(State.CANCELLED,)), MANY))


DUTIES: dict[str, Callable[[Store], Operation[Any]]] = {
    "peek": lambda store: store.peek(W),
    "heartbeat": lambda store: store.heartbeat(W, WorkerStatus(), 3_600_000),
    "rescue": lambda store: store.rescue(),
    "register": lambda store: store.register(worker(WorkerId("v")), 3_600_000),
    "leave": lambda store: store.leave(WorkerId("v")),
    "lock": lambda store: store.lock("leader", "ann", 1_000),
    "unlock": lambda store: store.unlock("leader", "ann"),
    "kv_put": lambda store: store.kv_put("k", b"v", expected=None),
    "kv_get": lambda store: store.kv_get("k"),
    "kv_delete": lambda store: store.kv_delete("k"),
    "pause": lambda store: store.pause(["fair"], True),
    "resume": lambda store: store.pause(["fair"], False),
    "declare": lambda store: store.declare(
        [QueueSettings(name="fair", fair=True), QueueSettings(name="default")]
    ),
    "lanes": lambda store: store.lanes(),
    "queues": lambda store: store.queues(),
    "workers": lambda store: store.workers(),
    "stats": lambda store: store.stats(0, 2**60),
}


@pytest.mark.parametrize("name", DUTIES)
def test_what_the_backlog_has_no_part_in_costs_a_few_commands(harbour: Harbour, name: str) -> None:
    performed = harbour.heard(DUTIES[name](harbour.store))

    assert harbour.scans(performed) == []
    assert most(performed) <= FEW


def test_what_a_worker_holds_and_hears_costs_a_few_commands(harbour: Harbour) -> None:
    run, store, me = harbour.run, harbour.store, WorkerId("busy")
    run(store.register(worker(me), 3_600_000))
    claims = run(store.claim(me, [Take("default", 0, 300)], 300)).jobs
    run(store.cancel(Filter(ids=tuple(claim.id for claim in claims[:200])), 1_000))
    last = run(store.heartbeat(me, WorkerStatus(), 3_600_000)).last

    performed = [
        *harbour.heard(store.holding(me)),
        *harbour.heard(store.peek(me)),
        *harbour.heard(store.heartbeat(me, WorkerStatus(), 3_600_000)),
        *harbour.heard(store.heartbeat(me, WorkerStatus(), 3_600_000, last)),
    ]

    assert (len(performed), harbour.scans(performed)) == (4, [])
    assert most(performed) <= FEW
    assert run(store.heartbeat(me, WorkerStatus(), 3_600_000, last)).orders == []
    run(store.leave(me))


def test_a_prune_reads_pages_and_deletes_in_batches(harbour: Harbour) -> None:
    few_jobs = Retention(succeeded_count=100, dead_count=100, other_count=100)

    nothing = harbour.heard(harbour.store.prune(Retention(), 400))
    something = harbour.heard(harbour.store.prune(few_jobs, 400))

    assert harbour.scans([*nothing, *something]) == []
    assert most(nothing) <= FEW
    assert most(something) <= FEW + 2 * 400


def test_a_prune_does_not_go_through_the_children_of_a_parent_that_is_still_wanted(annex: Harbour) -> None:
    parents = jobs(1)
    annex.run(annex.store.enqueue([*parents, *jobs(SOME, after=(parents[0].id,))]))
    annex.run(annex.store.settle(W, annex.claimed(1, OutcomeKind.SUCCEEDED)))
    annex.run(annex.store.settle(W, annex.claimed(SOME - 1, OutcomeKind.SUCCEEDED)))

    performed = annex.heard(annex.store.prune(Retention(succeeded_count=SOME - 1), 1))

    assert annex.scans(performed) == []
    assert most(performed) <= FEW
    assert annex.run(annex.store.get([parents[0].id])) != [None]


def test_parents_that_are_still_wanted_are_passed_once_a_minute(annex: Harbour) -> None:
    few_jobs = Retention(succeeded_count=100, succeeded=1)
    run, store = annex.run, annex.store
    parents = jobs(8 * 1_000)
    after = tuple(parent.id for parent in parents)
    run(store.enqueue([*parents, *jobs(2, after=after, queue="children", delay=3_600_000)]))
    run(store.settle(W, annex.claimed(len(parents), OutcomeKind.SUCCEEDED)))
    annex.clock.advance(0.001)

    first = annex.heard(store.prune(few_jobs, 400))
    while (going_on := run(store.prune(few_jobs, 400))).more:
        assert going_on.jobs == 0
    over = annex.heard(store.prune(few_jobs, 400))
    run(store.enqueue(jobs(3)))
    run(store.settle(W, annex.claimed(3, OutcomeKind.SUCCEEDED)))
    annex.clock.advance(0.002)
    younger = run(store.prune(few_jobs, 400))
    run(store.replay(Filter(ids=after[-1:]), 1))
    run(store.settle(W, annex.claimed(1, OutcomeKind.SUCCEEDED)))
    run(store.enqueue(jobs(2)))
    run(store.settle(W, annex.claimed(2, OutcomeKind.SUCCEEDED)))
    annex.clock.advance(0.002)
    younger_still = run(store.prune(few_jobs, 400))
    run(store.cancel(Filter(queues=("children",)), 2))
    annex.clock.advance(61)
    gone = run(store.prune(few_jobs, 10_000)).jobs

    assert annex.scans([*first, *over]) == []
    assert 2 <= len(first) <= 9
    assert longest(first) <= WORDS
    assert (len(over), longest(over) < 300) == (1, True)
    assert (younger.jobs, younger_still.jobs) == (3, 2)
    assert gone == len(parents)


SEARCHES: dict[str, Filter] = {
    "the newest": Filter(),
    "a tag": Filter(tags=("late",)),
    "a rare tag": Filter(tags=("nowhere",)),
    "a queue": Filter(queues=("fair",), states=(State.READY,)),
    "a queue that is not there": Filter(queues=("nowhere",)),
    **{f"{state.label} jobs": Filter(states=(state,)) for state in State},
    "a cause": Filter(causes=("ValueError: boom",)),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_a_page_of_a_search_is_found_where_its_jobs_are(archive: Harbour, name: str) -> None:
    performed = archive.heard(archive.store.find(SEARCHES[name], 50))

    assert archive.scans(performed) == []
    assert len(performed) <= 4
    assert most(performed) <= WALK


@pytest.mark.parametrize("queue", ["default", "fair", "keyed"])
def test_a_search_in_many_steps_finds_each_job_once_and_in_order(archive: Harbour, queue: str) -> None:
    counts = {
        state: sum(lane.counts[state] for lane in archive.run(archive.store.lanes()) if lane.queue == queue)
        for state in State
    }

    found = {
        state: archive.run(archive.store.find(Filter(queues=(queue,), states=(state,)), 2 * MANY))
        for state in State
    }

    assert {state: len(jobs) for state, jobs in found.items()} == counts
    for state, jobs in found.items():
        seqs = [job.seq for job in jobs]
        assert seqs == sorted(set(seqs), reverse=True)
        assert {job.state for job in jobs} <= {state}


def test_a_search_for_what_no_line_knows_goes_on_in_bounded_steps(archive: Harbour) -> None:
    performed = archive.heard(archive.store.find(Filter(tasks=("nothing",)), 50))

    assert archive.scans(performed) == []
    assert 10 < len(performed) <= 100
    assert most(performed) <= WALK


STEERING: dict[str, Callable[[Store], Operation[Any]]] = {
    "cancel": lambda store: store.cancel(Filter(queues=("default",), states=(State.READY,)), BATCH),
    "replay": lambda store: store.replay(Filter(states=(State.DEAD,)), BATCH),
    "reprioritise": lambda store: store.reprioritise(Filter(tags=("late",)), 5, BATCH),
    "delete": lambda store: store.delete(Filter(states=(State.SCHEDULED,)), BATCH),
}


@pytest.mark.parametrize("name", STEERING)
def test_steering_takes_from_the_narrowest_line(harbour: Harbour, name: str) -> None:
    performed = harbour.heard(STEERING[name](harbour.store))

    assert harbour.scans(performed) == []
    assert len(performed) <= 10
    assert most(performed) <= WALK + EACH * BATCH


@pytest.mark.parametrize("state", [State.SCHEDULED, State.PARKED, State.DEAD, State.CANCELLED, State.EXPIRED])
def test_jobs_of_a_rare_state_are_steered_without_a_walk(harbour: Harbour, state: State) -> None:
    oldest = harbour.run(harbour.store.find(Filter(states=(state,)), 2 * MANY))[-3:]

    performed = harbour.heard(harbour.store.delete(Filter(states=(state,)), 3))

    assert [job for job in harbour.run(harbour.store.get([job.id for job in oldest])) if job] == []
    assert (len(performed), harbour.scans(performed)) == (1, [])
    assert most(performed) <= FEW + EACH * 3


def test_a_job_is_read_by_a_few_commands(harbour: Harbour) -> None:
    (found,) = harbour.run(harbour.store.find(Filter(states=(State.DEAD,)), 1))

    performed = [
        *harbour.heard(harbour.store.get([found.id])),
        *harbour.heard(harbour.store.history(found.id)),
        *harbour.heard(harbour.store.parent_results(found.id, 0, 100)),
    ]

    assert (len(performed), harbour.scans(performed)) == (3, [])
    assert most(performed) <= FEW


def test_causes_are_grouped_in_bounded_steps(archive: Harbour) -> None:
    performed = archive.heard(archive.store.causes(Filter()))

    assert archive.scans(performed) == []
    assert most(performed) <= WALK
