"""What a server that fails, forks and event loops must not do to those who use PostgreSQL; and how they are woken."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import select
import signal
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from ferryman.errors import StoreUnavailable
from ferryman.io.postgres import (
    GATE,
    AsyncPostgresRunner,
    PostgresWaker,
    parse_url,
)
from tests.services.pgbouncer import pgbouncer
from tests.services.postgres import postgres_server
from tests.services.server import Server
from tests.services.shared import postgres_url
from tests.unit.postgres_bench import Bench, in_a_loop, until


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench(postgres_url())
    yield bench
    bench.close()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(40) as pool:
        yield pool


# -- lost connections


@pytest.mark.parametrize("writes", [True, False])
def test_a_connection_that_died_while_idle_is_replaced_unnoticed(bench: Bench, writes: bool) -> None:
    ask = bench.ask("SELECT pg_backend_pid()", writes=writes)
    before = bench.runner.run(ask)

    bench.end_sessions()
    after = bench.runner.run(ask)

    assert before != after


def test_a_coroutines_connection_that_died_while_idle_is_replaced_unnoticed(bench: Bench) -> None:
    async def work(runner: AsyncPostgresRunner) -> None:
        for writes in (True, False):
            ask = bench.ask("SELECT pg_backend_pid()", writes=writes)
            before = await runner.run(ask)
            await asyncio.to_thread(bench.end_sessions)
            assert await runner.run(ask) != before

    in_a_loop(bench, work)


def test_a_write_whose_connection_is_lost_is_not_repeated(bench: Bench, pool: ThreadPoolExecutor) -> None:
    with bench.held_up():
        writing = pool.submit(bench.runner.run_all, [bench.put(1), bench.stuck()])
        until(bench.waits)
        bench.end_sessions()
        with pytest.raises(StoreUnavailable, match="was lost"):
            writing.result()

    assert bench.runner.run(bench.put(2))[0][0] == 2
    assert bench.numbers() == [2]


def test_a_coroutines_write_whose_connection_is_lost_is_not_repeated(bench: Bench) -> None:
    async def work(runner: AsyncPostgresRunner) -> None:
        with bench.held_up():
            writing = [asyncio.create_task(runner.run(each)) for each in (bench.put(1), bench.stuck())]
            await asyncio.to_thread(until, bench.waits)
            await asyncio.to_thread(bench.end_sessions)
            for each in writing:
                with pytest.raises(StoreUnavailable, match="was lost"):
                    await each
        await runner.run(bench.put(2))

    in_a_loop(bench, work)

    assert bench.numbers() == [2]


def _lose_twice(bench: Bench, reading: Future[Any], let_go: Callable[[], None], times: int) -> Any:
    for _ in range(times):
        until(bench.waits)
        bench.end_sessions()
    let_go()
    return reading.result()


def test_a_reading_whose_connection_is_lost_is_tried_once_more(
    bench: Bench, pool: ThreadPoolExecutor
) -> None:
    with bench.held_up() as let_go:
        reading = pool.submit(bench.runner.run, bench.stuck(writes=False))
        assert _lose_twice(bench, reading, let_go, times=1) == [("through",)]
    with bench.held_up() as let_go:
        reading = pool.submit(bench.runner.run, bench.stuck(writes=False))
        with pytest.raises(StoreUnavailable):
            _lose_twice(bench, reading, let_go, times=2)


def test_a_reading_coroutine_whose_connection_is_lost_is_tried_once_more(
    bench: Bench, pool: ThreadPoolExecutor
) -> None:
    def read() -> Any:
        return in_a_loop(bench, lambda runner: runner.run(bench.stuck(writes=False)))

    with bench.held_up() as let_go:
        assert _lose_twice(bench, pool.submit(read), let_go, times=1) == [("through",)]
    with bench.held_up() as let_go, pytest.raises(StoreUnavailable):
        _lose_twice(bench, pool.submit(read), let_go, times=2)


def test_a_thread_that_is_interrupted_leaves_nothing_and_the_others_go_on(
    bench: Bench, pool: ThreadPoolExecutor
) -> None:
    def interrupt() -> list[Future[Any]]:
        until(bench.waits)
        waiting = [pool.submit(bench.runner.run, bench.put(n)) for n in range(1, 4)]
        until(lambda: len(bench.database._tickets) == 3)
        os.kill(os.getpid(), signal.SIGINT)
        return waiting

    with bench.held_up():
        interrupting = pool.submit(interrupt)
        with pytest.raises(KeyboardInterrupt):
            bench.runner.run_all([bench.put(0), bench.stuck()])
        answers = [each.result() for each in interrupting.result()]

    assert [rows[0][0] for rows in answers] == [1, 2, 3]
    assert bench.numbers() == [1, 2, 3]


# -- forks and loops


def test_a_forked_child_has_a_connection_of_its_own(bench: Bench) -> None:
    ask = bench.ask("SELECT pg_backend_pid()")
    reading = bench.ask("SELECT pg_backend_pid()", writes=False)
    before = [bench.runner.run(ask), bench.runner.run(reading)]

    child = os.fork()
    if not child:
        code = 1
        with contextlib.suppress(BaseException):
            own = [bench.runner.run(ask), bench.runner.run(reading)]
            bench.runner.run(bench.put(1))
            bench.database.close()
            gc.collect()
            code = 0 if own[0] != before[0] and own[1] != before[1] else 2
        os._exit(code)
    _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == 0
    assert [bench.runner.run(ask), bench.runner.run(reading)] == before
    assert bench.numbers() == [1]


def test_a_fork_while_others_write_leaves_the_child_able_to_write(
    bench: Bench, pool: ThreadPoolExecutor
) -> None:
    with bench.held_up():
        writing = pool.submit(bench.runner.run, bench.stuck())
        until(bench.waits)
        child = os.fork()
        if not child:
            code = 1
            with contextlib.suppress(BaseException):
                bench.runner.run(bench.put(1))
                code = 0
            os._exit(code)
        _, status = os.waitpid(child, 0)
        assert not writing.done()

    assert os.waitstatus_to_exitcode(status) == 0
    assert writing.result() == [("through",)]
    assert bench.numbers() == [1]


def test_an_event_loop_of_a_forked_child_has_a_connection_of_its_own(bench: Bench) -> None:
    ask = bench.ask("SELECT pg_backend_pid()")

    async def work(runner: AsyncPostgresRunner) -> None:
        before = await runner.run(ask)
        child = os.fork()
        if not child:
            code = 1
            with contextlib.suppress(BaseException):
                # The child is not in a loop, as far as asyncio knows after a fork.
                code = 0 if asyncio.new_event_loop().run_until_complete(runner.run(ask)) != before else 2
            os._exit(code)
        _, status = await asyncio.to_thread(os.waitpid, child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert await runner.run(ask) == before

    in_a_loop(bench, work)


def test_two_event_loops_at_once_have_a_runner_each(bench: Bench, pool: ThreadPoolExecutor) -> None:
    async def work(runner: AsyncPostgresRunner, numbers: range) -> list[Any]:
        return await asyncio.gather(*(runner.run(bench.put(n)) for n in numbers))

    def live(numbers: range) -> Any:
        return in_a_loop(bench, lambda runner: work(runner, numbers))

    both = [pool.submit(live, part) for part in (range(200), range(200, 400))]
    answers = [each.result() for each in both]

    assert [[rows[0][0] for rows in each] for each in answers] == [list(range(200)), list(range(200, 400))]
    assert bench.numbers() == list(range(400))


def test_a_runner_goes_over_to_the_next_event_loop(bench: Bench) -> None:
    runner = AsyncPostgresRunner(bench.database)

    for n in range(3):
        asyncio.run(runner.run(bench.put(n)))
    asyncio.run(runner.close())

    assert bench.numbers() == [0, 1, 2]
    until(lambda: bench.sessions() == [])


def test_event_loops_that_come_and_go_leave_no_connections_behind(bench: Bench) -> None:
    runners: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncPostgresRunner]
    runners = weakref.WeakKeyDictionary()

    async def work(n: int) -> None:
        runner = runners[asyncio.get_running_loop()] = AsyncPostgresRunner(bench.database)
        await asyncio.gather(runner.run(bench.put(n)), runner.run(bench.ask("SELECT 1", writes=False)))

    for n in range(5):
        asyncio.run(work(n))
    gc.collect()

    assert not runners
    until(lambda: bench.sessions() == [])
    assert bench.numbers() == list(range(5))


def test_an_event_loop_that_ends_amid_a_write_gives_up_what_waits(bench: Bench) -> None:
    with bench.held_up():

        async def work(runner: AsyncPostgresRunner) -> None:
            writing = [asyncio.create_task(runner.run(each)) for each in (bench.stuck(), bench.put(1))]
            await asyncio.to_thread(until, bench.waits)
            assert runner._writes._task is not None
            runner._writes._task.cancel()
            await asyncio.wait(writing)
            assert all(each.cancelled() for each in writing)

        in_a_loop(bench, work)

    assert bench.numbers() == []


def test_a_runner_that_was_closed_opens_again(bench: Bench) -> None:
    bench.runner.run(bench.put(1))
    bench.runner.close()
    until(lambda: bench.sessions() == [])

    bench.runner.run(bench.put(2))

    assert bench.numbers() == [1, 2]


# -- waiting and waking


def test_who_waits_again_and_again_sleeps_longer_and_longer(bench: Bench) -> None:
    slept: list[float] = []
    for _ in range(12):
        begun = time.monotonic()
        bench.runner.wait(60)
        slept.append(time.monotonic() - begun)

    assert min(slept[-3:]) > max(slept[0], 0.01)


def test_a_wait_is_no_longer_than_it_was_told_to_be(bench: Bench) -> None:
    bench.runner.wait(0)
    in_a_loop(bench, lambda runner: runner.wait(0))


def _rings(waker: PostgresWaker, seconds: float = 30) -> bool:
    ready, _, _ = select.select([waker.fileno()], [], [], seconds)
    waker.drain()
    return bool(ready)


def test_a_notification_rings(bench: Bench) -> None:
    waker = PostgresWaker(bench.address)
    # It rings once when it begins to listen, since something may have come before.
    assert _rings(waker)
    silent = not _rings(waker, 0)

    bench.runner.run(bench.ask("SELECT pg_notify(%s::text, '')", bench.name))

    assert silent
    assert _rings(waker)
    assert waker.address is not None
    waker.close()
    until(lambda: len(bench.sessions()) == 1)


def test_a_waker_that_is_forgotten_listens_no_more(bench: Bench) -> None:
    waker = PostgresWaker(bench.address)
    assert _rings(waker)

    del waker
    gc.collect()

    until(lambda: bench.sessions() == [])


def test_a_waker_may_poll_only(bench: Bench) -> None:
    waker = PostgresWaker(parse_url(f"{bench.url}&listen=no"))

    looks = [waker.changed(), waker.changed()]
    time.sleep(waker.poll)
    looks.append(waker.changed())

    assert waker.address is None
    assert not _rings(waker, 0)
    assert looks == [True, False, True]
    assert bench.sessions() == []
    waker.close()


@pytest.fixture
def server() -> Iterator[Server]:
    with postgres_server() as server:
        yield server


def test_a_bell_survives_a_restart_of_the_server(
    server: Server, bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    address = parse_url(f"{server.url}?schema={bench.name}")
    waker = PostgresWaker(address)
    assert _rings(waker)

    def is_lost() -> bool:
        # Whoever sleeps is woken by the loss, and it is by their look that it is seen.
        _rings(waker, 0.1)
        return "no bell for now" in caplog.text

    server.stop()
    until(is_lost)
    server.start()

    assert _rings(waker)
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(f"NOTIFY {bench.name}")
    assert _rings(waker)
    waker.close()


def test_writers_go_on_after_a_server_was_killed(server: Server) -> None:
    bench = Bench(server.url)
    stored = 0
    failed = 0

    for n in itertools.count():
        if n == 20:
            server.kill()
        elif failed and not stored > 20:
            with contextlib.suppress(AssertionError):
                server.start()
        try:
            bench.runner.run(bench.put(n))
            stored += 1
        except StoreUnavailable:
            failed += 1
        if stored == 40:
            break
    bench.admin.close()
    bench.admin = psycopg.connect(server.url, autocommit=True, options=f"-c search_path={bench.name}")

    assert failed == 1
    assert len(bench.numbers()) == 40
    bench.close()


def test_behind_a_pooler_of_transactions_all_goes_on_and_polling_is_left(
    server: Server, pool: ThreadPoolExecutor
) -> None:
    with pgbouncer(server.port, default_pool_size="2") as pooler:
        bench = Bench(server.url, through=pooler.url)

        async def work(runner: AsyncPostgresRunner) -> list[Any]:
            gate = "SELECT at_the_gate(%s::integer, %s::boolean)"
            calls = [runner.run(bench.put(n)) for n in range(100, 200)]
            calls.append(runner.run(bench.ask(gate, 200, GATE)))
            calls.append(runner.run(bench.ask("SELECT 1", writes=False)))
            return await asyncio.gather(*calls)

        threads = [pool.submit(bench.runner.run_all, [bench.put(n), bench.put(n + 50)]) for n in range(50)]
        coroutines = in_a_loop(bench, work)
        listens = PostgresWaker(
            parse_url(f"{bench.url}&listen={server.url.replace(':', '%3A').replace('/', '%2F')}")
        )

        assert [each.result()[0][0][0] for each in threads] == list(range(50))
        assert len(coroutines) == 102
        assert bench.numbers() == list(range(201))
        assert _rings(listens)
        bench.runner.run(bench.ask("SELECT pg_notify(%s::text, '')", bench.name))
        assert _rings(listens)
        listens.close()
        bench.close()
