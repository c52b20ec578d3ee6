"""A move from PostgreSQL, or a backup, meets transactions that are open: of claims that have not seen the pause, and of producers."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from ferryman.clock import ManualClock
from ferryman.config import BlobSettings, Settings
from ferryman.errors import StoreUnavailable
from ferryman.io.postgres import filled
from ferryman.job import JobId, NewJob, Outcome, OutcomeKind, State, WorkerId, new_id
from ferryman.moving import backup as backup_
from ferryman.moving import mover
from ferryman.moving.backup import backup, restore
from ferryman.moving.mover import Moved, Mover, Watch
from ferryman.store.open import open_store
from ferryman.store.port import Store
from ferryman.store.records import Filter, Take
from tests.services import places
from tests.unit.postgres_scene import info_of

W = WorkerId("w")
PLAN = [Take("default", 0, 1)]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    yield places.postgres(tmp_path)
    places.leave_postgres(tmp_path)


@pytest.fixture
def here(url: str, clock: ManualClock) -> Iterator[Store]:
    store = open_store(url, clock)
    store.runner().run(store.register(info_of(W), 60_000))
    yield store
    store.close()


@pytest.fixture
def there(clock: ManualClock) -> Iterator[Store]:
    store = open_store("memory://", clock)
    store.runner().run(store.register(info_of(W), 60_000))
    yield store
    store.close()


@pytest.fixture
def session(url: str, here: Store) -> Iterator[psycopg.Connection[object]]:
    """Another session; what it does is committed by hand."""
    here.runner().run(here.lanes())
    with psycopg.connect(url.partition("?")[0]) as connection:
        yield connection


def enqueue(store: Store, *, after: tuple[JobId, ...] = ()) -> JobId:
    id_ = new_id()
    store.runner().run(store.enqueue([NewJob(id=id_, task="work", args=b"", after=after)]))
    return id_


def ship(here: Store, there: Store, watch: Watch) -> Moved:
    return Mover(here, there, BlobSettings(), history=False, watch=watch).run()


def run_all(store: Store) -> list[JobId]:
    done: list[JobId] = []
    while claims := store.runner().run(store.claim(W, PLAN, 1)).jobs:
        store.runner().run(
            store.settle(W, [Outcome(claim.id, claim.lease, OutcomeKind.SUCCEEDED) for claim in claims])
        )
        done += [claim.id for claim in claims]
    return done


def begin_claim(session: psycopg.Connection[object], store: Store, clock: ManualClock) -> None:
    statement = store.claim(W, PLAN, 1).body(0).send(None)
    session.execute(statement.text, filled(statement, clock.now()))


def wait_for_pause(url: str) -> None:
    """In a session of its own: the mover's is taken."""
    onlooker = open_store(url)
    while not any(queue.paused for queue in onlooker.runner().run(onlooker.queues())):
        time.sleep(0.001)
    onlooker.close()


def test_a_claim_that_is_under_way_is_waited_for(
    url: str, here: Store, there: Store, session: psycopg.Connection[object], clock: ManualClock
) -> None:
    claimed, other = enqueue(here), enqueue(here)
    child = enqueue(here, after=(claimed,))
    begin_claim(session, here, clock)
    steps: list[str] = []

    def work(what: str, *_: object) -> None:
        steps.append(what)
        if what == "waiting for running jobs":
            held = here.runner().run(here.holding(W))
            here.runner().run(
                here.settle(W, [Outcome(each.id, each.lease, OutcomeKind.SUCCEEDED) for each in held])
            )

    move = threading.Thread(target=ship, args=(here, there, work))
    move.start()
    wait_for_pause(url)
    move.join(0.3)
    before = list(steps)
    session.commit()
    move.join()

    assert before == []
    assert steps[0] == "waiting for running jobs"
    (parent,) = here.runner().run(here.get([claimed]))
    assert parent is not None
    assert parent.state is State.SUCCEEDED
    assert run_all(there) == [other, child]


def test_a_claim_that_does_not_end_is_not_waited_for_for_ever(
    url: str, here: Store, session: psycopg.Connection[object], clock: ManualClock
) -> None:
    impatient = open_store(f"{url}&options=-clock_timeout%3D100")
    enqueue(here)
    begin_claim(session, here, clock)

    with pytest.raises(StoreUnavailable, match="a claim of a worker does not end"):
        impatient.runner().run(impatient.pack((), 0, 1))

    session.rollback()
    assert len(impatient.runner().run(impatient.pack((), 0, 1))) == 1
    impatient.close()


def test_a_child_waits_for_a_parent_whose_producer_was_slow_to_commit(
    here: Store, there: Store, session: psycopg.Connection[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mover, "_PAGE", 1)
    parent = new_id()
    guest = here.using(session)
    guest.runner.run(guest.enqueue([NewJob(id=parent, task="work", args=b"")]))
    other = enqueue(here)
    children: list[JobId] = []

    def produce(what: str, *_: object) -> None:
        if what == "copied" and not children:
            session.commit()
            child = enqueue(here, after=(parent,))
            children.extend([child, enqueue(here, after=(child,))])

    moved = ship(here, there, produce)

    assert moved.jobs.total() == 4
    assert run_all(there) == [other, parent, *children]
    assert here.runner().run(here.find(Filter(), 10)) == []


def test_a_backup_has_each_child_behind_a_parent_whose_producer_was_slow_to_commit(
    here: Store,
    there: Store,
    session: psycopg.Connection[object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backup_, "_PAGE", 1)
    first, parent = new_id(), new_id()
    guest = here.using(session)
    guest.runner.run(guest.enqueue([NewJob(id=first, task="work", args=b"")]))
    guest.runner.run(guest.enqueue([NewJob(id=parent, task="work", args=b"", after=(first,))]))
    other = enqueue(here)
    children: list[JobId] = []

    def produce(*_: object) -> None:
        if not children:
            session.commit()
            child = enqueue(here, after=(parent,))
            children.extend([child, enqueue(here, after=(child,))])

    saved = backup(here, tmp_path / "chest", BlobSettings(), produce)
    restore(there, tmp_path / "chest", Settings(), lambda *_: None, merge=False)

    assert saved.jobs == 5
    assert run_all(there) == [other, first, parent, *children]


def test_a_cancel_is_passed_on_though_somebody_has_the_job_in_hand(
    url: str, here: Store, there: Store, session: psycopg.Connection[object]
) -> None:
    jobs = [enqueue(there), enqueue(there)]
    onlooker = open_store(url)

    def states() -> list[State | None]:
        return [None if job is None else job.state for job in onlooker.runner().run(onlooker.get(jobs))]

    def let_go_in_time() -> None:
        while State.CANCELLED not in states():
            time.sleep(0.001)
        session.rollback()

    witness = threading.Thread(target=let_go_in_time)

    def cancel(what: str, *_: object) -> None:
        if what == "copied":
            schema = url.partition("?schema=")[2]
            session.execute(f"SELECT FROM {schema}.job WHERE id = %s FOR UPDATE", (jobs[1],))
            there.runner().run(there.cancel(Filter(ids=tuple(jobs)), 2))
            witness.start()

    ship(there, here, cancel)
    witness.join()

    assert states() == [State.CANCELLED, State.CANCELLED]
    onlooker.close()
