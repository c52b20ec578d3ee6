"""What a batch costs for each of its jobs must not grow with the batch, in a session that made all its plans when tables were
empty: plans are kept while tables grow. Rows are counted that the nodes of all plans passed on or threw away, not time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psycopg
import pytest

from ferryman.clock import ManualClock
from ferryman.io.operation import Operation
from ferryman.io.postgres.talk import Talk
from ferryman.job import Claim, NewJob, Outcome, OutcomeKind, UniqueKey, WorkerId, new_id
from ferryman.store.open import open_store
from ferryman.store.records import Filter, JobNote, QueueSettings, Take
from tests.services.postgres import postgres_server
from tests.unit.postgres_scene import info_of

W = WorkerId("w")
SMALL, LARGE = 2, 600
MOST = 200
"""Rows for each job; at present they are 130 at most. A loop over the batch inside a loop over the batch is at least 600."""

_TELL = """
LOAD 'auto_explain';
SET auto_explain.log_min_duration = 0;
SET auto_explain.log_analyze = on;
SET auto_explain.log_timing = off;
SET auto_explain.log_nested_statements = on;
SET auto_explain.log_format = json
"""


class Young:
    """A store that is used by one session from its first job on; what its server would find out about tables, it does not."""

    def __init__(self, url: str) -> None:
        self.clock = ManualClock()
        self.store = open_store(f"{url}?schema=young", self.clock)
        self.store.runner().run(self.store.register(info_of(W), 1_000_000))
        self.store.runner().run(self.store.declare([
            QueueSettings(name="fair", fair=True), QueueSettings(name="wide", max_size=1_000_000),
            QueueSettings(name="full", max_size=LARGE, overflow="drop_oldest"),
        ]))  # fmt: skip
        self.connection = psycopg.connect(url, autocommit=True, prepare_threshold=None)
        self._talk = Talk(self.connection, prepares=True, strict=False)
        self._plans: list[str] = []
        self.connection.add_notice_handler(lambda notice: self._plans.append(notice.message_primary or ""))
        for statement in _TELL.split(";"):
            self.connection.execute(statement)

    def run(self, operation: Operation[Any]) -> Any:
        body = operation.body(0)
        statement = body.send(None)
        try:
            rows = self.connection.wait(self._talk.ask(statement, self.clock.now()))
        except psycopg.Error as error:
            if error.sqlstate != "FY001":
                raise
            rows = self.connection.wait(self._talk.ask(statement, self.clock.now(), gate=True))
        try:
            body.send(rows)
        except StopIteration as stop:
            return stop.value

    def claims(self, queue: str, count: int) -> Sequence[Claim]:
        claims: Sequence[Claim] = self.run(self.store.claim(W, [Take(queue, 0, count)], count)).jobs
        assert len(claims) == count
        return claims

    def work(self, operation: Operation[Any]) -> int:
        """How many rows went through all plans of an operation."""
        self.connection.execute("SET client_min_messages = log")
        self._plans.clear()
        self.run(operation)
        self.connection.execute("SET client_min_messages = notice")
        plans = self.plans()
        assert plans
        return sum(map(_rows, plans))

    def plans(self) -> list[dict[str, Any]]:
        """What the server has told of since `_plans` was cleared."""
        return [json.loads(plan[plan.index("{") :])["Plan"] for plan in self._plans if '"Plan"' in plan]


def _rows(plan: dict[str, Any]) -> int:
    here = sum(
        plan.get(name, 0)
        for name in ("Actual Rows", "Rows Removed by Filter", "Rows Removed by Join Filter",
                     "Rows Removed by Index Recheck")
    )  # fmt: skip
    return int(here * plan.get("Actual Loops", 1)) + sum(map(_rows, plan.get("Plans", ())))


@pytest.fixture(scope="module")
def young() -> Iterator[Young]:
    with postgres_server(fsync="off", autovacuum="off", jit="off") as server:
        young = Young(server.url)
        yield young
        young.connection.close()
        young.store.close()


# -- batches -----------------------------------------------------------------------------------------

Batch = Callable[[Young, int], Operation[Any]]
"""Makes ready, and answers the operation that is looked at."""


def job(**fields: Any) -> NewJob:
    return NewJob(**{"id": new_id(), "task": "work", "args": b"x", "max_attempts": 3, **fields})


def _enqueue(each: Callable[[int], dict[str, Any]]) -> Batch:
    return lambda young, count: young.store.enqueue([job(**each(number)) for number in range(count)])


def _again(young: Young, count: int) -> Operation[Any]:
    jobs = [job(queue="again") for _ in range(count)]
    young.run(young.store.enqueue(jobs))
    return young.store.enqueue(jobs)


def _children(ended: OutcomeKind | None) -> Batch:
    def make(young: Young, count: int) -> Operation[Any]:
        parent = job(queue="parent")
        young.run(young.store.enqueue([parent]))
        (claim,) = young.claims("parent", 1)
        if ended is not None:
            young.run(young.store.settle(W, [Outcome(claim.id, claim.lease, ended)]))
        return young.store.enqueue([job(queue="child", after=(parent.id,)) for _ in range(count)])

    return make


def _chain(young: Young, count: int) -> Operation[Any]:
    jobs = [job(queue="chain")]
    for _ in range(count):
        jobs.append(job(queue="chain", after=(jobs[-1].id,)))
    return young.store.enqueue(jobs)


def _join(young: Young, count: int) -> Operation[Any]:
    parents = [job(queue="joined") for _ in range(count)]
    young.run(young.store.enqueue(parents))
    return young.store.enqueue([job(queue="child", after=tuple(parent.id for parent in parents))])


def _settle(kind: OutcomeKind, *, family: bool = False, **fields: Any) -> Batch:
    def make(young: Young, count: int) -> Operation[Any]:
        queue = f"settled {new_id()}"
        jobs = [job(queue=queue, **fields) for _ in range(count)]
        young.run(young.store.enqueue(jobs))
        if family:
            young.run(young.store.enqueue([job(queue="child", after=(parent.id,)) for parent in jobs]))
        claims = young.claims(queue, count)
        return young.store.settle(W, [Outcome(claim.id, claim.lease, kind) for claim in claims])

    return make


def _claim(young: Young, count: int) -> Operation[Any]:
    young.run(young.store.enqueue([job(queue="claimed") for _ in range(count)]))
    return young.store.claim(W, [Take("claimed", 0, count)], count)


def _notes(young: Young, count: int) -> Operation[Any]:
    young.run(young.store.enqueue([job(queue="noted") for _ in range(count)]))
    claims = young.claims("noted", count)
    return young.store.annotate(W, [JobNote(claim.id, claim.lease, 0.5, "half") for claim in claims])


def _steer(verb: str, **fields: Any) -> Batch:
    def make(young: Young, count: int) -> Operation[Any]:
        jobs = [job(queue=f"{verb} {len(fields)}", **fields) for _ in range(count)]
        young.run(young.store.enqueue(jobs))
        which = Filter(ids=tuple(each.id for each in jobs))
        if verb == "replay":
            young.run(young.store.cancel(which, count))
        operation: Operation[Any] = getattr(young.store, verb)(which, count)
        return operation

    return make


BATCHES: dict[str, Batch] = {
    "plain": _enqueue(lambda number: {}),
    "mixed": _enqueue(lambda number: {"priority": number % 3, "tags": ("a",)}),
    "scheduled": _enqueue(lambda number: {"delay": 3_600_000}),
    "enqueued again": _again,
    "fair": _enqueue(lambda number: {"queue": "fair", "tenant": str(number % 50)}),
    "fair, some of them later": _enqueue(
        lambda number: {"queue": "fair", "tenant": "one", "delay": 1_000 * (number % 2)}
    ),
    "bound": _enqueue(lambda number: {"queue": "wide"}),
    "dropping": _enqueue(lambda number: {"queue": "full"}),
    "of one key": _enqueue(lambda number: {"queue": "keyed", "key": "one"}),
    "of a wide key": _enqueue(lambda number: {"queue": "keyed", "key": "wide", "room": LARGE}),
    "of many keys": _enqueue(lambda number: {"queue": "keyed", "key": f"k{number}"}),
    "of one key, fair": _enqueue(lambda number: {"queue": "fair", "key": "fair"}),
    "of a wide key, fair": _enqueue(lambda number: {"queue": "fair", "key": "fair and wide", "room": LARGE}),
    "of a wide key, fair, and one of another room": _enqueue(
        lambda number: {"queue": "fair", "key": "two rooms", "room": 500 + 100 * (number == LARGE // 2)}
    ),
    "of many keys, fair": _enqueue(lambda number: {"queue": "fair", "key": f"f{number}"}),
    "unique": _enqueue(lambda number: {"queue": "unique", "unique": UniqueKey(new_id())}),
    "children": _children(None),
    "children of one that succeeded": _children(OutcomeKind.SUCCEEDED),
    "children of one that failed": _children(OutcomeKind.DEAD),
    "a chain": _chain,
    "a join": _join,
    "claimed": _claim,
    "succeeded": _settle(OutcomeKind.SUCCEEDED),
    "retried": _settle(OutcomeKind.RETRY),
    "dead": _settle(OutcomeKind.DEAD),
    "released": _settle(OutcomeKind.RELEASED),
    "succeeded of one key": _settle(OutcomeKind.SUCCEEDED, key="settled", room=LARGE),
    "parents that succeeded": _settle(OutcomeKind.SUCCEEDED, family=True),
    "parents that failed": _settle(OutcomeKind.DEAD, family=True),
    "noted": _notes,
    "cancelled": _steer("cancel"),
    "cancelled of one key": _steer("cancel", key="cancelled"),
    "replayed": _steer("replay"),
    "deleted": _steer("delete"),
}


def test_the_guard_sees_a_loop_within_a_loop(young: Young) -> None:
    young.connection.execute(
        "SET enable_hashjoin = off; SET enable_mergejoin = off; SET client_min_messages = log"
    )
    young._plans.clear()
    young.connection.execute(
        "SELECT * FROM generate_series(1, 600) a JOIN generate_series(1, 600) b ON a = b"
    )
    young.connection.execute("RESET enable_hashjoin; RESET enable_mergejoin; RESET client_min_messages")

    (plan,) = young.plans()
    assert _rows(plan) > 600 * 600


@pytest.mark.parametrize("name", BATCHES)
def test_what_a_job_costs_does_not_grow_with_its_batch(young: Young, name: str) -> None:
    make = BATCHES[name]
    for _ in range(2):
        young.run(make(young, SMALL))

    assert young.work(make(young, LARGE)) <= MOST * LARGE


@pytest.mark.parametrize(
    ("table", "fields"),
    [
        ("room", {"key": "common"}),
        ("tenant", {"queue": "fair", "tenant": "common"}),
        ("tenant", {"queue": "fair", "tenant": "common", "key": "fair and common", "room": LARGE}),
    ],
)
def test_what_a_batch_has_in_common_is_written_a_few_times(
    young: Young, table: str, fields: dict[str, Any]
) -> None:
    """Each time makes a version of its row, and the next one goes through all of them."""
    batch = [job(**fields) for _ in range(LARGE)]
    written = "SELECT n_tup_ins + n_tup_upd FROM pg_stat_xact_user_tables WHERE schemaname = 'young' AND relname = %s"

    with young.connection.transaction():
        (before,) = young.connection.execute(written, [table]).fetchone() or (0,)
        young.run(young.store.enqueue(batch))
        (after,) = young.connection.execute(written, [table]).fetchone() or (0,)

    assert 0 < after - before <= 5


@pytest.mark.parametrize(
    "odd",
    [
        {"key": "later", "delay": 1_000},
        {"key": "child", "after": True},
        {"after": True, "on_parent_failure": "continue"},
        {"key": "narrow", "room": 2},
        {"key": "two rooms"},
    ],
    ids=["later", "waiting", "going-on", "widening", "of-another-room"],
)
def test_a_job_that_is_not_like_the_others_leaves_those_together(young: Young, odd: dict[str, Any]) -> None:
    tenant = f"beside {odd}"
    batch = [job(queue="fair", tenant=tenant) for _ in range(LARGE)]
    after = {"after": (batch[0].id,)} if "after" in odd else {}
    batch[LARGE // 2] = job(queue="fair", tenant=tenant, **{**odd, **after})
    batch[LARGE // 4] = job(queue="fair", tenant=tenant, key="two rooms", room=2)
    young.run(young.store.enqueue([job(queue="keyed", key="narrow", room=1) for _ in range(2)]))
    written = "SELECT n_tup_ins + n_tup_upd FROM pg_stat_xact_user_tables WHERE schemaname = 'young' AND relname = 'tenant'"

    with young.connection.transaction():
        young.run(young.store.enqueue(batch))
        (count,) = young.connection.execute(written).fetchone() or (0,)

    assert 0 < count <= 10
