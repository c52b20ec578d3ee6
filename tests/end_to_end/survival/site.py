"""A server that a test may kill, a line to it that the test may cut, and a harbour whose workers take that line."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, Self

import psycopg
import redis as redis_client

from ferryman.errors import StoreError
from ferryman.job import JobId, NewJob
from tests.end_to_end.harness import Harbour, wait_for
from tests.services.proxy import Proxy, proxy
from tests.services.server import Server

__all__ = [
    "HOLD",
    "MARK",
    "Producer",
    "Site",
    "another_host",
    "command",
    "ended_by_the_store",
    "is_redis",
    "site_on",
    "twice",
]

MARK = """
@app.task
def mark(n: int) -> None:
    effect("start", n)
    time.sleep(0.005)
    effect("end", n)
"""

HOLD = """
@app.task
def hold(n: int) -> None:
    effect("start", n, os.getpid())
    wait_for_file("go")
    effect("end", n)
"""


_numbers = count()


class Site(NamedTuple):
    """Where a test of survival takes place. The harbour's own process reaches the server without the line."""

    server: Server
    line: Proxy
    harbour: Harbour


@contextlib.contextmanager
def site_on(server: Server, folder: Path) -> Iterator[Site]:
    """A place of its own on a server of this process."""
    folder.mkdir(exist_ok=True)
    own = f"{'prefix' if is_redis(server) else 'schema'}=site_{next(_numbers)}"
    with proxy(server.port) as line:
        harbour = Harbour(folder, f"{server.url}?{own}")
        harbour.url = line.url(harbour.place)
        try:
            yield Site(server, line, harbour)
        finally:
            # Workers shall not be held up by what the test did to the line.
            line.go_on()
            harbour.close()
        harbour.check()


def is_redis(server: Server) -> bool:
    return server.url.startswith("redis")


def command(server: Server, *words: str) -> Any:
    """Tell a Redis server a command, or a PostgreSQL server a statement."""
    if is_redis(server):
        with redis_client.Redis.from_url(server.url) as client:
            return client.execute_command(*words)
    with psycopg.connect(server.url, autocommit=True) as connection:
        cursor = connection.execute(" ".join(words).encode())
        return cursor.fetchall() if cursor.description else None


def twice(harbour: Harbour, word: str = "end") -> int:
    """How many times too often jobs did what leaves this effect."""
    return sum(count - 1 for count in harbour.tally(word).values())


def ended_by_the_store(harbour: Harbour) -> dict[str, int]:
    """How many jobs ended how, as the store's statistics have it: one that ended twice is there twice."""
    minutes = harbour.run(harbour.app.store.stats(0, 2**60))
    ends = {
        "succeeded": sum(each.succeeded for each in minutes),
        "dead": sum(each.dead for each in minutes),
    }
    return {name: count for name, count in ends.items() if count}


class Producer(threading.Thread):
    """Enqueues calls of ``mark`` in small batches, each until it is acknowledged: with the same ids after an error."""

    def __init__(self, tasks: ModuleType) -> None:
        super().__init__(name="producer", daemon=True)
        self._tasks = tasks
        self._over = threading.Event()
        self.acknowledged: list[JobId] = []
        self.errors: list[str] = []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()

    def finish(self) -> int:
        """Make no more, and say how many jobs there are once all are acknowledged."""
        self._over.set()
        self.join(30)
        assert not self.is_alive(), f"the last batch is not acknowledged: {self.errors[-1:]}"
        return len(self.acknowledged)

    def run(self) -> None:
        while not self._over.wait(0.01):
            first = len(self.acknowledged)
            self._enqueue([self._tasks.mark.new_job((n,), {}) for n in range(first, first + 10)])

    def _enqueue(self, jobs: Sequence[NewJob]) -> None:
        def once() -> bool:
            try:
                self._tasks.app.enqueue_jobs(jobs)
            except StoreError as error:
                self.errors.append(str(error))
                return False
            return True

        wait_for(once, timeout=40, what="a batch is acknowledged")
        self.acknowledged += [job.id for job in jobs]


STRANGER = """
import os, time

_readlink, _time, _time_ns = os.readlink, time.time, time.time_ns
_ahead = int(os.environ["STRANGER_AHEAD"])

def readlink(path, *args, **kwargs):
    # What tells one machine's processes from another's.
    return os.environ["STRANGER_NAME"] if path == "/proc/self/ns/pid" else _readlink(path, *args, **kwargs)

os.readlink = readlink
time.time = lambda: _time() + _ahead
time.time_ns = lambda: _time_ns() + _ahead * 10**9
"""


def another_host(harbour: Harbour, name: str, *, ahead: int = 0) -> Mapping[str, str]:
    """The environment of a worker that seems to run on another machine, whose clock is so many seconds ahead."""
    folder = harbour.folder / "stranger"
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(STRANGER)
    return {"PYTHONPATH": str(folder), "STRANGER_NAME": name, "STRANGER_AHEAD": str(ahead)}
