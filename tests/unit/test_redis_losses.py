"""Connections that are lost, servers that restart, functions that are flushed: what callers get, and when."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from ferryman.errors import (
    StoreUnavailable,
)
from ferryman.io.redis import link
from tests.services.proxy import proxy
from tests.services.redis import redis_server
from tests.services.server import Server, free_port

from .redis_trial import Trial, add, ask, count, eventually


@pytest.fixture
def server() -> Iterator[Server]:
    """A server of the test's own, to be mistreated."""
    with redis_server() as server:
        yield server


@pytest.fixture
def own(server: Server) -> Iterator[Trial]:
    trial = Trial(server.url)
    yield trial
    trial.close()


# -- losses


def test_a_connection_lost_while_idle_costs_nobody_anything(own: Trial, server: Server) -> None:
    own.run(add())

    ask(server.url, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    assert own.run(add()) == 2


def test_a_connection_lost_while_idle_costs_no_coroutine_anything(own: Trial, server: Server) -> None:
    async def live() -> list[int]:
        runner = own.async_runner()
        first = await runner.run(add())
        # Without a turn of the loop in between, in which it could notice.
        ask(server.url, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        second = await runner.run(add())
        ask(server.url, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await asyncio.sleep(0.05)
        third = await runner.run(add())
        await runner.close()
        return [first, second, third]

    assert asyncio.run(live()) == [1, 2, 3]


def test_a_write_whose_answer_was_lost_fails_and_is_not_repeated(own: Trial, server: Server) -> None:
    with proxy(server.port) as line:
        trial = Trial(line.url(server.url), prefix=own.prefix)
        trial.run(count())
        line.lose_answer(b"trial_1_add")

        with pytest.raises(StoreUnavailable, match="may have been done or not"):
            trial.run(add())

        assert own.run(count()) == 1
        assert trial.run(add()) == 2
        trial.close()


def test_a_read_whose_answer_was_lost_is_repeated(own: Trial, server: Server) -> None:
    own.run(add())
    with proxy(server.port) as line:
        trial = Trial(line.url(server.url), prefix=own.prefix)
        trial.run(count())
        line.lose_answer(b"trial_1_count")

        assert trial.run(count()) == 1
        trial.close()


def test_coroutines_whose_answers_were_lost_learn_it_or_ask_again(own: Trial, server: Server) -> None:
    async def live(line_url: str, lose: object) -> list[object]:
        runner = Trial(line_url, prefix=own.prefix).async_runner()
        await runner.run(count())
        assert callable(lose)
        lose(b"trial_1_add")
        answers = await asyncio.gather(runner.run(add()), runner.run(count()), return_exceptions=True)
        await runner.close()
        return list(answers)

    with proxy(server.port) as line:
        write, read = asyncio.run(live(line.url(server.url), line.lose_answer))

    assert isinstance(write, StoreUnavailable)
    assert read == 1


def test_a_server_that_answers_no_more_counts_as_lost(
    own: Trial, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "ANSWER_SECONDS", 0.2)
    own.run(count())
    server.pause()

    with pytest.raises(StoreUnavailable, match="no answer in time"):
        own.run(add())
    server.resume()

    assert eventually(lambda: own.run(count()) == 1)


def test_functions_that_were_flushed_are_loaded_again(own: Trial, server: Server) -> None:
    async def live() -> list[int]:
        runner = own.async_runner()
        answers = [await runner.run(add())]
        ask(server.url, "FUNCTION", "FLUSH")
        answers += await asyncio.gather(*(runner.run(add()) for _ in range(10)))
        await runner.close()
        return answers

    own.run(count())
    ask(server.url, "FUNCTION", "FLUSH")
    ask(server.url, "SCRIPT", "FLUSH")
    in_loop = asyncio.run(live())
    ask(server.url, "FUNCTION", "FLUSH")
    last = own.run(add())

    assert in_loop == list(range(1, 12))
    assert last == 12


def test_threads_go_on_while_functions_are_flushed_again_and_again(own: Trial, server: Server) -> None:
    over = threading.Event()

    def flush() -> None:
        while not over.wait(0.02):
            ask(server.url, "FUNCTION", "FLUSH")

    flusher = threading.Thread(target=flush)
    flusher.start()
    try:
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(own.run, [add() for _ in range(400)]))
    finally:
        over.set()
        flusher.join()

    assert sorted(answers) == list(range(1, 401))


def test_nothing_acknowledged_is_lost_when_the_server_is_killed_and_started_again(
    own: Trial, server: Server
) -> None:
    own.run(add(7))
    server.kill()

    with pytest.raises(StoreUnavailable, match=r"cannot be reached.*check that it runs"):
        own.run(add())
    server.start()

    assert own.run(add()) == 8


def test_many_who_lose_a_server_come_back_at_intervals_that_grow_and_differ() -> None:
    with socket.create_server(("127.0.0.1", free_port())) as listening:
        url = f"redis://127.0.0.1:{listening.getsockname()[1]}"
        arrivals: list[float] = []
        over = threading.Event()

        def accept_and_close() -> None:
            listening.settimeout(0.05)
            while not over.is_set():
                try:
                    listening.accept()[0].close()
                except TimeoutError:
                    continue
                arrivals.append(time.monotonic())

        def insist(trial: Trial) -> None:
            until = time.monotonic() + 2
            while time.monotonic() < until:
                with pytest.raises(StoreUnavailable):
                    trial.run(count())

        accepting = threading.Thread(target=accept_and_close)
        accepting.start()
        trials = [Trial(url) for _ in range(20)]
        with ThreadPoolExecutor(20) as pool:
            list(pool.map(insist, trials))
        over.set()
        accepting.join()

    begun = arrivals[0]
    early = sum(at < begun + 0.5 for at in arrivals)
    late = [at for at in arrivals if at > begun + 1.5]
    assert len(arrivals) < 20 * 25
    assert len(late) < early
    assert len({round(at, 2) for at in late}) > len(late) / 4
