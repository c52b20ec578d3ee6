"""What a user's open transaction holds on PostgreSQL is waited for by who needs it, and by nobody else of his process."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from ferryman import Context, Ferryman
from ferryman.errors import StoreBusy, StoreUnavailable
from ferryman.io.operation import Operation
from ferryman.io.postgres import performing
from ferryman.job import NewJob, Outcome, OutcomeKind, State, WorkerId, new_id
from ferryman.store.open import open_store
from ferryman.store.records import JobNote, Take
from tests.end_to_end.harness import wait_for
from tests.services import places
from tests.unit.postgres_scene import info_of

Use = Callable[[Ferryman, Any], object]

USES: dict[str, Use] = {
    "once": lambda app, using: app.once("k", lambda: 1, using=using),
    "window": lambda app, using: app.window("w").first("k", using=using),
    "unique": lambda app, using: app.tasks["work"].options(unique="k", using=using).enqueue(),
}


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Ferryman]:
    app = Ferryman(places.postgres(tmp_path))
    app.task(name="work")(lambda: None)
    yield app
    app.close()
    places.leave_postgres(tmp_path)


@pytest.fixture
def user(app: Ferryman) -> Iterator[psycopg.Connection[Any]]:
    """A program of the user's, with a transaction open on the store's database."""
    app.tasks["work"].enqueue()
    url, _, _ = app.settings.url.partition("?")
    with psycopg.connect(url) as connection:
        yield connection
        connection.rollback()


def _is_waiting(user: psycopg.Connection[Any]) -> bool:
    """Whether anybody waits for a transaction: as seen from another session, for one second at most."""
    (found,) = user.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone() or (0,)
    return bool(found)


@pytest.mark.parametrize("name", USES)
def test_other_threads_go_ahead_of_one_that_waits_for_a_users_transaction(
    app: Ferryman, user: psycopg.Connection[Any], name: str
) -> None:
    USES[name](app, user)

    with ThreadPoolExecutor(2) as pool:
        waiter = pool.submit(USES[name], app, None)
        try:
            wait_for(lambda: _is_waiting(user))
            jobs = pool.submit(lambda: [app.tasks["work"].enqueue() for _ in range(20)]).result(timeout=30)
            was_done = waiter.done()
        finally:
            user.commit()
        waiter.result(timeout=30)

    assert not was_done
    assert {job.record().state for job in jobs} == {State.READY}


def test_other_coroutines_go_ahead_of_one_that_waits_for_a_users_transaction(
    app: Ferryman, user: psycopg.Connection[Any]
) -> None:
    app.window("w").first("k", using=user)

    async def both() -> tuple[bool, bool]:
        waiter = asyncio.create_task(app.window("w").afirst("k"))
        try:
            while not _is_waiting(user):
                await asyncio.sleep(0.001)
            for _ in range(20):
                await asyncio.wait_for(app.tasks["work"].aenqueue(), 30)
            was_done = waiter.done()
        finally:
            user.commit()
        return was_done, await waiter

    assert asyncio.run(both()) == (False, False)


@pytest.mark.parametrize("level", list(psycopg.IsolationLevel))
def test_a_transaction_that_waits_for_a_call_neither_holds_it_up_nor_waits_in_vain(
    app: Ferryman, user: psycopg.Connection[Any], level: psycopg.IsolationLevel
) -> None:
    user.rollback()
    user.isolation_level = level
    user.execute("SELECT 1 FROM pg_class")  # From here on the stricter ones see no later moment.
    called, go_on = threading.Event(), threading.Event()

    def call() -> int:
        called.set()
        assert go_on.wait(30)
        return 7

    with ThreadPoolExecutor(2) as pool:
        maker = pool.submit(app.once, "order", call, lease=3_600)
        assert called.wait(30)
        asker = pool.submit(app.once, "order", lambda: 8, using=user, lease=3_600)
        time.sleep(0.3)  # It has asked more than once by now.
        go_on.set()
        first = maker.result(timeout=30)

        assert (first.value, first.duplicate) == (7, False)
        if level <= psycopg.IsolationLevel.READ_COMMITTED:
            assert asker.result(timeout=30).value == 7
        else:
            with pytest.raises(StoreUnavailable, match="could not serialize"):
                asker.result(timeout=30)


def test_who_waits_for_too_long_is_told_what_for(
    app: Ferryman, user: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(performing, "_PATIENCE", 0.1)
    USES["unique"](app, user)

    with pytest.raises(StoreBusy, match="a transaction that some program holds open"):
        USES["unique"](app, None)

    user.commit()
    assert app.tasks["work"].options(unique="k").enqueue().duplicate


def test_notes_of_a_job_that_has_completed_in_an_open_transaction_hold_up_no_other_job(app: Ferryman) -> None:
    url, _, _ = app.settings.url.partition("?")
    completed, go_on = threading.Event(), threading.Event()

    @app.task(name="complete")
    def complete(ctx: Context) -> None:
        with psycopg.connect(url) as connection:
            ctx.complete(using=connection)
            ctx.note("still at it")
            completed.set()
            assert go_on.wait(30)

    with app.worker(concurrency=2):
        long = complete.enqueue()
        assert completed.wait(30)
        beside = [app.tasks["work"].enqueue() for _ in range(20)]
        wait_for(lambda: all(job.record().state is State.SUCCEEDED for job in beside), timeout=30)
        go_on.set()
        wait_for(lambda: long.record().state is State.SUCCEEDED)


@pytest.mark.parametrize("key", [None, "k"], ids=["plain", "keyed"])
def test_notes_of_a_job_that_has_completed_in_an_open_transaction_wait_for_nobody(
    app: Ferryman, user: psycopg.Connection[Any], key: str | None
) -> None:
    store, me = app.store, WorkerId("me")
    run = store.runner().run
    run(store.register(info_of(me), 60_000))
    job = app.tasks["work"].options(key=key, queue="its own").enqueue()
    (claim,) = run(store.claim(me, [Take("its own", 0, 1)], 1)).jobs
    guest = store.using(user)
    guest.runner.run(store.settle(me, [Outcome(claim.id, claim.lease, OutcomeKind.SUCCEEDED)]))
    annotate = store.annotate(me, [JobNote(claim.id, claim.lease, 0.5, "half")])

    with ThreadPoolExecutor(1) as pool:
        noting = pool.submit(run, annotate)
        try:
            with pytest.raises(StoreBusy, match="some program holds open"):
                noting.result(timeout=5)
        finally:
            user.commit()

    assert job.record().state is State.SUCCEEDED


@pytest.mark.parametrize("verb", ["rescue", "leave"])
def test_nobody_waits_at_the_gate_for_a_job_that_has_completed_in_an_open_transaction(
    app: Ferryman, user: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.setattr(performing, "_PATIENCE", 0.1)
    store, lost = app.store, WorkerId("lost")
    run = store.runner().run
    run(store.register(info_of(lost), 60_000))
    job = app.tasks["work"].options(queue="its own").enqueue()
    (claim,) = run(store.claim(lost, [Take("its own", 0, 1)], 1)).jobs
    store.using(user).runner.run(store.settle(lost, [Outcome(claim.id, claim.lease, OutcomeKind.SUCCEEDED)]))
    take_back: Operation[Any] = store.rescue([lost]) if verb == "rescue" else store.leave(lost)
    other = open_store(app.settings.url)

    with ThreadPoolExecutor(1) as pool:
        taking_back = pool.submit(run, take_back)
        try:
            with pytest.raises(StoreBusy, match="some program holds open"):
                taking_back.result(timeout=5)
            other.runner().run(other.enqueue([NewJob(id=new_id(), task="work", args=b"[]", key="k")]))
        finally:
            user.commit()
            other.close()

    assert job.record().state is State.SUCCEEDED
    run(store.rescue([lost]))
    assert [worker.info.id for worker in run(store.workers(alive=True))] == []


def test_many_who_wait_leave_the_line_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(performing, "time", SimpleNamespace(monotonic=lambda: now))
    held = performing.Held()
    waiting = [held.pauses() for _ in range(50)]
    again = [(next(each), each) for each in waiting]
    tries = 0

    while again:
        now, who = min(again, key=lambda each: each[0])
        again.remove((now, who))
        tries += 1
        if (pause := next(who, None)) is not None:
            again.append((now + pause, who))

    assert now == pytest.approx(5)
    assert 50 <= tries <= 50 * 4
