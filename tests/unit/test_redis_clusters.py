"""Replicas that confirm writes, and clusters whose nodes hand keys to one another."""

from __future__ import annotations

import asyncio
import select
from collections.abc import Iterator

import pytest

from ferryman.errors import (
    StoreUnavailable,
)
from tests.services.redis import redis_server
from tests.services.server import Server, free_port

from .redis_trial import Trial, add, ask, count, eventually
from .redis_trial import ring as ring_bell


@pytest.fixture
def server() -> Iterator[Server]:
    """A server of the test's own, to be mistreated."""
    with redis_server() as server:
        yield server


# -- replicas and clusters


def test_a_write_that_too_few_replicas_confirm_is_reported_though_it_stands(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ferryman.io.redis.talk._CONFIRM_MS", 50)
    trial = Trial(server.url, options="replicas=1")

    assert trial.run(count()) == 0
    with pytest.raises(StoreUnavailable, match="the write is done, but 0 of 1 replicas"):
        trial.run(add())
    assert trial.run(count()) == 1
    trial.close()


def test_writes_wait_for_their_replicas(server: Server) -> None:
    trial = Trial(server.url, options="replicas=1")

    async def live() -> list[int]:
        runner = trial.async_runner()
        answers = await asyncio.gather(*(runner.run(add()) for _ in range(50)), runner.run(count()))
        await runner.close()
        return list(answers)

    ask(server.url, "CONFIG", "SET", "repl-diskless-sync-delay", 0)
    with redis_server(replicaof=f"127.0.0.1 {server.port}") as replica:
        assert eventually(lambda: b"master_link_status:up" in ask(replica.url, "INFO", "replication"))

        assert trial.run(add()) == 1
        assert ask(replica.url, "GET", f"{{{trial.prefix}}}:count") == b"1"
        assert asyncio.run(live()) == [*range(2, 52), 51]
        trial.close()


@pytest.fixture
def cluster() -> Iterator[list[Server]]:
    """Two nodes; the first has all slots."""
    options = {
        "cluster_enabled": "yes",
        "cluster_node_timeout": "2000",
        "cluster_require_full_coverage": "no",
    }
    bus = [str(free_port()), str(free_port())]
    with (
        redis_server(**options, cluster_port=bus[0]) as one,
        redis_server(**options, cluster_port=bus[1]) as two,
    ):
        ask(one.url, "CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        ask(one.url, "CLUSTER", "MEET", "127.0.0.1", two.port, bus[1])
        assert eventually(
            lambda: (
                all(b"cluster_state:ok" in ask(node.url, "CLUSTER", "INFO") for node in (one, two))
                and b"cluster_known_nodes:2" in ask(two.url, "CLUSTER", "INFO")
            )
        )
        yield [one, two]


def _move_slot(slot: int, source: Server, target: Server) -> None:
    name = ask(target.url, "CLUSTER", "MYID").decode()
    for key in ask(source.url, "CLUSTER", "GETKEYSINSLOT", slot, 100):
        ask(source.url, "MIGRATE", "127.0.0.1", target.port, key.decode(), 0, 5_000)
    for node in (target, source):
        ask(node.url, "CLUSTER", "SETSLOT", slot, "NODE", name)


def test_the_node_of_a_cluster_that_has_the_keys_is_found_and_followed(cluster: list[Server]) -> None:
    one, two = cluster
    trial = Trial(two.url)
    slot = ask(one.url, "CLUSTER", "KEYSLOT", f"{{{trial.prefix}}}")
    waker = trial.waker()

    async def live() -> int:
        runner = trial.async_runner()
        await runner.run(add())
        _move_slot(slot, two, one)
        answers = await asyncio.gather(*(runner.run(add()) for _ in range(10)))
        await runner.close()
        return answers[-1]

    first = trial.run(add())
    _move_slot(slot, one, two)
    second = trial.run(add())
    after_loop = asyncio.run(live())
    last = trial.run(add())

    assert (first, second, after_loop, last) == (1, 2, 13, 14)
    assert trial.run(ring_bell()) is not None
    assert eventually(lambda: select.select([waker.fileno()], [], [], 0.1)[0])
    waker.close()
    trial.close()


def test_while_a_slot_moves_nothing_is_done_by_halves(cluster: list[Server]) -> None:
    one, two = cluster
    trial = Trial(one.url)
    slot = ask(one.url, "CLUSTER", "KEYSLOT", f"{{{trial.prefix}}}")
    trial.run(add())
    ask(two.url, "CLUSTER", "SETSLOT", slot, "IMPORTING", ask(one.url, "CLUSTER", "MYID").decode())
    ask(one.url, "CLUSTER", "SETSLOT", slot, "MIGRATING", ask(two.url, "CLUSTER", "MYID").decode())

    with pytest.raises(StoreUnavailable, match="moving the slot"):
        trial.run(add())
    _move_slot(slot, one, two)

    assert trial.run(add()) == 2
    trial.close()


def test_a_cluster_is_found_by_another_node_when_the_first_is_gone(cluster: list[Server]) -> None:
    one, two = cluster
    _move_slot(ask(one.url, "CLUSTER", "KEYSLOT", "{gone}"), one, two)
    trial = Trial(one.url, prefix="gone")
    trial.run(add())
    one.kill()

    trial.runner.close()

    assert trial.run(add()) == 2
    trial.close()


def test_a_unix_socket_will_do() -> None:
    with redis_server() as folder_of, redis_server(unixsocket=f"{folder_of.folder}/socket") as server:
        near = Trial(f"unix://{folder_of.folder}/socket")
        far = Trial(server.url, prefix=near.prefix)

        assert [near.run(add()), far.run(add()), asyncio.run(near.async_runner().run(add()))] == [1, 2, 3]
        near.close()
        far.close()
