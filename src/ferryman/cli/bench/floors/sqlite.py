"""The floor of SQLite: the same rows, the same tables and indexes, the same syncs, by `sqlite3` alone."""

from __future__ import annotations

import contextlib
import select
import socket
import sqlite3
import time
from urllib.parse import unquote, urlsplit

from ferryman.cli.bench.floors import ENTRY
from ferryman.job import NewJob, new_ids
from ferryman.store.sqlite.schema import prepare

__all__ = ["SqliteFloor", "SqliteSender", "SqliteSleeper"]

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
_ENTRIES = """
CREATE TABLE entry (id INTEGER PRIMARY KEY, taken INTEGER NOT NULL DEFAULT 0, payload BLOB NOT NULL);
CREATE INDEX entry_ready ON entry (id) WHERE taken = 0;
"""
_STORE = "INSERT INTO entry (payload) VALUES (?)"
_TAKE = """
UPDATE entry SET taken = 1 WHERE id IN (SELECT id FROM entry WHERE taken = 0 ORDER BY id LIMIT 16)
RETURNING id, payload
"""
_ENQUEUED, _SUCCEEDED, _WAITED, _RAN = 0, 1, 4, 5
"""Of ``stat.kind``."""


class SqliteFloor:
    """One connection, one lane, one task. Not thread-safe."""

    def __init__(self, url: str, job: NewJob) -> None:
        self._job = job
        self._held: list[int] = []
        self._sql = _connect(url)
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


class SqliteSender:
    """Stores in a synced transaction, and then rings by a datagram, as the product does."""

    def __init__(self, url: str) -> None:
        self._sql = _connect(url)
        self._sql.executescript(_ENTRIES)
        self._hammer, self._ear = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.ear = self._ear.fileno()

    def close(self) -> None:
        self._sql.close()
        self._hammer.close()
        self._ear.close()

    def store(self) -> None:
        self._sql.execute(_STORE, (ENTRY,))
        self._hammer.send(b"!")


class SqliteSleeper:
    """Its commits are not synced, as those of a claim are not."""

    def __init__(self, url: str, ear: int) -> None:
        self._sql = _connect(url)
        self._sql.execute("PRAGMA synchronous=NORMAL")
        self._ear = socket.socket(fileno=ear)
        self._ear.setblocking(False)

    def wait(self, seconds: float) -> bool:
        if not select.select([self._ear], [], [], seconds)[0]:
            return False
        with contextlib.suppress(BlockingIOError):
            while True:
                self._ear.recv(64)
        return True

    def take(self) -> int:
        return len(self._sql.execute(_TAKE).fetchall())


def _connect(url: str) -> sqlite3.Connection:
    connection = sqlite3.connect(unquote(urlsplit(url).path)[1:], isolation_level=None)
    connection.executescript(_PRAGMAS)
    return connection


def _now() -> int:
    return time.time_ns() // 1_000_000
