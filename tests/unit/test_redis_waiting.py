"""Waiting for results, and sleeping for work, on a Redis server."""

from __future__ import annotations

import asyncio
import select
import socket
import statistics
import threading
import time
from collections.abc import Iterator

import pytest

from ferryman.io.redis import RedisWaker, bell, listener
from tests.services.proxy import proxy
from tests.services.redis import redis_server
from tests.services.server import Server

from .redis_trial import Trial, add, ask, count, eventually, fact
from .redis_trial import ring as ring_bell


@pytest.fixture
def server() -> Iterator[Server]:
    with redis_server() as server:
        yield server


@pytest.fixture
def own(server: Server) -> Iterator[Trial]:
    trial = Trial(server.url)
    yield trial
    trial.close()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits that no interval ends, but a ring alone."""
    monkeypatch.setattr(bell, "_POLL", 60.0)


def _listeners(server: Server, trial: Trial, channel: str = "bell:done") -> int:
    name, number = ask(server.url, "PUBSUB", "NUMSUB", f"{{{trial.prefix}}}:{channel}")
    assert name
    return int(number)


def _listening(server: Server, trial: Trial) -> bool:
    return _listeners(server, trial) == 1


# -- results


@pytest.mark.usefixtures("patient")
def test_a_wait_ends_within_milliseconds_of_a_ring(own: Trial, server: Server) -> None:
    own.run(count())
    own.runner.wait(30)
    producing = Trial(server.url, prefix=own.prefix)
    rung_at = 0.0

    def produce() -> None:
        nonlocal rung_at
        assert eventually(lambda: own.doorbell._threads_waiting == 1)
        rung_at = time.perf_counter()
        producing.run(add())

    delays = []
    for _ in range(20):
        own.run(count())
        producer = threading.Thread(target=produce)
        producer.start()
        own.runner.wait(30)
        delays.append(time.perf_counter() - rung_at)
        producer.join()
    producing.close()

    # About half a millisecond, were the machine ours.
    assert statistics.median(delays) < 0.02


@pytest.mark.usefixtures("patient")
def test_a_ring_between_a_look_and_the_wait_is_not_missed(own: Trial, server: Server) -> None:
    own.run(count())
    own.runner.wait(30)
    own.run(count())
    rings = own.doorbell._rings

    producer = threading.Thread(target=own.run, args=(add(),))
    producer.start()
    assert eventually(lambda: own.doorbell._rings > rings)
    begun = time.monotonic()
    own.runner.wait(30)
    producer.join()

    assert time.monotonic() - begun < 20


@pytest.mark.usefixtures("patient")
def test_the_first_wait_ends_once_it_is_sure_to_miss_no_ring(own: Trial) -> None:
    own.run(count())
    begun = time.monotonic()

    own.runner.wait(30)

    assert time.monotonic() - begun < 20


def test_a_wait_ends_by_itself_though_nobody_rings_and_though_the_server_is_gone(
    own: Trial, server: Server
) -> None:
    own.run(count())
    own.runner.wait(30)
    own.runner.wait(0.001)
    server.kill()

    own.runner.wait(30)


@pytest.mark.usefixtures("patient")
def test_rings_that_come_along_with_the_first_answer_do_no_harm(own: Trial) -> None:
    over = threading.Event()

    def produce() -> None:
        while not over.is_set():
            own.run(add())

    producers = [threading.Thread(target=produce) for _ in range(4)]
    for producer in producers:
        producer.start()
    try:
        for _ in range(30):
            waker = RedisWaker(own.server)
            waker.close()
            waiting = Trial(own.server.address.shown.partition("?")[0], prefix=own.prefix)
            waiting.run(count())
            waiting.runner.wait(30)
            assert waiting.doorbell._rings
            waiting.close()
    finally:
        over.set()
        for producer in producers:
            producer.join()


@pytest.mark.usefixtures("patient")
def test_threads_and_coroutines_of_several_loops_wait_on_one_connection(own: Trial, server: Server) -> None:
    ended = []

    def sleep() -> None:
        own.runner.wait(60)
        ended.append(1)

    def sleep_in_loop() -> None:
        async def live() -> None:
            runner = own.async_runner()
            await asyncio.gather(*(runner.wait(60) for _ in range(10)))
            await runner.close()

        asyncio.run(live())
        ended.append(1)

    own.runner.wait(30)
    threads = [threading.Thread(target=work) for work in [sleep, sleep_in_loop] * 3]
    for thread in threads:
        thread.start()
    assert eventually(lambda: own.doorbell._threads_waiting == 3 and len(own.doorbell._sleepers) == 30)
    listeners = _listeners(server, own)
    own.run(add())
    for thread in threads:
        thread.join(20)

    assert listeners == 1
    assert len(ended) == 6


def test_nobody_listens_for_results_that_nobody_waits_for(
    own: Trial, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bell, "_LINGER", 0.05)
    own.run(count())
    before = _listeners(server, own)

    own.runner.wait(0.3)

    assert before == 0
    assert eventually(lambda: _listeners(server, own) == 0)
    rings = own.doorbell._rings
    own.run(count())
    own.runner.wait(30)
    assert own.doorbell._rings > rings


@pytest.mark.usefixtures("patient")
def test_a_cancelled_wait_leaves_nothing_behind(own: Trial) -> None:
    async def live() -> None:
        runner = own.async_runner()
        waiting = asyncio.create_task(runner.wait(60))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await runner.close()

    asyncio.run(live())

    assert not own.doorbell._sleepers


# -- work


def _hears(waker: RedisWaker, seconds: float = 20.0) -> bool:
    return bool(select.select([waker.fileno()], [], [], seconds)[0])


def test_a_bell_rings_once_until_it_is_drained(own: Trial) -> None:
    waker = own.waker()

    silent = not _hears(waker, 0)
    heard_by = own.run(ring_bell())
    rung = _hears(waker)
    waker.drain()
    silent_again = not _hears(waker, 0)
    own.run(ring_bell())

    assert (silent, heard_by, rung, silent_again) == (True, 1, True, True)
    assert _hears(waker)
    waker.close()


def test_a_worker_is_told_to_look_at_intervals(own: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    waker = own.waker()
    now = time.monotonic() + 100
    monkeypatch.setattr(time, "monotonic", lambda: now)

    told = []
    for _ in range(20):
        now += 0.1
        told.append(waker.changed())
    monkeypatch.undo()

    assert told.count(True) == 5
    waker.close()


def test_a_bell_whose_connection_was_lost_listens_again_and_rings(own: Trial, server: Server) -> None:
    waker = own.waker()
    ask(server.url, "CLIENT", "KILL", "TYPE", "pubsub")

    # What was rung meanwhile is lost, so it rings by itself.
    assert _hears(waker)
    waker.drain()
    assert eventually(lambda: own.run(ring_bell()) == 1)
    assert _hears(waker)
    waker.close()


def test_a_bell_hung_up_while_the_server_is_gone_is_heard_when_it_is_back(own: Trial, server: Server) -> None:
    server.kill()

    waker = own.waker()
    server.start()

    assert _hears(waker)
    waker.close()


def test_a_bell_behind_a_line_that_is_dead_is_given_up_and_hung_anew(
    own: Trial, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in (("_LOOK_SECONDS", 0.02), ("_PING_SECONDS", 0.1), ("_PONG_SECONDS", 0.4)):
        monkeypatch.setattr(f"ferryman.io.redis.listener.{name}", seconds)
    with proxy(server.port) as line:
        waker = Trial(line.url(server.url), prefix=own.prefix).waker()
        connections = line.connections
        # Pings are answered, and the answers are read as rings are.
        made = fact(server.url, "total_connections_received")
        until = time.monotonic() + 1
        while time.monotonic() < until:
            if _hears(waker, 0.1):
                waker.drain()
        assert fact(server.url, "total_connections_received") == made + 1

        line.stall("to_client")
        assert eventually(lambda: line.connections == 0 or line.connections > connections)
        line.go_on()

        assert _hears(waker)
        waker.close()


def test_nothing_is_said_on_the_line_of_a_bell_while_it_is_read(
    own: Trial, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "_LOOK_SECONDS", 0.02)
    waker = own.waker()
    receive, reading, over = listener._receive, threading.Event(), threading.Event()

    def receive_slowly(sock: socket.socket) -> bytes:
        reading.set()
        assert over.wait(10)
        return receive(sock)

    def has_pinged() -> bool:
        return b"cmd=ping" in ask(server.url, "CLIENT", "LIST", "TYPE", "pubsub")

    # A connection over TLS is not for two threads at a time.
    monkeypatch.setattr(listener, "_receive", receive_slowly)
    reader = threading.Thread(target=waker.drain)
    reader.start()
    assert reading.wait(10)
    monkeypatch.setattr(listener, "_PING_SECONDS", 0.0)

    pinged_meanwhile = eventually(has_pinged, 0.5)
    over.set()
    reader.join()

    assert not pinged_meanwhile
    assert eventually(has_pinged)
    waker.close()


def test_a_bell_that_has_been_lost_and_hung_anew_costs_no_time(own: Trial, server: Server) -> None:
    waker = own.waker()
    assert eventually(lambda: _listeners(server, own, "bell") == 1)
    # A loss that was told twice, by the reader and by the writer.
    waker._listener._mouth.send(b"!")

    began = time.process_time()
    assert not select.select([waker], [], [], 0.5)[0]

    assert time.process_time() - began < 0.2
    waker.close()


def test_a_bell_that_is_taken_down_leaves_no_connection_and_no_thread(own: Trial, server: Server) -> None:
    threads = threading.active_count()
    for _ in range(5):
        waker = own.waker()
        waker.close()
        waker.close()

    assert threading.active_count() == threads
    assert eventually(lambda: _listeners(server, own, "bell") == 0)
