"""What tasks do to the loop and the notes of their executor ends with them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from ferryman import Context, Ferryman, Settings
from ferryman.config import BlobSettings
from ferryman.job import OutcomeKind
from ferryman.worker import loop as loop_module
from ferryman.worker.frames import Kind

from .supervising import PATIENCE, InProcess, claim

LARGE = 5_000


class Float32:
    """A number as those of numpy, which are no `float`."""

    def __float__(self) -> float:
        return 0.5


PROGRESS = {"bool": True, "Decimal": Decimal("0.5"), "Fraction": Fraction(1, 2), "numpy": Float32()}


class Shore:
    """What tasks of this file and their test have in common."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.last_step = threading.Event()
        """A generator that outlived its task has begun to end."""
        self.ended = False
        """So it has."""
        self.kept: list[Any] = []
        """What outlives the task that made it."""
        self.task: asyncio.Task[Any] | None = None
        """The one that ran last."""

    def cancel_late(self) -> None:
        """As by a task's own watchdog, that fires when the task has returned."""
        assert self.task is not None
        done = threading.Event()
        loop = self.task.get_loop()
        loop.call_soon_threadsafe(self.task.cancel)
        loop.call_soon_threadsafe(loop.call_soon, done.set)
        assert done.wait(PATIENCE)


@pytest.fixture
def shore() -> Iterator[Shore]:
    shore = Shore()
    yield shore
    shore.gate.set()


@pytest.fixture
def executor(shore: Shore, tmp_path: Path) -> Iterator[InProcess]:
    executor = InProcess(_app(shore, tmp_path), places=2)
    yield executor
    shore.gate.set()
    executor.close()


def _app(shore: Shore, folder: Path) -> Ferryman:
    blobs = BlobSettings(url=f"file://{folder}/blobs", above=2_000)
    app = Ferryman(settings=Settings(url="memory://", blobs=blobs))

    @app.task(name="report")
    def report(ctx: Context, kind: str) -> None:
        ctx.progress(PROGRESS[kind])  # type: ignore[arg-type]

    @app.task(name="plain")
    async def plain() -> int:
        await asyncio.sleep(0)
        return 1

    @app.task(name="exit")
    async def leave() -> None:
        async def helper() -> None:
            raise SystemExit("bad option")

        await asyncio.gather(helper())

    @app.task(name="interrupt")
    async def interrupt() -> None:
        async def helper() -> None:
            raise KeyboardInterrupt

        async with asyncio.TaskGroup() as group:
            group.create_task(helper())

    @app.task(name="stop")
    async def stop() -> None:
        asyncio.get_running_loop().stop()
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    @app.task(name="block")
    async def block(ctx: Context) -> None:
        ctx.note("blocks")
        shore.gate.wait(PATIENCE)

    @app.task(name="leave_a_generator")
    async def leave_a_generator() -> int:
        async def end() -> None:
            await asyncio.Event().wait()  # It says so to a server that is away.

        return await _left_behind(shore, end)

    @app.task(name="leave_a_slow_generator")
    async def leave_a_slow_generator() -> int:
        async def end() -> None:
            shore.last_step.set()
            while not shore.gate.is_set():
                await asyncio.sleep(0.001)
            shore.ended = True

        return await _left_behind(shore, end)

    @app.task(name="leave_a_deaf_generator")
    async def leave_a_deaf_generator() -> int:
        async def end() -> None:
            while not shore.gate.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.Event().wait()

        return await _left_behind(shore, end)

    @app.task(name="cancel_all_others")
    async def cancel_all_others() -> None:
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    @app.task(name="large")
    async def large() -> bytes:
        shore.task = asyncio.current_task()
        return os.urandom(LARGE)

    @app.task(name="large_and_cancelled")
    async def large_and_cancelled() -> bytes:
        shore.task = asyncio.current_task()
        assert shore.task is not None
        shore.task.cancel()
        return os.urandom(LARGE)

    return app


async def _left_behind(shore: Shore, end: Callable[[], Awaitable[None]]) -> int:
    """Begin an asynchronous generator, and leave it where it is; `end` is what it does at its end."""

    async def tick() -> AsyncGenerator[int]:
        try:
            while True:
                yield 1
        finally:
            await end()

    ticks = tick()
    shore.kept.append(ticks)
    return await anext(ticks)


# -- notes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PROGRESS)
def test_progress_may_be_any_number(executor: InProcess, kind: str) -> None:
    executor.assign([claim("report", {"kind": kind})])

    (note,) = executor.notes(1)
    (outcome,) = executor.outcomes(1)

    assert type(note.progress) is float
    assert note.progress == float(PROGRESS[kind])  # type: ignore[arg-type]
    assert outcome.kind is OutcomeKind.SUCCEEDED


# -- the loop --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "kind"),
    [("exit", OutcomeKind.RETRY), ("interrupt", OutcomeKind.RETRY), ("stop", OutcomeKind.SUCCEEDED)],
)
def test_a_task_that_leaves_the_loop_does_not_take_it_with_it(
    executor: InProcess, task: str, kind: OutcomeKind
) -> None:
    executor.assign([claim(task)], "loop")
    (outcome,) = executor.outcomes(1)
    executor.assign([claim("plain") for _ in range(5)], "loop")
    others = executor.outcomes(5)
    executor.send(Kind.DRAIN)
    executor.frame(Kind.BYE)
    executor.join()

    assert outcome.kind is kind
    assert {each.kind for each in others} == {OutcomeKind.SUCCEEDED}
    assert executor.drained is True


def test_an_executor_whose_loop_is_blocked_answers_no_ping_until_it_goes_on(
    executor: InProcess, shore: Shore
) -> None:
    executor.assign([claim("block")], "loop")
    executor.notes(1)

    executor.send(Kind.PING, 7)
    executor.send(Kind.RECALL)
    executor.returned()
    before = [frame.kind for frame in executor.frames]
    shore.gate.set()

    assert Kind.PONG not in before
    assert executor.frame(Kind.PONG).body == 7


def test_a_job_that_another_task_cancels_before_its_first_step_ends_and_its_place_is_usable_again(
    executor: InProcess,
) -> None:
    (tidying, unbegun) = executor.assign([claim("cancel_all_others"), claim("plain")], "loop")
    outcomes = {each.id: each for each in executor.outcomes(2)}
    executor.assign([claim("plain") for _ in range(4)], "loop")
    others = executor.outcomes(4)

    assert outcomes[tidying.claim.id].kind is OutcomeKind.SUCCEEDED
    assert outcomes[unbegun.claim.id].kind is OutcomeKind.RETRY
    assert executor.table.running("loop") == []
    assert {each.kind for each in others} == {OutcomeKind.SUCCEEDED}


def test_an_executor_whose_loop_fails_for_want_of_memory_ends(
    executor: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise MemoryError

    assert executor.executor._loop is not None
    loop = executor.executor._loop._loop
    monkeypatch.setattr(loop, "run_forever", fail)

    executor.assign([claim("stop")], "loop")  # It leaves the loop for a moment.
    executor.join()

    assert executor.drained is False
    monkeypatch.undo()
    loop.run_forever()  # What it was told last ends the job, and it.
    loop.close()


@pytest.mark.parametrize("task", ["leave_a_generator", "leave_a_deaf_generator"])
def test_a_generator_that_does_not_end_keeps_no_executor_from_its_goodbye(
    executor: InProcess, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    monkeypatch.setattr(loop_module, "_LAST_STEPS", 0.01)
    executor.assign([claim(task)], "loop")
    executor.outcomes(1)

    executor.send(Kind.DRAIN)
    executor.frame(Kind.BYE)
    executor.join()

    assert executor.drained is True


def test_a_generator_ends_though_the_supervisor_goes_meanwhile(executor: InProcess, shore: Shore) -> None:
    executor.assign([claim("leave_a_slow_generator")], "loop")
    executor.outcomes(1)

    executor.send(Kind.DRAIN)
    assert shore.last_step.wait(PATIENCE)
    executor.close()
    shore.gate.set()

    assert executor.executor.is_at_rest.wait(PATIENCE)
    assert shore.ended


@pytest.mark.parametrize("task", ["large", "large_and_cancelled"])
def test_a_cancel_that_comes_while_a_large_result_is_put_away_loses_nothing(
    executor: InProcess, shore: Shore, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    stow = vars(loop_module)["stow"]

    def stow_slowly(*args: Any) -> Any:
        shore.cancel_late()
        return stow(*args)

    monkeypatch.setattr(loop_module, "stow", stow_slowly)
    kinds = []
    for _ in range(3):  # There are two places.
        executor.assign([claim(task)], "loop")
        kinds.append(executor.outcomes(1)[0].kind)

    assert kinds == [OutcomeKind.SUCCEEDED] * 3
    executor.assign([claim("plain")], "loop")
    assert executor.outcomes(1)[0].kind is OutcomeKind.SUCCEEDED
