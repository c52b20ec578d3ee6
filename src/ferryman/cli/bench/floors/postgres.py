"""The floor of PostgreSQL: the same table with its indexes, the same durability, by psycopg and plain SQL alone."""

from __future__ import annotations

import time
from typing import Any

import psycopg

from ferryman.io.postgres.address import parse_url
from ferryman.job import NewJob, new_ids
from ferryman.store.postgres.schema import prepare

__all__ = ["PostgresFloor"]

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


class PostgresFloor:
    """One connection, one lane, one task. Not thread-safe."""

    def __init__(self, url: str, job: NewJob) -> None:
        address = parse_url(url)
        self._job = job
        self._held: list[int] = []
        self._sql: psycopg.Connection[tuple[Any, ...]] = psycopg.connect(address.conninfo, autocommit=True)
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


def _now() -> int:
    return time.time_ns() // 1_000_000
