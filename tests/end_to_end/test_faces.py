"""What a user's program sees: in-process workers on both stores, results, context, options and signals."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import decimal
import enum
import itertools
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ferryman import (
    Cancel,
    Context,
    Fail,
    Ferryman,
    JobCancelled,
    JobDied,
    JobExpired,
    JobHandle,
    QueueFull,
    ResultTimeout,
    Retry,
    RetryIn,
    Snooze,
    State,
)
from tests.end_to_end.harness import Harbour, wait_for


@pytest.fixture(params=["memory", "sqlite"])
def app(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Ferryman]:
    monkeypatch.chdir(tmp_path)
    app = Ferryman("memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/jobs.db")
    yield app
    app.close()


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclasses.dataclass
class Parcel:
    to: str
    weight: decimal.Decimal
    sent: datetime.datetime
    number: uuid.UUID
    colour: Colour
    tags: list[str] = dataclasses.field(default_factory=list)


# -- results ---------------------------------------------------------------------------------------


def test_a_result_comes_back_and_so_does_an_awaited_one(app: Ferryman) -> None:
    @app.task
    def add(a: int, b: int) -> int:
        return a + b

    @app.task
    async def greet(name: str) -> str:
        await asyncio.sleep(0.001)
        return f"hello {name}"

    async def ask() -> str:
        handle = await greet.aenqueue("you")
        return await handle.aresult(timeout=5)

    with app.worker():
        number = add.enqueue(2, 3).result(timeout=5)
        words = asyncio.run(ask())

    assert (number, words) == (5, "hello you")


def test_rich_values_keep_their_types_there_and_back(app: Ferryman) -> None:
    @app.task
    def forward(parcel: Parcel, colour: Colour, at: datetime.datetime) -> Parcel:
        assert isinstance(parcel, Parcel)
        assert parcel.colour is Colour.RED
        return dataclasses.replace(parcel, colour=colour, sent=at, weight=parcel.weight * 2)

    now = datetime.datetime.now(datetime.UTC)
    parcel = Parcel("Oslo", decimal.Decimal("1.10"), now, uuid.uuid4(), Colour.RED, ["a"])
    with app.worker():
        back = forward.enqueue(parcel, Colour.BLUE, now).result(timeout=5)

    assert back == dataclasses.replace(parcel, colour=Colour.BLUE, weight=decimal.Decimal("2.20"))
    assert type(back.weight) is decimal.Decimal
    assert type(back.number) is uuid.UUID


def test_each_type_comes_back_as_annotated(app: Ferryman) -> None:
    @app.task
    def moment(x: datetime.datetime) -> datetime.datetime:
        return x

    @app.task
    def number(x: uuid.UUID) -> uuid.UUID:
        return x

    @app.task
    def price(x: decimal.Decimal) -> decimal.Decimal:
        return x

    @app.task
    def colour(x: Colour) -> Colour:
        return x

    values: list[tuple[Any, Any]] = [
        (moment, datetime.datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=datetime.UTC)),
        (number, uuid.uuid4()),
        (price, decimal.Decimal("0.1")),
        (colour, Colour.BLUE),
    ]
    with app.worker():
        back = [task.enqueue(value).result(timeout=5) for task, value in values]

    assert back == [value for _, value in values]


def test_a_failed_job_tells_its_producer_why(app: Ferryman) -> None:
    @app.task(retry=Retry(max_attempts=1))
    def fail() -> None:
        raise ValueError("no such parcel")

    with app.worker():
        handle = fail.enqueue()
        with pytest.raises(JobDied, match="ValueError: no such parcel"):
            handle.result(timeout=5)

    assert handle.status() is State.DEAD


def test_waiting_for_a_result_ends_after_its_time(app: Ferryman) -> None:
    @app.task
    def nothing() -> None: ...

    handle = nothing.enqueue()

    with pytest.raises(ResultTimeout, match="still ready"):
        handle.result(timeout=0.05)


# -- context ---------------------------------------------------------------------------------------


def test_progress_and_notes_are_seen_while_the_task_runs(app: Ferryman) -> None:
    go = threading.Event()

    @app.task
    def report(ctx: Context, steps: int) -> str:
        for step in range(steps):
            ctx.progress((step + 1) / (2 * steps), f"step {step}")
        ctx.note("half way")
        go.wait(5)
        return ctx.id

    with app.worker():
        handle = report.enqueue(3)
        wait_for(lambda: handle.record().progress == 0.5, what="the progress is seen")
        notes = app.store.runner().run(app.store.history(handle.id)).notes  # type: ignore[union-attr]
        go.set()
        assert handle.result(timeout=5) == handle.id

    assert [note.text for note in notes] == ["step 0", "step 1", "step 2", "half way"]


def test_a_chain_hands_results_on(app: Ferryman) -> None:
    @app.task
    def first() -> int:
        return 20

    @app.task
    def second(ctx: Context) -> int:
        return sum(ctx.results(int)) + 1

    with app.worker():
        a = first.enqueue()
        b = second.options(after=[a]).enqueue()
        c = second.options(after=[b, a]).enqueue()
        assert c.result(timeout=5) == 42


def test_five_hundred_results_fan_in(app: Ferryman) -> None:
    @app.task
    def square(n: int) -> int:
        return n * n

    @app.task
    def total(ctx: Context) -> list[int]:
        return ctx.results(int)

    @app.task
    async def atotal(ctx: Context) -> int:
        return sum(await ctx.aresults(int))

    with app.worker():
        parts = square.enqueue_many([(n,) for n in range(501)])
        joined = total.options(after=parts).enqueue()
        ajoined = atotal.options(after=parts).enqueue()
        assert joined.result(timeout=10) == [n * n for n in range(501)]
        assert ajoined.result(timeout=10) == sum(n * n for n in range(501))


# -- when ------------------------------------------------------------------------------------------


def test_a_delayed_job_starts_on_time_on_an_idle_worker(app: Ferryman) -> None:
    @app.task
    def mark() -> float:
        return time.time()

    lates = []
    with app.worker():
        mark.enqueue().result(timeout=5)
        for delay in (0.12, 0.2, 0.31):
            due = time.time() + delay
            started = mark.options(delay=delay).enqueue().result(timeout=5)
            lates.append((started - due) * 1000)
        at = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=0.25)
        started = mark.options(at=at).enqueue().result(timeout=5)
        lates.append((started - at.timestamp()) * 1000)

    print(f"late by {', '.join(f'{late:.1f}' for late in lates)} ms")
    assert min(lates) > -2
    assert sorted(lates)[1] < 50
    assert max(lates) < 250


def test_a_job_past_its_time_to_live_expires(app: Ferryman) -> None:
    ran = []

    @app.task
    def mark(n: int) -> None:
        ran.append(n)

    late = mark.options(ttl=0.03).enqueue(1)
    wait_for(lambda: time.time() * 1000 > late.record().enqueued_at + 40)
    with app.worker():
        with pytest.raises(JobExpired):
            late.result(timeout=5)
        mark.options(ttl=60).enqueue(2).result(timeout=5)

    assert ran == [2]


def test_priorities_order_the_jobs_of_one_place(app: Ferryman) -> None:
    order: list[str] = []

    @app.task
    def mark(name: str) -> None:
        order.append(name)

    for name in ("low", "normal", "high", "urgent"):
        for number in range(2):
            mark.options(priority=name).enqueue(f"{name}-{number}")
    with app.worker(concurrency=1):
        wait_for(lambda: len(order) == 8)

    assert order == [f"{name}-{n}" for name in ("urgent", "high", "normal", "low") for n in range(2)]


def test_retries_come_after_growing_delays(app: Ferryman) -> None:
    times: list[float] = []

    @app.task(retry=Retry(max_attempts=4, base=0.1, factor=2, jitter=0))
    def flaky() -> str:
        times.append(time.monotonic())
        if len(times) < 4:
            raise ConnectionError("not yet")
        return "at last"

    with app.worker():
        handle = flaky.enqueue()
        assert handle.result(timeout=5) == "at last"

    gaps = [after - before for before, after in itertools.pairwise(times)]
    print("retried after " + ", ".join(f"{gap * 1000:.0f}" for gap in gaps) + " ms")
    assert gaps[0] >= 0.098
    assert gaps[1] >= 0.198
    assert gaps[2] >= 0.398
    assert gaps[2] < 1.0
    assert handle.record().attempt == 4


def test_signals_steer_the_job(app: Ferryman) -> None:
    seen: list[str] = []

    @app.task
    def steer(way: str) -> str:
        seen.append(way)
        if seen.count(way) > 1:
            return "second time"
        match way:
            case "snooze":
                raise Snooze(0.02, "too early")
            case "cancel":
                raise Cancel("not needed")
            case "retry":
                raise RetryIn(0.02)
            case _:
                raise Fail("never will")

    @app.task
    async def asteer(way: str) -> Any:
        return Snooze(0.02) if seen.append(f"a{way}") or seen.count(f"a{way}") == 1 else "second time"  # type: ignore[func-returns-value]

    with app.worker():
        snoozed, retried = steer.enqueue("snooze"), steer.enqueue("retry")
        cancelled, failed = steer.enqueue("cancel"), steer.enqueue("fail")
        returned = asteer.enqueue("snooze")
        assert snoozed.result(timeout=5) == retried.result(timeout=5) == "second time"
        assert returned.result(timeout=5) == "second time"
        with pytest.raises(JobCancelled, match="not needed"):
            cancelled.result(timeout=5)
        with pytest.raises(JobDied, match="never will"):
            failed.result(timeout=5)

    assert snoozed.record().attempt == 1
    assert retried.record().attempt == 2
    assert seen.count("fail") == seen.count("cancel") == 1


# -- how much --------------------------------------------------------------------------------------


def test_a_bounded_queue_that_blocks_holds_its_producer_back(app: Ferryman) -> None:
    most = 0

    @app.task(queue="narrow")
    def slow(n: int) -> int:
        time.sleep(0.002)
        return n

    app.queue("narrow", max_size=5, overflow="block")
    with app.worker(concurrency=1):
        handles = []
        for n in range(60):
            handles.append(slow.enqueue(n))
            waiting = sum(handle.status() in (State.READY, State.SCHEDULED) for handle in handles[-8:])
            most = max(most, waiting)
        assert [handle.result(timeout=5) for handle in handles] == list(range(60))

    assert most <= 5


def test_a_bounded_queue_that_rejects_says_so(app: Ferryman) -> None:
    @app.task(queue="narrow")
    def nothing() -> None: ...

    app.queue("narrow", max_size=2)
    nothing.enqueue_many([(), ()])

    with pytest.raises(QueueFull, match="max_size=2"):
        nothing.enqueue()


def test_a_thousand_concurrent_enqueues_of_one_loop_are_made_together(app: Ferryman) -> None:
    @app.task
    async def nothing(n: int) -> None: ...

    async def one_after_another() -> float:
        began = time.perf_counter()
        for n in range(250):
            await nothing.aenqueue(n)
        return (time.perf_counter() - began) / 250

    async def at_once() -> tuple[float, list[JobHandle[None]]]:
        began = time.perf_counter()
        handles = await asyncio.gather(*(nothing.aenqueue(n) for n in range(1_000)))
        return (time.perf_counter() - began) / 1_000, handles

    async def both() -> tuple[float, float, list[JobHandle[None]]]:
        await nothing.aenqueue(0)
        single = await one_after_another()
        return single, *await at_once()

    single, together, handles = asyncio.run(both())

    print(f"{single * 1e6:.0f} µs each one after another, {together * 1e6:.0f} µs at once")
    assert len({handle.id for handle in handles}) == 1_000
    if app.store.capabilities.durable:
        # Where a sync costs nothing, as in memory, little more than a commit is saved.
        assert together < single


def test_an_in_process_worker_gives_back_what_it_has_not_started(app: Ferryman) -> None:
    started = threading.Semaphore(0)

    @app.task
    def hold(n: int) -> None:
        started.release()
        time.sleep(0.05)

    handles = hold.enqueue_many([(n,) for n in range(50)])
    with app.worker(concurrency=2):
        started.acquire()
    states = [handle.status() for handle in handles]

    assert State.RUNNING not in states
    assert states.count(State.READY) >= 40
    assert {handle.record().attempt for handle in handles if handle.status() is State.READY} == {0}


def test_an_in_process_worker_leaves_no_thread_behind(app: Ferryman) -> None:
    @app.task
    def nothing() -> None: ...

    @app.task
    async def anothing() -> None: ...

    before = set(threading.enumerate())
    for _ in range(3):
        with app.worker(concurrency=2):
            nothing.enqueue().result(timeout=5)
            anothing.enqueue().result(timeout=5)

    wait_for(lambda: {t for t in set(threading.enumerate()) - before if t.name != "ferryman-writer"} == set())


def test_an_error_in_the_body_ends_the_worker_and_is_raised(app: Ferryman) -> None:
    @app.task
    def nothing() -> None: ...

    def body() -> None:
        with app.worker():
            nothing.enqueue().result(timeout=5)
            raise ZeroDivisionError

    before = set(threading.enumerate())
    with pytest.raises(ZeroDivisionError):
        body()

    wait_for(lambda: not any("supervisor" in each.name for each in set(threading.enumerate()) - before))


# -- across processes ------------------------------------------------------------------------------

RACER = """
import sys, time, tasks
while not __import__("os").path.exists("go"):
    time.sleep(0.001)
for n in range(300):
    print(tasks.mark.options(unique=f"n{n}").enqueue(n).id)
"""


def test_two_processes_that_race_for_unique_keys_make_one_job_each(harbour: Harbour) -> None:
    harbour.load("@app.task\ndef mark(n: int) -> None: ...")
    (harbour.folder / "racer.py").write_text(RACER)
    racers = [
        subprocess.Popen([sys.executable, "racer.py"], cwd=harbour.folder, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]

    harbour.touch("go")
    said = [racer.communicate(timeout=30)[0].split() for racer in racers]

    assert [racer.returncode for racer in racers] == [0, 0]
    assert said[0] == said[1]
    assert len(set(said[0])) == 300
    assert harbour.counts() == {"ready": 300}


def test_a_result_is_awaited_across_processes(harbour: Harbour) -> None:
    tasks = harbour.load("@app.task\ndef who() -> int:\n    return os.getpid()")
    harbour.start_worker("--executors", "1")

    async def ask() -> list[int]:
        handles = [await tasks.who.aenqueue() for _ in range(20)]
        return [await handle.aresult(timeout=5) for handle in handles]

    pids = asyncio.run(ask())

    assert len(set(pids)) == 1
    assert os.getpid() not in pids
