"""What runs for each batch must not cost more with a longer history: every statement, those inside functions included, is
performed at a million jobs, and what it reads is counted, not timed.

The numbers here were measured, and have room for twice as much at most. One row too many for each job of a batch is too much.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import psycopg
import pytest

from ferryman.clock import ManualClock
from ferryman.io.operation import Operation
from ferryman.io.postgres import filled
from ferryman.job import Claim, JobId, NewJob, Outcome, OutcomeKind, State, UniqueKey, WorkerId, new_id
from ferryman.store.open import open_store
from ferryman.store.port import Store
from ferryman.store.records import (
    Filter,
    JobNote,
    Order,
    QueueSettings,
    Retention,
    Take,
    WorkerInfo,
    WorkerStatus,
)
from tests.services.postgres import postgres_server

W = WorkerId("w")
NOW = ManualClock().now()
BATCH = 100

# 600,000 finished jobs, then 300,000 ready, 97,000 scheduled, and of the rest some in between. Queue and task are rare here
# and there.
_FILL = """
INSERT INTO job (id, task, queue, priority, state, max_attempts, enqueued_at, run_at, finished_at, args, tags, key, room, rank,
    worker, flags, deadline, reason)
SELECT
    (lpad(to_hex(i), 12, '0') || '7000' || '8000' || lpad(to_hex(i), 12, '0'))::uuid,
    CASE WHEN i % 1000 = 7 THEN 'rare' ELSE 'work' END,
    CASE WHEN i % 1000 = 9 THEN 'rare' WHEN i % 10 = 1 THEN 'often' ELSE 'default' END,
    0, state, 3, :now - 1000000 + i, :now + CASE WHEN state = 1 THEN 3600000 ELSE 0 END,
    CASE WHEN state >= 5 THEN :now - 1000000 + i END, repeat('x', 100)::bytea,
    CASE WHEN i % 10000 = 5 THEN '{red,blue}'::text[] END,
    CASE WHEN state = 3 THEN 'full' END, CASE WHEN state = 3 THEN 1 END, CASE WHEN state = 3 THEN 0 END,
    CASE WHEN state >= 5 THEN 1 END, 0, CASE WHEN i % 100 = 11 THEN :now + 7200000 END,
    CASE WHEN state = 6 THEN 'ValueError: no ' || i % 3 END
FROM (
    SELECT i, (CASE
        WHEN i % 1000 = 2 THEN CASE WHEN i < 600000 THEN 6 ELSE 3 END
        WHEN i % 1000 = 4 THEN CASE WHEN i < 600000 THEN 7 ELSE 0 END
        WHEN i % 1000 = 6 AND i < 600000 THEN 8
        WHEN i < 600000 THEN 5 WHEN i < 900000 THEN 2 ELSE 1
    END)::smallint AS state FROM generate_series(1, 1000000) i
) x;
INSERT INTO lane_news (queue, priority, state, n) SELECT queue, priority, state, count(*) FROM job WHERE queue <> 'bounded'
GROUP BY 1, 2, 3;
INSERT INTO room (key, room, used, jobs) VALUES ('full', 1, 1, 401);
-- Waiting jobs wait for ready ones, and many finished ones once had parents.
INSERT INTO parent (child, place, parent, done)
SELECT c.seq, 1, p.id, c.state >= 5 FROM job c JOIN job p ON p.seq = c.seq - 3 WHERE c.state = 0 OR c.seq % 10 = 4;
UPDATE job c SET missing = 1 WHERE state = 0;
UPDATE job SET flags = 1 WHERE id IN (SELECT p.parent FROM parent p WHERE NOT p.done);
INSERT INTO attempt (seq, number, kind, worker, started_at, finished_at)
SELECT seq, 1, 1, 1, :now - 1000000, :now - 1000000 FROM job WHERE seq % 10 = 2;
INSERT INTO note (seq, at, attempt, text)
SELECT seq, :now, 1, 'a line' FROM job WHERE seq % 10 = 3;
INSERT INTO unique_key (key, id, until) SELECT 'once ' || seq, id, :now + 7200000 FROM job WHERE seq % 10 = 5;
INSERT INTO kv (key, value, version, until)
SELECT 'value ' || i, '', i, :now + 7200000 FROM generate_series(1, 100000) i;
INSERT INTO lane_clock (queue, priority, clock) VALUES ('fair', 0, 5);
INSERT INTO tenant (queue, priority, tenant, tag) SELECT 'fair', 0, 'tenant ' || i, 5 + i FROM generate_series(1, 20000) i;
INSERT INTO stat_base (minute, queue, task, kind, bucket, n)
SELECT :now / 60000 * 60000 - i / 100 * 60000, 'default', 'work', 4, i % 100, 1 FROM generate_series(1, 100000) i;
"""


class Cost(NamedTuple):
    """What a statement read."""

    tuples: int
    """Rows that scans of tables and indexes fetched, of the tables that grow with the jobs."""
    scanned: int
    """Those of them that were read one after the other, without an index."""
    scans: int
    """How often one of their indexes was asked."""
    pages: int
    """Pages of tables and indexes, those that hold nothing of interest included."""


class Sea:
    """A store with a million jobs, on which each statement is tried and undone."""

    def __init__(self, url: str) -> None:
        self.store: Store = open_store(f"{url}?schema=plans", ManualClock())
        run = self.store.runner().run
        info = WorkerInfo(
            id=W, host="h", place="p", pid=1, pid_birth=1, queues=None, tasks=("work",), concurrency=1
        )
        run(self.store.register(info, 30_000))
        run(self.store.declare([QueueSettings(name="bounded", max_size=1, overflow="drop_oldest")]))
        run(self.store.enqueue([job(queue="bounded")]))
        self.connection = psycopg.connect(url, autocommit=True, options="-c search_path=plans")
        for statement in _FILL.replace(":now", str(NOW)).split(";\n"):
            self.connection.execute(statement)
        self.connection.execute("VACUUM ANALYZE")

    def run(self, operation: Operation[Any]) -> Any:
        return self.store.runner().run(operation)

    def cost(self, operation: Operation[Any], *, analysed: bool = True, later: int = 0) -> Cost:
        """Perform an operation, some ms later, say what it read, and undo it."""
        statement = operation.body(0).send(None)
        with self.connection.transaction(force_rollback=True):
            if not analysed:
                self.connection.execute("DELETE FROM pg_statistic")
                self.connection.execute(
                    "UPDATE pg_class SET reltuples = -1, relpages = 0"
                    " WHERE relnamespace = 'plans'::regnamespace"
                )
            before = self._read()
            explained = self.connection.execute(
                f"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) {statement.text}",
                filled(statement, NOW + later),
            ).fetchone()
            after = self._read()
        assert explained is not None
        plan = explained[0][0]["Plan"]
        return Cost(
            tuples=sum(after[:2]) - sum(before[:2]),
            scanned=after[0] - before[0],
            scans=after[2] - before[2],
            pages=plan["Shared Hit Blocks"] + plan["Shared Read Blocks"],
        )

    def calls(self, operation: Operation[Any]) -> int:
        """How many functions an operation calls, of which each performs some statements. It is undone."""
        statement = operation.body(0).send(None)
        called = "SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_xact_user_functions WHERE schemaname = 'plans'"
        with self.connection.transaction(force_rollback=True):
            self.connection.execute("SET LOCAL track_functions = 'all'")
            (before,) = self.connection.execute(called).fetchone() or (0,)
            self.connection.execute(statement.text, filled(statement, NOW))
            (after,) = self.connection.execute(called).fetchone() or (0,)
        return int(after - before)

    def _read(self) -> tuple[int, int, int]:
        found = self.connection.execute(
            "SELECT coalesce(sum(seq_tup_read), 0)::bigint, coalesce(sum(idx_tup_fetch), 0)::bigint,"
            " coalesce(sum(idx_scan), 0)::bigint FROM pg_stat_xact_user_tables WHERE schemaname = 'plans' AND relname IN"
            " ('job', 'parent', 'attempt', 'note', 'unique_key', 'kv', 'stat_base', 'tenant')"
        ).fetchone()
        assert found is not None
        return found[0], found[1], found[2]


def job(**fields: Any) -> NewJob:
    return NewJob(**{"id": new_id(), "task": "work", "args": b"x" * 100, "max_attempts": 3, **fields})


@pytest.fixture(scope="module")
def sea() -> Iterator[Sea]:
    with postgres_server(
        fsync="off", synchronous_commit="off", full_page_writes="off", autovacuum="off", shared_buffers="256MB",
        max_wal_size="4GB", jit="off",
    ) as server:  # fmt: skip
        sea = Sea(server.url)
        yield sea
        sea.connection.close()
        sea.store.close()


def stored(place: int) -> JobId:
    """The id of one of the million."""
    return JobId(f"{place:012x}70008000{place:012x}")


FINISHED, READY = range(50_000, 50_000 + BATCH), range(650_000, 650_000 + BATCH)


@pytest.fixture
def leased(sea: Sea) -> Iterator[list[Claim]]:
    """A batch of running jobs."""
    claims = list(sea.run(sea.store.claim(W, [Take("default", 0, BATCH)], BATCH)).jobs)
    yield claims
    sea.run(sea.store.settle(W, [Outcome(claim.id, claim.lease, OutcomeKind.RELEASED) for claim in claims]))


both = pytest.mark.parametrize("analysed", [True, False], ids=["analysed", "never-analysed"])
"""Plans must not depend on what the server knows of the tables: they were empty at first."""


def test_the_guard_sees_a_scan(sea: Sea) -> None:
    by_moment = sea.cost(sea.store.find(Filter(until=NOW - 10_000_000), 50))

    assert by_moment.tuples > 100_000
    assert by_moment.pages > 10_000


# -- work: so many rows for each job of the batch


@both
@pytest.mark.parametrize(
    ("fields", "rows"),
    [
        ({}, 0),
        ({"tags": ("red",)}, 0),
        ({"delay": 1_000, "ttl": 5_000}, 0),
        ({"key": "full"}, 8),
        ({"unique": UniqueKey("u")}, 8),
        ({"after": (stored(650_000),)}, 16),
    ],
    ids=["plain", "tagged", "delayed", "keyed", "unique", "child"],
)
def test_an_enqueue_reads_what_its_jobs_need(
    sea: Sea, fields: dict[str, Any], rows: int, analysed: bool
) -> None:
    cost = sea.cost(sea.store.enqueue([job(**fields) for _ in range(BATCH)]), analysed=analysed)

    assert cost.scanned == 0
    assert cost.tuples <= rows * BATCH
    assert cost.pages <= 160 * BATCH


@both
def test_an_enqueue_that_is_repeated_finds_its_jobs(sea: Sea, analysed: bool) -> None:
    again = sea.store.enqueue([job(id=stored(place)) for place in READY])

    cost = sea.cost(again, analysed=analysed)

    assert cost.scanned == 0
    assert cost.tuples <= 4 * BATCH


@both
def test_an_enqueue_to_a_full_queue_finds_the_oldest(sea: Sea, analysed: bool) -> None:
    cost = sea.cost(sea.store.enqueue([job(queue="bounded")]), analysed=analysed)

    assert cost.scanned == 0
    # It may look through the waiting and parked ones of other queues, 400 of each.
    assert cost.tuples <= 2_000


@both
def test_a_claim_reads_the_jobs_that_it_leases(sea: Sea, analysed: bool) -> None:
    plan = [Take("rare", 0, 10), Take("default", 0, BATCH), Take("nowhere", 0, 10)]

    cost = sea.cost(sea.store.claim(W, plan, BATCH), analysed=analysed)

    assert cost.scanned == 0
    # Besides, the heads of lanes that are left.
    assert BATCH <= cost.tuples <= BATCH + 20
    assert cost.pages <= 40 * BATCH


@both
def test_a_claim_does_not_ask_every_lane_that_once_had_jobs(sea: Sea, analysed: bool) -> None:
    plan = [Take(f"of customer {place}", 0, 1) for place in range(2_000)]
    plan += [Take("default", 0, 5), *plan, Take("default", 0, 10)]

    cost = sea.cost(sea.store.claim(W, plan, 10), analysed=analysed)

    assert cost.scans <= 40
    assert 10 <= cost.tuples <= 30


@both
def test_a_claim_when_a_hundred_thousand_jobs_are_due_looks_at_a_part_of_them(
    sea: Sea, analysed: bool
) -> None:
    claim = sea.store.claim(W, [Take("default", 0, 1)], 1)

    cost = sea.cost(claim, analysed=analysed, later=3_600_000)

    assert cost.scanned == 0
    # A thousand are promoted. Of others, whose promotion needs the gate, it takes some thousand in sight.
    assert cost.tuples <= 15_000


@both
def test_a_look_whether_there_is_work_reads_next_to_nothing(sea: Sea, analysed: bool) -> None:
    cost = sea.cost(sea.store.peek(W), analysed=analysed)

    assert cost.scanned == 0
    assert cost.tuples <= 4


@both
@pytest.mark.parametrize("kind", list(OutcomeKind), ids=lambda kind: kind.name.lower())
def test_a_settle_reads_the_jobs_that_it_settles(
    sea: Sea, leased: list[Claim], kind: OutcomeKind, analysed: bool
) -> None:
    outcomes = [Outcome(claim.id, claim.lease, kind, delay=1_000) for claim in leased]

    cost = sea.cost(sea.store.settle(W, outcomes), analysed=analysed)

    assert cost.scanned == 0
    assert cost.tuples <= (5 if kind is OutcomeKind.SUCCEEDED else 12) * BATCH
    assert cost.pages <= (60 if kind is OutcomeKind.SUCCEEDED else 120) * BATCH


@both
def test_a_claim_that_admits_reads_what_staged_jobs_ask_for(sea: Sea, analysed: bool) -> None:
    # What a user's own transaction has left: half of them wait for a ready job, half have a key.
    left = [
        job(after=(stored(650_000),)) if place % 2 else job(key=f"of its own {place}")
        for place in range(BATCH)
    ]
    guest = sea.store.using(sea.connection)
    with sea.connection.transaction():
        guest.runner.run(guest.enqueue(left))

    cost = sea.cost(sea.store.claim(W, [Take("default", 0, 1)], 1), analysed=analysed)
    sea.run(sea.store.delete(Filter(ids=tuple(each.id for each in left)), BATCH))

    assert cost.scanned == 0
    assert cost.tuples <= 16 * BATCH


@both
def test_a_settle_reads_those_whom_it_sets_free(sea: Sea, analysed: bool) -> None:
    key = new_id()
    parent = job(queue="rare", priority=9, key=key, unique=UniqueKey(key))
    sea.run(sea.store.enqueue([parent, job(queue="rare", after=(parent.id,)), job(queue="rare", key=key)]))
    (claim,) = sea.run(sea.store.claim(W, [Take("rare", 9, 1)], 1)).jobs

    settle = sea.store.settle(W, [Outcome(claim.id, claim.lease, OutcomeKind.SUCCEEDED)])
    cost = sea.cost(settle, analysed=analysed)
    sea.run(settle)

    assert cost.scanned == 0
    assert cost.tuples <= 60


@pytest.mark.parametrize("kind", [OutcomeKind.SUCCEEDED, OutcomeKind.DEAD], ids=["go-on", "cancelled"])
def test_children_are_told_all_at_once(sea: Sea, kind: OutcomeKind) -> None:
    def told(count: int) -> int:
        parent = job(queue="rare", priority=9)
        children = [job(queue="rare", after=(parent.id,), delay=place % 2) for place in range(count)]
        sea.run(sea.store.enqueue([parent, *children]))
        (claim,) = sea.run(sea.store.claim(W, [Take("rare", 9, 1)], 1)).jobs
        settle = sea.store.settle(W, [Outcome(claim.id, claim.lease, kind)])
        cost, calls = sea.cost(settle), sea.calls(settle)
        sea.run(sea.store.settle(W, [Outcome(claim.id, claim.lease, OutcomeKind.CANCELLED)]))
        sea.run(sea.store.delete(Filter(ids=tuple(each.id for each in [parent, *children])), count + 1))
        assert cost.scanned == 0
        assert cost.tuples <= 8 * count + 100
        return calls

    assert told(500) == told(5)
    # Other tests shall not pass by what is left of these.
    sea.connection.execute("VACUUM job, parent")


@both
def test_notes_read_their_own_jobs(sea: Sea, leased: list[Claim], analysed: bool) -> None:
    notes = [JobNote(claim.id, claim.lease, 0.5, "half way") for claim in leased]

    cost = sea.cost(sea.store.annotate(W, notes), analysed=analysed)

    assert cost.scanned == 0
    assert cost.tuples <= 6 * BATCH


# -- duties


@both
def test_a_heartbeat_reads_its_worker_and_its_orders(sea: Sea, analysed: bool) -> None:
    sea.run(sea.store.order([W], Order("resume")))

    cost = sea.cost(sea.store.heartbeat(W, WorkerStatus(), 30_000), analysed=analysed)

    assert cost.scanned == 0
    assert cost.tuples <= 4


@both
def test_a_rescue_reads_the_jobs_of_its_worker(sea: Sea, analysed: bool) -> None:
    other = WorkerId(f"lost-{new_id()}")
    info = WorkerInfo(
        id=other, host="h", place="p", pid=1, pid_birth=1, queues=None, tasks=("work",), concurrency=1
    )
    sea.run(sea.store.register(info, 30_000))
    sea.run(sea.store.claim(other, [Take("default", 0, BATCH)], BATCH))

    cost = sea.cost(sea.store.rescue([other]), analysed=analysed)
    of_none = sea.cost(sea.store.rescue(), analysed=analysed)

    assert (cost.scanned, of_none.scanned) == (0, 0)
    assert cost.tuples <= 8 * BATCH
    assert of_none.tuples == 0


@both
@pytest.mark.parametrize(
    "retention",
    [Retention(succeeded=0, succeeded_count=1 << 40), Retention(succeeded_count=1_000)],
    ids=["too-old", "too-many"],
)
def test_a_prune_reads_the_jobs_that_it_deletes(sea: Sea, retention: Retention, analysed: bool) -> None:
    cost = sea.cost(sea.store.prune(retention, 4 * BATCH), analysed=analysed)

    assert cost.scanned == 0
    # Itself, and now and then an attempt, a note, parents and children.
    assert 4 * BATCH <= cost.tuples <= 4 * 4 * BATCH


@both
def test_a_prune_looks_for_the_children_of_its_jobs_alone(sea: Sea, analysed: bool) -> None:
    prune = sea.store.prune(Retention(succeeded=0, succeeded_count=1 << 40), 10)
    with sea.connection.transaction(force_rollback=True):
        # Two parents with so many children that the server expects as many of each; the last is not finished.
        sea.connection.execute("DELETE FROM parent")
        sea.connection.execute(
            "INSERT INTO parent (child, place, parent, done) SELECT c.seq, 1, p.id, c.seq < 600000 FROM job p JOIN job c"
            " ON p.seq = 1 + 2 * (c.seq % 2) WHERE c.seq BETWEEN 100001 AND 120000 OR c.seq IN (700000, 700001)"
        )
        sea.connection.execute("ANALYZE parent")

        cost = sea.cost(prune, analysed=analysed)

    assert cost.scanned == 0
    # Twelve are looked at, with those that were over at the same moment as the last, and the youngest children of two.
    assert cost.tuples <= 4 * 20 + 20


@both
def test_a_prune_with_nothing_to_do_reads_nothing(sea: Sea, analysed: bool) -> None:
    # What other tests have counted is summed up by whoever comes now and then.
    sea.connection.execute("SELECT fold()")

    cost = sea.cost(sea.store.prune(Retention(succeeded_count=1 << 40), 4 * BATCH), analysed=analysed)

    assert (cost.scanned, cost.tuples) == (0, 0)


def test_a_prune_does_not_look_again_and_again_at_parents_that_are_wanted(sea: Sea) -> None:
    # Older than all others, and all of them wanted by one job that waits.
    (child,) = sea.connection.execute(
        "INSERT INTO job (id, task, queue, priority, state, max_attempts, enqueued_at, run_at, args)"
        " VALUES (gen_random_uuid(), 'work', 'wanting', 0, 0, 3, 0, 0, '') RETURNING seq"
    ).fetchone() or (0,)
    sea.connection.execute(
        "WITH parents AS (INSERT INTO job (id, task, queue, priority, state, max_attempts, enqueued_at, run_at,"
        " finished_at, args) SELECT gen_random_uuid(), 'work', 'wanting', 0, 5, 3, 0, 0, i / 10, ''"
        " FROM generate_series(1, 20000) i RETURNING id)"
        " INSERT INTO parent (child, place, parent, done) SELECT %s, row_number() OVER (), id, true FROM parents",
        (child,),
    )
    prune = sea.store.prune(Retention(succeeded=NOW - 10_000, succeeded_count=1 << 40), BATCH)

    first = sea.cost(prune)
    answers = [sea.run(prune) for _ in range(6)]
    rest = sea.cost(prune)

    assert first.scanned == rest.scanned == 0
    assert first.tuples <= 4 * 5_100, "some thousand at a time"
    assert [answer.more for answer in answers] == [True, True, True, False, False, False]
    assert rest.tuples == 0
    sea.connection.execute("UPDATE job SET state = 5, finished_at = 0 WHERE seq = %s", (child,))
    assert sea.cost(prune).tuples == 0, "they may stay a minute longer"
    assert sea.cost(prune, later=60_000).tuples >= BATCH
    sea.connection.execute("DELETE FROM parent WHERE child = %s", (child,))
    sea.connection.execute("DELETE FROM job WHERE queue = 'wanting'; DELETE FROM prune_mark")
    sea.connection.execute("VACUUM job, parent")


# -- people


@both
@pytest.mark.parametrize("verb", ["cancel", "replay", "reprioritise", "delete", "edit"])
def test_steering_by_id_reads_the_jobs_meant(sea: Sea, verb: str, analysed: bool) -> None:
    store = sea.store
    ready, finished = (Filter(ids=tuple(stored(place) for place in places)) for places in (READY, FINISHED))
    operations: dict[str, Operation[Any]] = {
        "cancel": store.cancel(ready, BATCH),
        "replay": store.replay(finished, BATCH),
        "reprioritise": store.reprioritise(ready, 5, BATCH),
        "delete": store.delete(finished, BATCH),
        "edit": store.edit(stored(READY[0]), b"x"),
    }

    cost = sea.cost(operations[verb], analysed=analysed)

    assert cost.scanned == 0
    assert cost.tuples <= 14 * BATCH


def _words(which: Filter) -> str:
    """What a filter says, without ids, which are others in each process."""
    said = [name for name in which.__struct_fields__ if getattr(which, name)]
    values = [str(value) for name in said if name != "ids" for value in getattr(which, name)]
    return "-".join([*said, *values]).replace(" ", "-") or "all"


@pytest.mark.parametrize(
    ("which", "rows"),
    [
        (Filter(), 50),
        (Filter(queues=("default",)), 100),
        (Filter(tasks=("work",)), 100),
        (Filter(queues=("often", "rare")), 1_000),
        (Filter(ids=(stored(1), stored(999_999), JobId("f" * 32))), 3),
        (Filter(tags=("red",)), 200),
        (Filter(states=(State.SCHEDULED,)), 100),
        (Filter(states=(State.WAITING,)), 1_000),
        (Filter(states=(State.PARKED,)), 1_000),
        (Filter(states=(State.RUNNING,)), 5_000),
        (Filter(states=(State.DEAD,)), 1_500),
        (Filter(states=(State.CANCELLED,)), 1_500),
        (Filter(states=(State.EXPIRED,)), 1_500),
        (Filter(states=(State.DEAD,), queues=("default",)), 1_500),
        (Filter(states=(State.SUCCEEDED,), queues=("rare",)), 1_500),
        (Filter(causes=("ValueError: no 1",)), 1_500),
    ],
    ids=lambda value: _words(value) if isinstance(value, Filter) else "",
)
def test_what_people_look_for_is_found_where_it_is(sea: Sea, which: Filter, rows: int) -> None:
    cost = sea.cost(sea.store.find(which, 50))

    assert cost.scanned == 0
    assert cost.tuples <= rows
    assert cost.pages <= 1_500 + rows


def test_what_is_rare_in_all_states_costs_a_part_of_the_jobs_that_wait_and_no_history(sea: Sea) -> None:
    queue = sea.cost(sea.store.find(Filter(queues=("nowhere",)), 50))
    task = sea.cost(sea.store.find(Filter(tasks=("rare",), queues=("rare", "default")), 50))

    # Scheduled jobs are not in the order of their queues: of 100,000 at most each is looked at.
    assert queue.tuples <= 120_000
    assert task.tuples <= 120_000


def test_a_later_page_costs_what_the_first_does(sea: Sea) -> None:
    first = sea.cost(sea.store.find(Filter(queues=("default",)), 50))
    later = sea.cost(sea.store.find(Filter(queues=("default",)), 50, before=400_000))

    assert abs(first.tuples - later.tuples) <= 50


def test_what_is_kept_count_of_is_not_counted(sea: Sea) -> None:
    store = sea.store
    operations: list[tuple[Operation[Any], int]] = [
        (store.lanes(), 20),
        (store.queues(), 0),
        (store.workers(), 0),
        (store.stats(NOW - 600_000, NOW), 2_000),
        (store.get([stored(place) for place in READY]), BATCH),
        (store.history(stored(READY[0])), 20),
        (store.parent_results(stored(4), 0, 10), 20),
        (store.causes(Filter()), 1_500),
        (store.kv_get("value 7"), 1),
        (store.lock("leader", "ann", 1_000), 0),
    ]

    costs = [(operation, sea.cost(operation), rows) for operation, rows in operations]

    assert [(operation, cost) for operation, cost, rows in costs if cost.scanned or cost.tuples > rows] == []
