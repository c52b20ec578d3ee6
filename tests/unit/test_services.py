"""The servers of the tests: they keep what they acknowledged, and none outlives the run that started it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis

from tests.services.pgbouncer import pgbouncer
from tests.services.postgres import postgres_server
from tests.services.programs import ENVIRONMENT, REDIS, Missing
from tests.services.redis import redis_server
from tests.services.server import Server

ROOT = Path(__file__).parents[2]


class RedisMemory:
    """Remembers a number in a server."""

    start = staticmethod(redis_server)

    def write(self, url: str, number: int) -> None:
        with contextlib.closing(redis.Redis.from_url(url)) as client:
            client.set("number", number)

    def read(self, url: str) -> int:
        with contextlib.closing(redis.Redis.from_url(url, socket_timeout=0.2)) as client:
            return int(client.get("number") or 0)


class PostgresMemory:
    """The same in a table."""

    start = staticmethod(postgres_server)

    def write(self, url: str, number: int) -> None:
        with psycopg.connect(url) as connection:
            connection.execute("CREATE TABLE number AS SELECT %s::int AS n", (number,))

    def read(self, url: str) -> int:
        # Only the server itself can say that it is there: one that is paused still takes connections.
        with psycopg.connect(url, connect_timeout=2) as connection:
            row = connection.execute("SELECT n FROM number").fetchone()
            return row[0] if row else 0


Memory = RedisMemory | PostgresMemory


@pytest.fixture(params=[RedisMemory, PostgresMemory], ids=["redis", "postgres"])
def memory(request: pytest.FixtureRequest) -> Memory:
    made: Memory = request.param()
    return made


@pytest.fixture
def server(memory: Memory) -> Iterator[Server]:
    with memory.start() as started:
        yield started


def test_a_server_that_was_killed_has_all_that_it_acknowledged(memory: Memory, server: Server) -> None:
    memory.write(server.url, 7)

    server.kill()
    with pytest.raises((redis.ConnectionError, psycopg.OperationalError)):
        memory.read(server.url)
    server.start()

    assert memory.read(server.url) == 7


def test_a_server_that_was_stopped_starts_again_with_other_options(memory: Memory, server: Server) -> None:
    memory.write(server.url, 7)
    options = {"maxmemory": "50mb"} if isinstance(memory, RedisMemory) else {"max_connections": "7"}

    server.stop()
    server.start(**options)

    assert memory.read(server.url) == 7


def test_a_server_that_is_paused_answers_when_it_goes_on(memory: Memory, server: Server) -> None:
    memory.write(server.url, 7)

    server.pause()
    with pytest.raises((redis.TimeoutError, psycopg.OperationalError)):
        memory.read(server.url)
    server.resume()

    assert memory.read(server.url) == 7


def test_a_pooler_leads_to_its_server() -> None:
    memory = PostgresMemory()

    with postgres_server() as behind, pgbouncer(behind.port) as pooler:
        memory.write(behind.url, 7)

        assert memory.read(pooler.url) == 7


OWNER = """
import sys, time
from tests.services.{name} import {name}_server

with {name}_server() as server:
    print(server.pid, server.folder, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("name", ["redis", "postgres"])
def test_a_server_ends_when_its_owner_is_killed(name: str) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER.format(name=name)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    pid, folder = owner.stdout.readline().split()

    owner.send_signal(signal.SIGKILL)
    owner.wait()
    # What cleans up has the same output, and closes it when it is done.
    owner.stdout.read()
    owner.stdout.close()

    assert not Path(folder).exists()
    assert is_gone(int(pid))


def is_gone(pid: int) -> bool:
    """Whether a process has ended, be it that nobody has asked for its exit code yet."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_missing_program_is_an_error_that_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENVIRONMENT, "FERRYMAN_REDIS_SERVER", "/nowhere")

    with pytest.raises(Missing, match=r"apt-get install redis-server.*FERRYMAN_REDIS_SERVER"):
        REDIS.find()


def test_a_program_that_is_too_old_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    old = tmp_path / "redis-server"
    old.write_text("#!/bin/sh\necho Redis server v=6.0.16 sha=00000000:0 malloc=jemalloc-5.2.1 bits=64\n")
    old.chmod(0o755)
    monkeypatch.setitem(ENVIRONMENT, "FERRYMAN_REDIS_SERVER", str(old))

    with pytest.raises(Missing, match="is version 6; install it"):
        REDIS.find()
