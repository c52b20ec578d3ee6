"""A user's transaction on PostgreSQL may stay open for long. Nobody else waits for it, and no job of it is forgotten."""

from __future__ import annotations

import select
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from ferryman.clock import ManualClock
from ferryman.errors import QueueFull
from ferryman.job import JobId, NewJob, Outcome, OutcomeKind, State, UniqueKey, new_id
from ferryman.store.open import open_store
from ferryman.store.port import Store
from ferryman.store.records import QueueSettings
from tests.conformance.driver import W1, Ferry, check_counts, new_job, worker_info

from .customers import Place
from .places import postgres_place

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "keyed": {"key": "k", "room": 1},
    "ordered": {"key": "o", "ordered": True},
    "fair": {"queue": "fair", "tenant": "acme"},
    "bounded": {"queue": "bounded"},
    "scheduled": {"delay": 60_000},
    "tagged": {"tags": ("a",), "deadline": 1 << 50},
}
"""What may be shared between the jobs of two transactions. Unique keys and parents come by themselves."""


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with postgres_place(tmp_path) as place:
        yield place


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def store(place: Place, clock: ManualClock) -> Iterator[Store]:
    # Whoever waits for the customer's transaction gets an error instead.
    store = open_store(f"{place.url}&options=-c%20lock_timeout%3D3s", clock)
    store.runner().run(
        store.declare(
            [
                QueueSettings(name="fair", fair=True),
                QueueSettings(name="bounded", max_size=2),
                QueueSettings(name="dropping", max_size=2, overflow="drop_oldest"),
            ]
        )
    )
    yield store
    check_counts(store)
    store.close()


@pytest.fixture
def ferry(place: Place, store: Store, clock: ManualClock) -> Ferry:
    return Ferry(store, clock, lambda: open_store(place.url))


@pytest.fixture
def connection(place: Place) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(place.address) as connection:
        yield connection


def enqueue_inside(store: Store, connection: psycopg.Connection[Any], *jobs: NewJob) -> list[JobId]:
    guest = store.using(connection)
    return [answer.id for answer in guest.runner.run(guest.enqueue(jobs))]


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_waits_for_a_transaction_that_is_open(
    store: Store, ferry: Ferry, connection: psycopg.Connection[Any], kind: str
) -> None:
    fields = KINDS[kind]
    (inside,) = enqueue_inside(store, connection, new_job(**fields))

    outside = ferry.add(**fields)
    bulk = ferry.add_many(1, **fields)
    with psycopg.connect(connection.info.dsn, options="-c lock_timeout=3s") as other:
        if kind != "bounded":
            enqueue_inside(store, other, new_job(**fields))
    ferry.clock.advance(60_000)
    meanwhile = ferry.drain()
    connection.commit()
    ferry.heartbeat()
    later = ferry.drain()

    assert meanwhile[:1] == [outside]
    assert set(bulk) <= set(meanwhile)
    assert later == [inside]
    assert {job.state for job in ferry.jobs()} == {State.SUCCEEDED}


def test_unique_keys_of_an_open_transaction_stand_in_nobody_elses_way(
    store: Store, ferry: Ferry, connection: psycopg.Connection[Any]
) -> None:
    def unique(name: str) -> NewJob:
        return new_job(unique=UniqueKey(name))

    enqueue_inside(store, connection, unique("a"))

    ferry.enqueue(unique("b"))
    assert len(ferry.drain()) == 1
    connection.rollback()
    ferry.enqueue(unique("a"))

    assert len(ferry.drain()) == 1


@pytest.mark.parametrize(
    ("kind", "state"), [(OutcomeKind.SUCCEEDED, State.READY), (OutcomeKind.DEAD, State.CANCELLED)]
)
def test_a_parent_that_ends_meanwhile_does_not_leave_its_child_waiting(
    store: Store, ferry: Ferry, connection: psycopg.Connection[Any], kind: OutcomeKind, state: State
) -> None:
    parent = ferry.add()
    claim = ferry.take()
    (child,) = enqueue_inside(store, connection, new_job(after=(parent,)))

    ferry.settle(claim, kind)
    other = ferry.add(after=(parent,))
    connection.commit()
    ferry.heartbeat()
    done = ferry.drain()

    assert (child in done) is (state is State.READY)
    assert ferry.state(child) is (State.SUCCEEDED if state is State.READY else State.CANCELLED)
    assert ferry.state(other) is ferry.state(child)


def test_a_child_goes_on_when_its_parent_ends_after_the_commit(
    store: Store, ferry: Ferry, connection: psycopg.Connection[Any]
) -> None:
    parent = ferry.add()
    claim = ferry.take()
    (child, grandchild) = enqueue_inside(
        store, connection, first := new_job(after=(parent,)), new_job(after=(first.id,))
    )
    connection.commit()

    assert ferry.drain() == []
    ferry.succeed(claim)

    assert ferry.drain() == [child, grandchild]


def test_places_of_a_key_hold_across_transactions(
    store: Store, ferry: Ferry, connection: psycopg.Connection[Any]
) -> None:
    inside = enqueue_inside(store, connection, *(new_job(key="k", room=1) for _ in range(3)))
    outside = ferry.add(key="k", room=1)
    connection.commit()
    ferry.heartbeat()

    at_once = ferry.claim(10)

    assert len(at_once) == 1
    ferry.succeed(*at_once)
    assert {at_once[0].id, *ferry.drain(1)} == {*inside, outside}


def test_a_bound_is_the_one_seen_from_inside(
    store: Store, ferry: Ferry, connection: psycopg.Connection[Any]
) -> None:
    enqueue_inside(store, connection, *(new_job(queue="bounded") for _ in range(2)))
    with pytest.raises(QueueFull):
        enqueue_inside(store, connection, new_job(queue="bounded"))
    connection.commit()

    with pytest.raises(QueueFull):
        ferry.add(queue="bounded")
    assert len(ferry.drain()) == 2


def test_a_queue_that_drops_drops(store: Store, ferry: Ferry, connection: psycopg.Connection[Any]) -> None:
    old = ferry.add_many(2, queue="dropping")
    inside = enqueue_inside(store, connection, new_job(queue="dropping"))
    connection.commit()
    ferry.heartbeat()

    assert ferry.drain() == [old[1], *inside]


def test_a_rollback_leaves_nothing_behind(
    store: Store, ferry: Ferry, connection: psycopg.Connection[Any]
) -> None:
    parent = ferry.add()
    for fields in KINDS.values():
        enqueue_inside(store, connection, new_job(**fields), new_job(after=(parent,), unique=UniqueKey("u")))
        connection.rollback()

    assert [job.id for job in ferry.jobs()] == [parent]
    ferry.clock.advance(60_000)
    assert ferry.drain() == [parent]
    assert ferry.history(parent).children == ()


def test_the_commit_wakes_a_worker_that_sleeps(
    store: Store, ferry: Ferry, connection: psycopg.Connection[Any]
) -> None:
    waker = store.waker()
    try:
        ferry.run(store.register(worker_info(W1, bell=waker.address), 60_000))
        ferry.claimed()
        # It rings when it has been hung.
        select.select([waker], [], [], 10)
        waker.drain()
        enqueue_inside(store, connection, new_job())
        early, _, _ = select.select([waker], [], [], 0)

        connection.commit()

        rung, _, _ = select.select([waker], [], [], 10)
        assert early == []
        assert rung == [waker]
    finally:
        waker.close()


def test_an_enqueue_repeated_in_another_transaction_makes_no_second_job(
    store: Store, ferry: Ferry, connection: psycopg.Connection[Any]
) -> None:
    job = new_job(id=new_id())
    enqueue_inside(store, connection, job)
    connection.commit()

    guest = store.using(connection)
    (answer,) = guest.runner.run(guest.enqueue([job]))
    connection.commit()

    assert answer.duplicate
    assert len(ferry.jobs()) == 1


def test_an_operation_that_needs_the_gate_takes_it(
    store: Store, ferry: Ferry, connection: psycopg.Connection[Any]
) -> None:
    parent = ferry.add()
    child = ferry.add(after=(parent,))
    claim = ferry.take()
    outcome = Outcome(claim.id, claim.lease, OutcomeKind.SUCCEEDED)

    guest = store.using(connection)
    accepted = guest.runner.run(store.settle(W1, [outcome]))
    before = ferry.state(parent)
    connection.commit()

    assert accepted == [True]
    assert before is State.RUNNING
    assert ferry.drain() == [child]
