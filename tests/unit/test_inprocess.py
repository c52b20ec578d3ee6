"""A worker in threads of its program leaves that as it was."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from ferryman import Context, Ferryman, Settings
from ferryman.context import Cancelled
from ferryman.errors import ConfigError
from ferryman.job import JobId, State
from ferryman.worker.frames import Kind
from ferryman.worker.inprocess import _launch_thread
from tests.end_to_end.harness import wait_for

from .supervising import Supervised

app = Ferryman(settings=Settings(url="memory://"))

started: list[JobId] = []

_CLEANING_UP = 0.1


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    started.clear()
    yield
    app.close()


@app.task(name="spin")
def spin(ctx: Context) -> None:
    started.append(ctx.id)
    try:
        while True:
            pass
    except Cancelled:
        time.sleep(_CLEANING_UP)
        raise


@app.task(name="aspin")
async def aspin(ctx: Context) -> None:
    started.append(ctx.id)
    try:
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(_CLEANING_UP)


def test_workers_that_end_while_tasks_run_leave_neither_threads_nor_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    others = set(threading.enumerate())  # Some tests leave threads that wait for what never comes.
    ended_badly: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: ended_badly.append(repr(args.exc_value)))
    with app.worker():
        pass  # What is made once and kept is not counted.
    wait_for(lambda: not _threads_but(others))
    before = _files()

    for _ in range(2):
        with app.worker(concurrency=2, shutdown_timeout=0):
            handles = [spin.enqueue(), aspin.enqueue()]
            wait_for(lambda: {each.id for each in handles} <= set(started))  # noqa: B023
        for each in handles:
            each.cancel()

    wait_for(lambda: not _threads_but(others))
    wait_for(lambda: _files() <= before)
    assert ended_badly == []
    states = app.store.runner().run(app.store.get(started))
    assert State.RUNNING not in [job.state for job in states if job]


def test_a_default_timeout_of_the_programs_sockets_does_not_end_an_executor_at_rest() -> None:
    usual = socket.getdefaulttimeout()
    socket.setdefaulttimeout(0.01)
    try:
        launched = _launch_thread(app, 2)
    finally:
        socket.setdefaulttimeout(usual)
    executor = Supervised(launched.sock, launched.table)
    executor.frame(Kind.HELLO)

    launched.sock.settimeout(0.2)
    with pytest.raises(TimeoutError):
        launched.sock.recv(1)  # One that has ended would answer at once.

    launched.kill()
    launched.close()


def _threads_but(others: set[threading.Thread]) -> list[str]:
    return [each.name for each in set(threading.enumerate()) - others if each.name.startswith("ferryman-")]


def _files() -> int:
    gc.collect()
    return len(os.listdir("/dev/fd"))


def test_tasks_that_are_made_while_a_worker_runs_are_run() -> None:
    """As in a notebook, cell by cell."""
    notebook = Ferryman("memory://")

    with notebook.worker():
        for number in range(3):
            task = notebook.task(name=f"cell {number}")(lambda: 1)
            assert task.enqueue().result(timeout=30) == 1

            @notebook.task(name=f"async cell {number}")
            async def cell() -> int:
                return 2

            assert cell.enqueue().result(timeout=30) == 2
    notebook.close()

    assert notebook.on_new_task == []


def test_a_task_whose_annotations_make_no_sense_is_refused_while_a_worker_runs_which_runs_on() -> None:
    notebook = Ferryman("memory://")

    def total(numbers: list[int] | set[int]) -> int:
        return sum(numbers)

    with notebook.worker():
        with pytest.raises(ConfigError, match=r"annotations of total: .*more than one array-like"):
            notebook.task(name="total")(total)
        total.__annotations__["numbers"] = list[int]
        mended = notebook.task(name="total")(total)

        assert mended.enqueue([1, 2]).result(timeout=30) == 3
    notebook.close()


def test_a_task_whose_annotations_make_no_sense_cannot_be_enqueued_and_keeps_a_worker_from_its_start() -> (
    None
):
    notebook = Ferryman("memory://")

    @notebook.task(name="total")
    def total(numbers: list[int] | set[int]) -> int:
        return sum(numbers)

    with pytest.raises(ConfigError, match="annotations of total"):
        total.enqueue([1, 2])
    with pytest.raises(ConfigError, match="annotations of total"):
        notebook.worker().start()
    notebook.close()
