"""An executor is made at any moment, and comes to be as a whole or not at all."""

from __future__ import annotations

import gc
import os
import socket
import threading
from collections.abc import Iterator

import pytest

from ferryman import Ferryman
from ferryman.job import OutcomeKind
from ferryman.worker.executor import Executor
from ferryman.worker.frames import Kind
from ferryman.worker.inprocess import _launch_thread
from ferryman.worker.member import Launched
from ferryman.worker.slots import SlotTable
from tests.end_to_end.harness import wait_for

from .supervising import PATIENCE, InProcess, Supervised, claim

PLACES = 2
THREADS = ["flusher", "timekeeper", "loop", *map(str, range(PLACES + 1))]


@pytest.fixture
def app() -> Iterator[Ferryman]:
    app = Ferryman("memory://")

    @app.task(name="one")
    def one() -> int:
        return 1

    @app.task(name="two")
    async def two() -> int:
        return 2

    yield app
    app.close()


def test_an_executor_that_is_told_to_drain_while_it_starts_says_hello_first(app: Ferryman) -> None:
    for _ in range(20):
        here, there = socket.socketpair()
        executor = Supervised(here, SlotTable.create(PLACES))
        executor.send(Kind.DRAIN)

        drained = Executor(app, there, executor.table).run()
        there.close()

        assert drained
        assert [frame.kind for frame in executor.rest()] == [Kind.HELLO, Kind.RETURNED, Kind.BYE]
        here.close()
        executor.table.close()


def test_a_worker_that_is_told_to_reload_before_it_serves_comes_to_serve(app: Ferryman) -> None:
    for _ in range(5):
        worker = app.worker(concurrency=PLACES)
        worker._supervisor.reload()

        with worker:
            assert app.enqueue("one").result(timeout=PATIENCE) == 1


growing = Ferryman("memory://")


def grow() -> type:
    """An annotation that is looked at makes another task."""
    growing.task(name=f"task {len(growing.tasks)}")(lambda: None)
    return int


@growing.task(name="first")
def first(number: "grow()") -> None: ...  # type: ignore[valid-type]  # noqa: UP037


def test_tasks_may_be_made_while_an_executor_is() -> None:
    executor = InProcess(growing)

    executor.assign([claim("first", {"number": 1})])

    assert executor.outcomes(1)[0].kind is OutcomeKind.SUCCEEDED
    assert [task.name for task in executor.hello.tasks] == ["first"]
    assert len(growing.tasks) > 1
    executor.close()


@pytest.mark.parametrize("missing", THREADS)
def test_an_executor_for_one_of_whose_threads_there_is_no_room_says_no_hello_and_leaves_nothing(
    app: Ferryman, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setattr(
        threading, "excepthook", lambda _: None
    )  # The executor's own thread ends by that error.
    threads, files = set(threading.enumerate()), _files()
    with monkeypatch.context() as patch:
        _make_no_thread(patch, f"ferryman-{missing}")
        launched = _launch_thread(app, PLACES)
        executor = Supervised(launched.sock, launched.table)
        said = executor.rest()

    _dismiss(launched)

    assert said == []
    wait_for(lambda: set(threading.enumerate()) <= threads)
    wait_for(lambda: _files() <= files)


def test_an_executor_for_which_there_is_no_thread_at_all_leaves_no_file(
    app: Ferryman, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = _files()
    _make_no_thread(monkeypatch, "ferryman-executor")

    with pytest.raises(RuntimeError, match="new thread"):
        _launch_thread(app, PLACES)

    assert _files() <= files


def _make_no_thread(patch: pytest.MonkeyPatch, name: str) -> None:
    start = threading.Thread.start

    def start_if_possible(thread: threading.Thread) -> None:
        if thread.name == name:
            raise RuntimeError("can't start new thread")
        start(thread)

    patch.setattr(threading.Thread, "start", start_if_possible)


def _dismiss(launched: Launched) -> None:
    launched.kill()
    launched.close()


def _files() -> int:
    gc.collect()
    return len(os.listdir("/dev/fd"))
