"""The floor of PostgreSQL: the same table with its indexes, the same durability, by psycopg and plain SQL alone."""

from __future__ import annotations

import select
import time
from typing import Any

import psycopg

from ferryman.cli.bench.floors import ENTRY
from ferryman.io.postgres.address import parse_url
from ferryman.job import NewJob, new_ids
from ferryman.store.postgres.schema import prepare

__all__ = ["PostgresFloor", "PostgresSender", "PostgresSleeper", "can_listen"]

_ENQUEUE = """
INSERT INTO job (id, enqueued_at, run_at, max_attempts, state, priority, queue, task, args)
SELECT id, %(now)s, %(now)s, %(max_attempts)s, 2, 0, %(queue)s, %(task)s, args
FROM unnest(%(ids)s::uuid[], %(args)s::bytea[]) AS new(id, args)
"""
_CLAIM = """
WITH head AS (
    SELECT seq FROM job WHERE state = 2 AND queue = %(queue)s AND priority = 0
    ORDER BY tag, seq LIMIT %(count)s FOR UPDATE SKIP LOCKED
)
UPDATE job j SET state = 4, lease = lease + 1, attempt = attempt + 1, worker = 1, started_at = %(now)s
FROM head WHERE j.seq = head.seq RETURNING j.seq, j.id, j.task, j.args, j.lease
"""
_SETTLE = """
UPDATE job SET state = 5, finished_at = %(now)s
WHERE seq = ANY(%(seqs)s) AND state = 4 AND worker = 1 AND lease = 1
"""
_ENTRIES = (
    "CREATE TABLE entry (id bigserial PRIMARY KEY, taken boolean NOT NULL DEFAULT false, payload bytea NOT NULL)",
    "CREATE INDEX ON entry (id) WHERE NOT taken",
)
_STORE = "INSERT INTO entry (payload) VALUES (%s)"
_TAKE = """
UPDATE entry SET taken = true WHERE id = ANY(ARRAY(
    SELECT id FROM entry WHERE NOT taken ORDER BY id LIMIT 16 FOR UPDATE SKIP LOCKED
)) RETURNING id, payload
"""


class PostgresFloor:
    """One connection, one lane, one task. Not thread-safe."""

    def __init__(self, url: str, job: NewJob) -> None:
        address = parse_url(url)
        self._job = job
        self._held: list[int] = []
        self._sql = _connect(address.conninfo)
        prepare(self._sql, address.schema)
        # Only the schema's name, which `parse_url` has checked, is put into the text.
        self._sql.execute(f"SET search_path = {address.schema}")
        self._sql.execute("SET enable_seqscan = off")
        self._cursor = self._sql.cursor(binary=True)

    def close(self) -> None:
        self._sql.close()

    def enqueue(self, count: int) -> int:
        job = self._job
        self._cursor.execute(
            _ENQUEUE,
            {
                "now": _now(),
                "max_attempts": job.max_attempts,
                "queue": job.queue,
                "task": job.task,
                "ids": list(new_ids(count)),
                "args": [job.args] * count,
            },
        )
        return count

    def turn(self, count: int) -> int:
        now, done = _now(), len(self._held)
        with self._sql.transaction():
            if done:
                self._cursor.execute(_SETTLE, {"now": now, "seqs": self._held})
            self._cursor.execute(_CLAIM, {"queue": self._job.queue, "count": count, "now": now})
            self._held = [row[0] for row in self._cursor.fetchall()]
        return done + len(self._held)


class PostgresSender:
    """Stores and notifies in one round trip and one commit."""

    ear = None

    def __init__(self, url: str) -> None:
        address = parse_url(url)
        self._sql = _connect(address.conninfo)
        self._sql.execute(f"CREATE SCHEMA {address.schema}")
        self._sql.execute(f"SET search_path = {address.schema}")
        for text in _ENTRIES:
            self._sql.execute(text)
        self._notify = f"NOTIFY {address.schema}"

    def close(self) -> None:
        self._sql.close()

    def store(self) -> None:
        with self._sql.pipeline():
            self._sql.execute(_STORE, [ENTRY], prepare=True)
            self._sql.execute(self._notify, prepare=True)


class PostgresSleeper:
    """One connection that listens and one that takes, whose commits do not wait for the disk."""

    def __init__(self, url: str) -> None:
        address = parse_url(url)
        assert address.listen is not None
        self._sql = _connect(address.conninfo)
        self._sql.execute(f"SET search_path = {address.schema}")
        self._sql.execute("SET enable_seqscan = off")
        self._sql.execute("SET synchronous_commit = off")
        self._cursor = self._sql.cursor(binary=True)
        self._bell = _connect(address.listen)
        self._bell.execute(f"LISTEN {address.schema}")

    def wait(self, seconds: float) -> bool:
        if not select.select([self._bell], [], [], seconds)[0]:
            return False
        self._bell.pgconn.consume_input()
        while self._bell.pgconn.notifies() is not None:
            pass
        return True

    def take(self) -> int:
        return len(self._cursor.execute(_TAKE, prepare=True).fetchall())


def can_listen(url: str) -> bool:
    """Whether a store's URL lets its workers be woken."""
    return parse_url(url).listen is not None


def _connect(conninfo: str) -> psycopg.Connection[tuple[Any, ...]]:
    return psycopg.connect(conninfo, autocommit=True)


def _now() -> int:
    return time.time_ns() // 1_000_000
