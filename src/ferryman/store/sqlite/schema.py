"""The tables, and what each column means.

Ids are 16 bytes, times are milliseconds. Rows of `job` are kept narrow, since each claim and each settle
rewrites them: what is long or rare is in `body`. Every index that a job of no special kind never enters is
partial, so that it costs such jobs nothing.

The file may be another program's, with tables of its own: all names begin with ``ferryman_``, and nothing in the
file's header is ours.
"""

from __future__ import annotations

import sqlite3

from ferryman.errors import StoreVersionError

__all__ = ["SCHEMA_VERSION", "make", "prepare"]

SCHEMA_VERSION = 2

_OLD_LAYOUT = 0x46455259
"""The application id of files whose tables had no prefix."""


_TABLES = """
CREATE TABLE ferryman_meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;

CREATE TABLE ferryman_queue (
    name TEXT PRIMARY KEY,
    paused INTEGER NOT NULL DEFAULT 0,
    fair INTEGER NOT NULL DEFAULT 0,
    weights TEXT NOT NULL DEFAULT '{}',     -- JSON: tenant -> share
    max_size INTEGER,
    overflow TEXT NOT NULL DEFAULT 'reject'
) WITHOUT ROWID;

-- A queue and a priority, with the number of its jobs in each state: kept, so that nobody has to count.
CREATE TABLE ferryman_lane (
    id INTEGER PRIMARY KEY,
    queue TEXT NOT NULL,
    priority INTEGER NOT NULL,
    clock REAL NOT NULL DEFAULT 0,          -- the largest fairness tag claimed
    waiting INTEGER NOT NULL DEFAULT 0,
    scheduled INTEGER NOT NULL DEFAULT 0,
    ready INTEGER NOT NULL DEFAULT 0,
    parked INTEGER NOT NULL DEFAULT 0,
    running INTEGER NOT NULL DEFAULT 0,
    succeeded INTEGER NOT NULL DEFAULT 0,
    dead INTEGER NOT NULL DEFAULT 0,
    cancelled INTEGER NOT NULL DEFAULT 0,
    expired INTEGER NOT NULL DEFAULT 0,
    UNIQUE (queue, priority)
);

CREATE TABLE ferryman_task (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);

CREATE TABLE ferryman_job (
    seq INTEGER PRIMARY KEY,                -- the number of arrival
    id BLOB NOT NULL,
    lane INTEGER NOT NULL,
    task INTEGER NOT NULL,
    state INTEGER NOT NULL,                 -- ferryman.job.State
    flags INTEGER NOT NULL,                 -- FLAG
    lease INTEGER NOT NULL DEFAULT 0,       -- claims so far: the fence
    attempt INTEGER NOT NULL DEFAULT 0,
    max_attempts INTEGER NOT NULL,
    deaths INTEGER NOT NULL DEFAULT 0,
    tag REAL NOT NULL DEFAULT 0,            -- place in a fair lane
    enqueued_at INTEGER NOT NULL,
    run_at INTEGER NOT NULL,                -- when due; for ready jobs, since when they are ready
    started_at INTEGER,
    finished_at INTEGER,
    worker INTEGER,                         -- worker.id
    deadline INTEGER,
    key TEXT,
    room INTEGER,                           -- places that its key had when it was enqueued
    rank INTEGER,                           -- order among the parked jobs of a key: smaller is sooner
    missing INTEGER,                        -- parents that are still to finish
    result_until INTEGER
);
CREATE UNIQUE INDEX ferryman_job_id ON ferryman_job (id);
CREATE INDEX ferryman_job_task ON ferryman_job (task, seq);
CREATE INDEX ferryman_job_ready ON ferryman_job (lane, tag, seq) WHERE state = 2;
CREATE INDEX ferryman_job_running ON ferryman_job (worker) WHERE state = 4;
-- In the order in which they may be deleted: a result that is to be kept longer keeps its job.
CREATE INDEX ferryman_job_finished ON ferryman_job (state, max(finished_at, coalesce(result_until, 0))) WHERE state >= 5;
CREATE INDEX ferryman_job_scheduled ON ferryman_job (run_at, seq) WHERE state = 1;
CREATE INDEX ferryman_job_waiting ON ferryman_job (seq) WHERE state = 0;
CREATE INDEX ferryman_job_parked ON ferryman_job (key, rank, seq) WHERE state = 3;
CREATE INDEX ferryman_job_deadline ON ferryman_job (deadline) WHERE deadline IS NOT NULL AND state < 4;
CREATE INDEX ferryman_job_result_until ON ferryman_job (result_until) WHERE result_until IS NOT NULL AND flags & 256 = 0;

CREATE TABLE ferryman_body (
    seq INTEGER PRIMARY KEY,                -- job.seq
    args BLOB NOT NULL,
    options BLOB,
    result BLOB,
    tenant TEXT,
    tags TEXT,                              -- JSON array
    unique_key TEXT,                        -- must be free when it is replayed
    reason TEXT,
    progress REAL
);

CREATE TABLE ferryman_tag (tag TEXT NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY (tag, seq)) WITHOUT ROWID;

-- Attempts that did not succeed.
CREATE TABLE ferryman_attempt (
    id INTEGER PRIMARY KEY,
    seq INTEGER NOT NULL,
    number INTEGER NOT NULL,
    kind INTEGER NOT NULL,                  -- ferryman.job.OutcomeKind
    worker INTEGER NOT NULL,
    started_at INTEGER NOT NULL,
    finished_at INTEGER NOT NULL,
    error BLOB,                             -- MessagePack of ferryman.job.ErrorInfo
    reason TEXT
);
CREATE INDEX ferryman_attempt_job ON ferryman_attempt (seq, id);

CREATE TABLE ferryman_note (
    id INTEGER PRIMARY KEY, seq INTEGER NOT NULL, at INTEGER NOT NULL, attempt INTEGER NOT NULL, text TEXT NOT NULL
);
CREATE INDEX ferryman_note_job ON ferryman_note (seq, id);

-- Who waits for whom. A row stays after it was done, as history.
CREATE TABLE ferryman_parent (
    child INTEGER NOT NULL,                 -- job.seq
    place INTEGER NOT NULL,                 -- its place in `after`
    parent BLOB NOT NULL,                   -- job.id
    done INTEGER NOT NULL,
    PRIMARY KEY (child, place)
) WITHOUT ROWID;
CREATE INDEX ferryman_parent_of ON ferryman_parent (parent, child);

CREATE TABLE ferryman_unique_key (
    key TEXT PRIMARY KEY,
    seq INTEGER NOT NULL,
    id BLOB NOT NULL,
    until INTEGER                           -- NULL: until the job starts or finishes
) WITHOUT ROWID;
CREATE INDEX ferryman_unique_key_job ON ferryman_unique_key (seq);
CREATE INDEX ferryman_unique_key_until ON ferryman_unique_key (until) WHERE until IS NOT NULL;

-- Keys that have unfinished jobs: how many places, how many of them taken, how many such jobs.
CREATE TABLE ferryman_room (
    key TEXT PRIMARY KEY, room INTEGER NOT NULL, used INTEGER NOT NULL, jobs INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE ferryman_tenant (
    lane INTEGER NOT NULL, tenant TEXT NOT NULL, tag REAL NOT NULL, PRIMARY KEY (lane, tenant)
) WITHOUT ROWID;

CREATE TABLE ferryman_worker (
    id INTEGER PRIMARY KEY AUTOINCREMENT,   -- never used again: history names workers that are long gone
    name TEXT NOT NULL UNIQUE,              -- ferryman.job.WorkerId
    info BLOB NOT NULL,                     -- MessagePack of ferryman.store.records.WorkerInfo
    status BLOB NOT NULL,
    queues TEXT,                            -- JSON array; NULL: all
    bell TEXT,
    registered_at INTEGER NOT NULL,
    seen_at INTEGER NOT NULL,
    lease_until INTEGER NOT NULL,
    gone INTEGER                            -- 1 stopped, 2 dead, 3 either, and pruned save for its name
);
CREATE INDEX ferryman_worker_alive ON ferryman_worker (lease_until) WHERE gone IS NULL;
CREATE INDEX ferryman_worker_gone ON ferryman_worker (seen_at) WHERE gone < 3;

CREATE TABLE ferryman_worker_order (
    id INTEGER PRIMARY KEY AUTOINCREMENT,   -- never used again: a worker says which one it heard last
    worker INTEGER NOT NULL,
    kind TEXT NOT NULL,
    job BLOB,
    lease INTEGER,                          -- of the job, when the order was left
    reason TEXT
);
CREATE INDEX ferryman_worker_order_of ON ferryman_worker_order (worker);

-- One row per minute, lane, task, kind of number and histogram bucket.
CREATE TABLE ferryman_stat (
    minute INTEGER NOT NULL,
    lane INTEGER NOT NULL,
    task INTEGER NOT NULL,
    kind INTEGER NOT NULL,                  -- ferryman.store.minutes.STAT
    bucket INTEGER NOT NULL,
    n INTEGER NOT NULL,
    PRIMARY KEY (minute, lane, task, kind, bucket)
) WITHOUT ROWID;

CREATE TABLE ferryman_lock (
    name TEXT PRIMARY KEY, owner TEXT, token INTEGER NOT NULL, until INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE ferryman_kv (
    key TEXT PRIMARY KEY, value BLOB NOT NULL, version INTEGER NOT NULL, until INTEGER
) WITHOUT ROWID;
CREATE INDEX ferryman_kv_until ON ferryman_kv (until) WHERE until IS NOT NULL;
CREATE TABLE ferryman_counter (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
"""


def prepare(connection: sqlite3.Connection) -> None:
    """Make the tables if the file has none. Raises StoreVersionError if another Ferryman's tables are there."""
    if _is_current(connection):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        make(connection)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def make(connection: sqlite3.Connection | sqlite3.Cursor) -> None:
    """What `prepare` does, inside a transaction that is the caller's."""
    _become_writer(connection)
    # Somebody may have made them while this waited for the transaction.
    if not _is_current(connection):
        for statement in _TABLES.split(";\n"):
            connection.execute(statement)
        connection.execute("INSERT INTO ferryman_meta (name, value) VALUES ('schema', ?)", (SCHEMA_VERSION,))


def _become_writer(connection: sqlite3.Connection | sqlite3.Cursor) -> None:
    """Wait for the lock of who writes: one that begins by reading is refused it at once if another writes meanwhile."""
    try:
        connection.execute("UPDATE ferryman_meta SET value = value WHERE 0")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_ERROR:
            raise
        # There is no such table yet.


def _is_current(connection: sqlite3.Connection | sqlite3.Cursor) -> bool:
    found = connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'ferryman_meta'").fetchone()
    if found is None:
        ((application,),) = connection.execute("PRAGMA application_id").fetchall()
        if application == _OLD_LAYOUT:
            raise StoreVersionError(
                "the database was made by a Ferryman from before its first release, whose tables this one cannot "
                "read; move the file away to begin with an empty one"
            )
        return False
    ((version,),) = connection.execute("SELECT value FROM ferryman_meta WHERE name = 'schema'").fetchall()
    if version > SCHEMA_VERSION:
        raise StoreVersionError(
            f"the database has version {version}, and this Ferryman knows versions up to {SCHEMA_VERSION}; "
            "install the newer Ferryman that made it"
        )
    return True
