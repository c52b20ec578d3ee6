"""The floor of SQLite: the same rows, the same tables and indexes, the same syncs, by `sqlite3` alone."""

from __future__ import annotations

import sqlite3
import time
from urllib.parse import unquote, urlsplit

from ferryman.job import NewJob, new_ids
from ferryman.store.sqlite.schema import prepare

__all__ = ["SqliteFloor"]

_PRAGMAS = """
PRAGMA journal_mode=WAL;
PRAGMA synchronous=FULL;
PRAGMA cache_size=-8192;
PRAGMA temp_store=MEMORY;
PRAGMA wal_autocheckpoint=10000;
PRAGMA journal_size_limit=67108864;
"""
"""What `ferryman.io.sqlite` sets; a test compares them."""

_JOB = """
INSERT INTO ferryman_job (seq, id, lane, task, state, flags, max_attempts, enqueued_at, run_at)
VALUES (?, ?, 1, 1, 2, 0, ?, ?, ?)
"""
_BODY = "INSERT INTO ferryman_body (seq, args) VALUES (?, ?)"
_STAT = """
INSERT INTO ferryman_stat (minute, lane, task, kind, bucket, n) VALUES (?, 1, 1, ?, ?, ?)
ON CONFLICT DO UPDATE SET n = n + excluded.n
"""
_HEAD = """
SELECT j.seq, j.id, t.name, j.lease, j.attempt, j.max_attempts, j.run_at, b.args
FROM ferryman_job j JOIN ferryman_body b ON b.seq = j.seq JOIN ferryman_task t ON t.id = j.task
WHERE j.state = 2 AND j.lane = 1 ORDER BY j.tag, j.seq LIMIT ?
"""
_LEASE = """
UPDATE ferryman_job SET state = 4, lease = lease + 1, attempt = attempt + 1, worker = 1, started_at = ? WHERE seq = ?
"""
_DONE = """
UPDATE ferryman_job SET state = 5, started_at = ?, finished_at = ? WHERE seq = ? AND state = 4 AND worker = 1 AND lease = 1
"""
_ENQUEUED, _SUCCEEDED, _WAITED, _RAN = 0, 1, 4, 5
"""Of ``stat.kind``."""


class SqliteFloor:
    """One connection, one lane, one task. Not thread-safe."""

    def __init__(self, url: str, job: NewJob) -> None:
        path = unquote(urlsplit(url).path)[1:]
        self._job = job
        self._held: list[int] = []
        self._sql = sqlite3.connect(path, isolation_level=None)
        self._sql.executescript(_PRAGMAS)
        prepare(self._sql)
        self._sql.execute("INSERT INTO ferryman_queue (name) VALUES (?)", (job.queue,))
        self._sql.execute(
            "INSERT INTO ferryman_lane (queue, priority) VALUES (?, ?)", (job.queue, job.priority)
        )
        self._sql.execute("INSERT INTO ferryman_task (name) VALUES (?)", (job.task,))

    def close(self) -> None:
        self._sql.close()

    def enqueue(self, count: int) -> int:
        sql, job, now = self._sql, self._job, _now()
        sql.execute("BEGIN IMMEDIATE")
        ((first,),) = sql.execute("SELECT ifnull(max(seq), 0) + 1 FROM ferryman_job")
        ids = [bytes.fromhex(id_) for id_ in new_ids(count)]
        sql.executemany(_JOB, [(seq, id_, job.max_attempts, now, now) for seq, id_ in enumerate(ids, first)])
        sql.executemany(_BODY, [(seq, job.args) for seq in range(first, first + count)])
        sql.execute("UPDATE ferryman_lane SET ready = ready + ? WHERE id = 1", (count,))
        sql.execute(_STAT, (now - now % 60_000, _ENQUEUED, 0, count))
        sql.execute("COMMIT")
        return count

    def turn(self, count: int) -> int:
        sql, now, done = self._sql, _now(), self._held
        sql.execute("BEGIN IMMEDIATE")
        if done:
            sql.executemany(_DONE, [(now, now, seq) for seq in done])
            for kind in (_SUCCEEDED, _WAITED, _RAN):
                sql.execute(_STAT, (now - now % 60_000, kind, 0, len(done)))
        rows = sql.execute(_HEAD, (count,)).fetchall()
        self._held = [row[0] for row in rows]
        sql.executemany(_LEASE, [(now, seq) for seq in self._held])
        sql.execute(
            "UPDATE ferryman_lane SET ready = ready - ?, running = running + ?, succeeded = succeeded + ? WHERE id = 1",
            (len(rows), len(rows) - len(done), len(done)),
        )
        sql.execute("COMMIT")
        return len(done) + len(rows)


def _now() -> int:
    return time.time_ns() // 1_000_000
