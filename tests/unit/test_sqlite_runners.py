"""What threads, coroutines and failures must not do to one another on a SQLite store."""

from __future__ import annotations

import asyncio
import resource
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ferryman import Ferryman
from ferryman.errors import StoreError
from ferryman.io.sqlite.turns import Turnstile
from ferryman.job import NewJob, WorkerId, new_id
from ferryman.store.records import WorkerInfo
from ferryman.store.sqlite.store import SqliteStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    store = SqliteStore(str(tmp_path / "jobs.db"))
    yield store
    store.close()


def job(**fields: object) -> NewJob:
    return NewJob(id=new_id(), task="t", args=b"", **fields)  # type: ignore[arg-type]


def test_a_value_that_sqlite_cannot_take_fails_its_own_caller_alone(store: SqliteStore) -> None:
    run = store.runner().run
    run(store.enqueue([job()]))
    together = threading.Barrier(40)

    def enqueue(number: int) -> bool:
        together.wait()
        try:
            run(store.enqueue([job(tenant=object() if number == 7 else "acme")]))
        except StoreError:
            return False
        return True

    with ThreadPoolExecutor(40) as pool:
        stored = list(pool.map(enqueue, range(40)))

    assert [number for number, kept in enumerate(stored) if not kept] == [7]


def test_threads_that_use_an_app_for_the_first_time_at_once_share_a_store() -> None:
    for _ in range(50):
        app = Ferryman("memory://")
        together = threading.Barrier(8)

        def first_use(app: Ferryman = app, together: threading.Barrier = together) -> int:
            together.wait()
            return id(app.store)

        with ThreadPoolExecutor(8) as pool:
            stores = {each.result() for each in [pool.submit(first_use) for _ in range(8)]}

        assert len(stores) == 1
        app.close()


def test_event_loops_that_come_and_go_leave_no_threads_behind(tmp_path: Path) -> None:
    app = Ferryman(f"sqlite:///{tmp_path}/jobs.db")

    @app.task(name="nothing")
    def nothing() -> None: ...

    async def enqueue() -> None:
        await nothing.aenqueue()

    for _ in range(30):
        asyncio.run(enqueue())

    writers = [each for each in threading.enumerate() if each.name == "ferryman-writer"]
    for writer in writers[:-1]:
        writer.join(timeout=10)
    assert sum(writer.is_alive() for writer in writers) <= 1
    app.close()


def test_an_enqueue_is_acknowledged_though_no_bell_can_be_rung(store: SqliteStore) -> None:
    run = store.runner().run
    info = WorkerInfo(
        id=WorkerId("w"), host="h", place="p", pid=1, pid_birth=1, queues=None, tasks=(), concurrency=1, bell="/bell"
    )  # fmt: skip
    run(store.register(info, 30_000))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        (answer,) = run(store.enqueue([job()]))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    (stored,) = run(store.get([answer.id]))
    assert stored is not None
    assert stored.id == answer.id


def test_a_turnstile_that_is_forgotten_leaves_no_lock_files_open(tmp_path: Path) -> None:
    turnstile = Turnstile(str(tmp_path / "jobs.db"))
    with turnstile.turn():
        pass

    del turnstile

    open_files = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    assert not [name for name in open_files if name.startswith(str(tmp_path))]
