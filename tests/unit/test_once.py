"""Idempotency keys and windows: effects outside the store, once for each key."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from ferryman import Ferryman, once
from ferryman.clock import ManualClock
from ferryman.context import SoftTimeout
from ferryman.errors import ConfigError, PayloadError
from ferryman.io.operation import Operation
from ferryman.once import Once
from ferryman.store.memory.runner import AsyncMemoryRunner, MemoryRunner
from tests.services.redis import redis_server


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def app(clock: ManualClock) -> Iterator[Ferryman]:
    app = Ferryman("memory://", clock=clock)
    yield app
    app.close()


def test_the_second_call_gets_the_first_ones_result(app: Ferryman) -> None:
    charges: list[int] = []

    def charge() -> dict[str, int]:
        charges.append(1)
        return {"receipt": len(charges)}

    first = app.once("order-7", charge)
    second = app.once("order-7", charge)
    other = app.once("order-8", charge)

    assert (first.value, first.duplicate) == ({"receipt": 1}, False)
    assert (second.value, second.duplicate) == ({"receipt": 1}, True)
    assert (other.value, other.duplicate) == ({"receipt": 2}, False)


def test_a_key_is_forgotten_when_its_time_is_over(app: Ferryman, clock: ManualClock) -> None:
    app.once("k", lambda: 1, ttl=60)
    clock.advance(61)

    again = app.once("k", lambda: 2, ttl=60)

    assert (again.value, again.duplicate) == (2, False)


def test_a_call_that_raises_is_not_remembered(app: Ferryman, clock: ManualClock) -> None:
    def fail() -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        app.once("k", fail)
    clock.advance(0.001)

    assert app.once("k", lambda: 1).value == 1


def test_a_call_whose_result_cannot_be_kept_is_not_made_again(app: Ferryman) -> None:
    charges: list[int] = []

    def charge() -> object:
        charges.append(1)
        return object()

    for _ in range(2):
        with pytest.raises(PayloadError, match="the call of once:k was made, but its result is lost"):
            app.once("k", charge)
    assert charges == [1]


def test_a_result_is_noted_as_soon_as_the_store_is_back() -> None:
    with redis_server() as server:
        app = Ferryman(server.url)
        again = threading.Timer(0.5, server.start)

        def charge() -> str:
            server.stop()
            again.start()
            return "receipt"

        first = app.once("k", charge)
        second = app.once("k", lambda: "another")
        again.join()
        app.close()

    assert (first.value, first.duplicate) == ("receipt", False)
    assert (second.value, second.duplicate) == ("receipt", True)


def test_a_call_whose_maker_died_is_made_again_after_its_lease(app: Ferryman, clock: ManualClock) -> None:
    store = app.store
    store.runner().run(store.kv_put("once:k", b"\x00dead", expected=None, ttl=60_000))
    clock.advance(61)

    assert app.once("k", lambda: 1).value == 1


def test_a_call_that_outlives_its_lease_is_remembered_if_nobody_else_made_it(
    app: Ferryman, clock: ManualClock
) -> None:
    def charge() -> str:
        clock.advance(61)
        return "receipt"

    first = app.once("k", charge)
    second = app.once("k", lambda: "another")

    assert (first.value, first.duplicate) == ("receipt", False)
    assert (second.value, second.duplicate) == ("receipt", True)


def test_a_call_that_somebody_else_made_too_after_its_lease_leaves_the_others_note(
    app: Ferryman, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    def charge() -> str:
        clock.advance(61)
        app.once("k", lambda: "theirs")
        return "ours"

    first = app.once("k", charge)

    assert (first.value, first.duplicate) == ("ours", False)
    assert app.once("k", lambda: "another").value == "theirs"
    assert "may have been made twice" in caplog.text


@pytest.mark.parametrize("stop", [SoftTimeout, KeyboardInterrupt])
@pytest.mark.parametrize("written", [False, True])
def test_a_call_is_noted_though_its_thread_is_stopped_meanwhile(
    app: Ferryman,
    clock: ManualClock,
    monkeypatch: pytest.MonkeyPatch,
    stop: type[BaseException],
    written: bool,
) -> None:
    run, names = MemoryRunner.run, []

    def run_until_hit(runner: MemoryRunner, operation: Operation[Any]) -> Any:
        names.append(operation.name)
        # The second write of a call that is made once is its note.
        if operation.name != "kv_put" or names.count("kv_put") != 2:
            return run(runner, operation)
        if written:
            run(runner, operation)
        raise stop

    monkeypatch.setattr(MemoryRunner, "run", run_until_hit)
    with pytest.raises(stop):
        app.once("k", lambda: "receipt")
    clock.advance(61)

    again = app.once("k", lambda: "another")
    assert (again.value, again.duplicate) == ("receipt", True)


def test_a_stop_comes_through_though_the_result_cannot_be_kept(
    app: Ferryman, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, names = MemoryRunner.run, []

    def run_until_hit(runner: MemoryRunner, operation: Operation[Any]) -> Any:
        names.append(operation.name)
        if operation.name != "kv_put" or names.count("kv_put") != 2:
            return run(runner, operation)
        raise SoftTimeout

    monkeypatch.setattr(MemoryRunner, "run", run_until_hit)
    with pytest.raises(SoftTimeout):
        app.once("k", object)

    with pytest.raises(PayloadError, match="its result is lost"):
        app.once("k", lambda: "another")


def test_a_call_is_noted_though_its_coroutine_is_cancelled_meanwhile(
    app: Ferryman, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def call() -> str:
        return "receipt"

    async def live() -> None:
        run, names = AsyncMemoryRunner.run, []
        noting, may_note = asyncio.Event(), asyncio.Event()

        async def run_late(runner: AsyncMemoryRunner, operation: Operation[Any]) -> Any:
            names.append(operation.name)
            if names.count("kv_put") == 2:
                noting.set()
                await may_note.wait()
            return await run(runner, operation)

        monkeypatch.setattr(AsyncMemoryRunner, "run", run_late)
        making = asyncio.create_task(app.aonce("k", call))
        await noting.wait()
        making.cancel()
        asyncio.get_running_loop().call_soon(may_note.set)
        with pytest.raises(asyncio.CancelledError):
            await making

    asyncio.run(live())
    clock.advance(61)

    again = app.once("k", lambda: "another")
    assert (again.value, again.duplicate) == ("receipt", True)


@pytest.mark.parametrize("hangs_at", [1, 2], ids=["taking", "noting"])
def test_a_cancelled_coroutine_does_not_wait_for_a_store_that_hangs(
    app: Ferryman, clock: ManualClock, monkeypatch: pytest.MonkeyPatch, hangs_at: int
) -> None:
    monkeypatch.setattr(once, "_PATIENCE", 0.05)

    async def call() -> str:
        return "receipt"

    async def live() -> tuple[bool, Once[str]]:
        run, names = AsyncMemoryRunner.run, []
        asked, answers = asyncio.Event(), asyncio.Event()

        async def run_late(runner: AsyncMemoryRunner, operation: Operation[Any]) -> Any:
            names.append(operation.name)
            if names.count("kv_put") < hangs_at:
                return await run(runner, operation)
            answer = await run(runner, operation)
            asked.set()
            await answers.wait()
            return answer

        monkeypatch.setattr(AsyncMemoryRunner, "run", run_late)
        making = asyncio.create_task(app.aonce("k", call))
        await asked.wait()
        making.cancel()
        await asyncio.wait([making], timeout=30)
        was_cancelled = making.cancelled()
        answers.set()
        while asyncio.all_tasks() != {asyncio.current_task()}:
            await asyncio.sleep(0)
        clock.advance(1)
        return was_cancelled, await app.aonce("k", call)

    was_cancelled, again = asyncio.run(live())

    assert was_cancelled
    assert (again.value, again.duplicate) == ("receipt", hangs_at == 2)


@pytest.mark.parametrize("hangs_at", [1, 2], ids=["taking", "noting"])
def test_a_stopped_thread_does_not_wait_for_a_store_that_hangs(
    app: Ferryman, clock: ManualClock, monkeypatch: pytest.MonkeyPatch, hangs_at: int
) -> None:
    monkeypatch.setattr(once, "_PATIENCE", 0.05)
    run, names, answers = MemoryRunner.run, [], threading.Event()
    stopped = threading.current_thread()

    def run_late(runner: MemoryRunner, operation: Operation[Any]) -> Any:
        names.append(operation.name)
        if names.count("kv_put") < hangs_at or answers.is_set():
            return run(runner, operation)
        answer = run(runner, operation)
        if threading.current_thread() is stopped:
            raise SoftTimeout
        assert answers.wait(30)
        return answer

    monkeypatch.setattr(MemoryRunner, "run", run_late)
    with pytest.raises(SoftTimeout):
        app.once("k", lambda: "receipt")
    was_hanging = not answers.is_set()
    answers.set()
    for thread in threading.enumerate():
        if thread.name == "ferryman-aside":
            thread.join()
    clock.advance(1)
    again = app.once("k", lambda: "receipt")

    assert was_hanging
    assert (again.value, again.duplicate) == ("receipt", hangs_at == 2)


def test_whoever_comes_while_the_call_is_made_waits_for_its_result() -> None:
    app = Ferryman("memory://")
    begun, may_end = threading.Event(), threading.Event()

    def slow() -> str:
        begun.set()
        may_end.wait(30)
        return "first"

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(app.once, "k", slow)
        begun.wait(30)
        second = pool.submit(app.once, "k", lambda: "second")
        may_end.set()

        assert (first.result().value, first.result().duplicate) == ("first", False)
        assert (second.result().value, second.result().duplicate) == ("first", True)
    app.close()


def test_an_event_loop_makes_calls_once_as_well(app: Ferryman) -> None:
    made: list[int] = []

    async def call() -> int:
        made.append(1)
        await asyncio.sleep(0)
        return 7

    async def live() -> list[tuple[int, bool]]:
        found = await asyncio.gather(*(app.aonce("k", call) for _ in range(5)))
        return [(each.value, each.duplicate) for each in found]

    answers = asyncio.run(live())

    assert len(made) == 1
    assert sorted(answers) == [(7, False), *[(7, True)] * 4]


def test_a_window_knows_what_it_has_seen(app: Ferryman, clock: ManualClock) -> None:
    window, other = app.window("payments", seconds=60), app.window("refunds", seconds=60)

    assert window.first("a")
    assert not window.first("a")
    assert window.first("b")
    assert other.first("a")
    clock.advance(61)
    assert window.first("a")


def test_windows_whose_names_run_into_ids_are_told_apart(app: Ferryman) -> None:
    names = [("a", "b:c"), ("a:b", "c"), ("a%3Ab", "c"), ("a%", "c")]

    firsts = [app.window(name, seconds=60).first(id_) for name, id_ in names]

    assert firsts == [True] * 4


def test_keys_that_are_too_long_for_some_store_are_refused_by_all(app: Ferryman) -> None:
    window = app.window("w", seconds=60)

    assert app.once("k" * 1_000, lambda: 1).value == 1
    assert window.first("ä" * 500)
    with pytest.raises(ConfigError, match=r"idempotency key 'kkkk.*has 1,001 bytes, and 1,000 is the most"):
        app.once("k" * 1_001, lambda: 1)
    with pytest.raises(ConfigError, match=r"in the window 'w' the id 'ää.* has 1,002 bytes"):
        window.first("ä" * 501)
    with pytest.raises(ConfigError, match="name of a window"):
        app.window("w" * 1_001, seconds=60)


def test_keys_and_ids_that_are_no_text_are_taken_as_it(app: Ferryman) -> None:
    window = app.window("w", seconds=60)

    firsts = [window.first(7), window.first("7")]  # type: ignore[arg-type]
    duplicates = [app.once(key, lambda: 1).duplicate for key in (7, "7", uuid.UUID(int=1))]  # type: ignore[arg-type]

    assert firsts == [True, False]
    assert duplicates == [False, True, False]


def test_times_that_make_no_sense_are_refused(app: Ferryman) -> None:
    with pytest.raises(ConfigError, match="must be positive"):
        app.once("k", lambda: 1, ttl=0)
    with pytest.raises(ConfigError, match="some seconds long"):
        app.window("w", seconds=-1)
