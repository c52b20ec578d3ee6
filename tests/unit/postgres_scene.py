"""Jobs in every state, what people and workers may do to them on sessions of their own, and what must hold afterwards."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import psycopg

from ferryman.clock import ManualClock
from ferryman.io.operation import Operation
from ferryman.io.postgres.talk import Talk
from ferryman.job import ErrorInfo, JobId, NewJob, Outcome, OutcomeKind, State, UniqueKey, WorkerId, new_id
from ferryman.store.open import open_store
from ferryman.store.port import Store
from ferryman.store.records import Filter, JobNote, QueueSettings, Retention, Take, WorkerInfo, WorkerStatus

__all__ = ["ALL", "PROMISES", "VERBS", "Scene", "Session", "check", "info_of"]

Operations = Sequence[Operation[Any]]

ALL = 10_000
LEASE = 60_000
US, THEM, LOST = WorkerId("us"), WorkerId("them"), WorkerId("lost")
PLAN = [Take(queue, priority, 50) for queue in ("default", "fair", "full") for priority in (1, 0)]
EVERYBODY = {
    State.WAITING, State.SCHEDULED, State.READY, State.PARKED,
    State.SUCCEEDED, State.DEAD, State.CANCELLED, State.EXPIRED,
}  # fmt: skip


class Scene:
    """A store with a few jobs of each kind; `again` puts them back."""

    def __init__(self, url: str) -> None:
        self.clock = ManualClock()
        self.url = url
        self.server, _, self.schema = url.partition("?schema=")
        self.store: Store = open_store(url, self.clock)
        self.admin = psycopg.connect(
            self.server, autocommit=True, options=f"-c search_path={self.schema} -c synchronous_commit=off"
        )
        self.ids: dict[str, JobId] = {}
        self._fill()
        self._began = self.clock.now()
        self._restore = self._save()

    def run(self, operation: Operation[Any]) -> Any:
        return self.store.runner().run(operation)

    def close(self) -> None:
        self.admin.execute("".join(f"DROP TABLE saved_{table};" for table in self._tables()))
        self.admin.close()
        self.store.close()

    # -- setting it ------------------------------------------------------------------------------

    def put(self, name: str = "", **fields: Any) -> NewJob:
        """A job to be enqueued; `name` is how others call it."""
        job = NewJob(**{"id": new_id(), "task": "work", "args": b"[]", "max_attempts": 3, **fields})
        if name:
            self.ids[name] = job.id
        return job

    def _fill(self) -> None:
        run, store, put = self.run, self.store, self.put
        for worker in (US, THEM, LOST):
            run(store.register(info_of(worker), LEASE))
        run(store.declare([
            QueueSettings(name="fair", fair=True),
            QueueSettings(name="full", max_size=3, overflow="drop_oldest"),
        ]))  # fmt: skip
        over = [put(f"over {n}", priority=1) for n in range(3)]
        over += [
            put("over unique", priority=1, unique=UniqueKey("over")),
            put("over keyed", priority=1, key="k"),
        ]
        run(store.enqueue(over))
        self.settle(US, OutcomeKind.SUCCEEDED, only="over 0")
        self.settle(US, OutcomeKind.DEAD)
        run(store.enqueue([
            put("parent", priority=1), put("plain", priority=1), put("keyed", priority=1, key="k", room=1),
            put("unique", priority=1, unique=UniqueKey("u")), put("tagged", priority=1, queue="fair", tenant="a"),
            put("started unique", priority=1, unique=UniqueKey("s", until="started")),
        ]))  # fmt: skip
        run(store.claim(US, PLAN, ALL))
        run(store.enqueue([
            put("lost parent", priority=1), put("lost ordered", priority=1, key="o", ordered=True),
        ]))  # fmt: skip
        run(store.claim(LOST, PLAN, ALL))
        run(store.enqueue([
            *(put() for _ in range(3)), put(queue="fair", tenant="a"), put(queue="fair", tenant="b"),
            *(put(queue="full") for _ in range(3)),
            put("ready parent"), put("ready unique", unique=UniqueKey("r", until="started")),
            put("parked", key="k"), put(key="o", ordered=True),
            put("child", after=(self.ids["parent"], self.ids["ready parent"])),
            put("grandchild", after=(self.ids["child"],)),
            put(after=(self.ids["lost parent"],), on_parent_failure="continue"),
            put("held", after=(self.ids["over 1"], self.ids["parent"]), on_parent_failure="hold"),
            put(delay=500), put(delay=500, key="k"), put(delay=500, queue="fair"), put(ttl=500), put(ttl=500, key="k"),
        ]))  # fmt: skip
        guest = store.using(self.admin)
        with self.admin.transaction():
            guest.runner.run(guest.enqueue([
                put("staged"), put(key="k"), put(after=(self.ids["ready parent"],)), put(queue="fair", tenant="b"),
            ]))  # fmt: skip
        self.clock.advance(1)
        run(store.heartbeat(US, WorkerStatus(), 1_000 * LEASE))
        run(store.heartbeat(THEM, WorkerStatus(), 1_000 * LEASE))

    def settle(self, worker: WorkerId, kind: OutcomeKind, only: str | None = None) -> None:
        claims = self.run(self.store.claim(worker, PLAN, 1 if only else ALL)).jobs
        assert only is None or claims[0].id == self.ids[only]
        self.run(self.store.settle(worker, [Outcome(claim.id, claim.lease, kind) for claim in claims]))

    def _tables(self) -> list[str]:
        found = self.admin.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = %s AND tablename <> 'meta' AND tablename NOT LIKE 'saved%%'",
            (self.schema,),
        )
        return [name for (name,) in found]

    def _save(self) -> str:
        tables = self._tables()
        self.admin.execute("".join(f"CREATE TABLE saved_{table} AS TABLE {table};" for table in tables))
        return "".join(
            f"DELETE FROM {table}; INSERT INTO {table} OVERRIDING SYSTEM VALUE TABLE saved_{table};"
            for table in tables
        )

    def again(self) -> None:
        self.clock.advance((self._began - self.clock.now()) / 1_000)
        self.admin.execute(self._restore)

    def tidy(self) -> None:
        """Take away what being put back so often has left in the tables."""
        self.admin.execute(f"VACUUM {', '.join(self._tables())}")

    # -- how it goes on --------------------------------------------------------------------------

    def drain(self) -> None:
        """Let two workers do whatever there is, until nothing is left but what is held for a parent that failed."""
        for _ in range(60):
            self.clock.advance(2)
            self.run(self.store.rescue([LOST]))
            left = 0
            for worker in (US, THEM):
                held = self.run(self.store.holding(worker))
                claims = self.run(self.store.claim(worker, PLAN, ALL)).jobs
                both = {(each.id, each.lease) for each in (*held, *claims)}
                outcomes = [Outcome(JobId(id_), lease, OutcomeKind.SUCCEEDED) for id_, lease in both]
                assert all(self.run(self.store.settle(worker, outcomes)))
                left += len(outcomes)
            if not left and not self.stuck():
                return
        raise AssertionError(f"they do not come to an end: {self.stuck()}")

    def stuck(self) -> list[Any]:
        return self.admin.execute(
            "SELECT seq, state, flags, key, missing FROM job WHERE state < 5 AND NOT (state = 0 AND flags & 4 <> 0"
            " AND EXISTS (SELECT 1 FROM parent p LEFT JOIN job f ON f.id = p.parent"
            " WHERE p.child = job.seq AND NOT p.done AND coalesce(f.state, 9) > 5))"
        ).fetchall()


def info_of(worker: WorkerId) -> WorkerInfo:
    return WorkerInfo(
        id=worker, host="h", place="p", pid=1, pid_birth=1, queues=None, tasks=("work",), concurrency=1
    )


# -- sessions ----------------------------------------------------------------------------------------


class Session:
    """One connection that performs verbs in transactions whose end is in the test's hand."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._sql = psycopg.connect(
            scene.server, autocommit=True, prepare_threshold=None, options=f"-c search_path={scene.schema}"
        )
        self._talk = Talk(self._sql, prepares=True, strict=False)
        self.pid = self._sql.info.backend_pid
        self.again = 0
        """How often the transaction has been begun anew."""
        self.answers: list[list[Any]] = []
        """Rows, by operation, of the last time that it was begun or went on."""
        self.trouble: list[str] = []
        """What a server says of a deadlock."""
        self._begun: Operations = ()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def close(self) -> None:
        self._sql.close()

    def begin(self, operations: Operations) -> None:
        """Perform operations, and leave their transaction open."""
        self._sql.execute("BEGIN")
        self._begun = []
        self.go_on(operations)

    def lock_jobs(self) -> None:
        """Begin a transaction that lets nobody else write jobs."""
        self._sql.execute("BEGIN; LOCK TABLE job IN SHARE ROW EXCLUSIVE MODE")

    def go_on(self, operations: Operations) -> None:
        """Perform more operations in the transaction that is open, all of it again if that is asked for."""
        self._begun = [*self._begun, *operations]
        gate = False
        self.again = 0
        give_up = time.monotonic() + 20
        while True:
            self.answers = []
            try:
                for operation in operations:
                    statement = operation.body(0).send(None)
                    now = self._scene.clock.now()
                    self.answers.append(self._sql.wait(self._talk.ask(statement, now, gate=gate)))
            except psycopg.Error as error:
                self._sql.execute("ROLLBACK")
                if error.sqlstate == "40P01":
                    self.trouble.append(str(error))
                elif error.sqlstate not in ("FY001", "55P03"):
                    raise
                assert time.monotonic() < give_up
                # Whoever has lost patience asks for the same again.
                gate = gate or error.sqlstate != "55P03"
                self.again += 1
                time.sleep(0.001 * min(self.again, 10))
                self._sql.execute("BEGIN")
                operations = self._begun
            else:
                return

    def end(self, how: str = "COMMIT") -> None:
        self._sql.execute(how)

    def start(self, operations: Operations, *, commit: bool = True) -> None:
        """Perform operations in a thread, to the commit or to just before it."""

        def perform() -> None:
            try:
                self.begin(operations)
                if commit:
                    self.end()
            except BaseException as error:
                self._failure = error

        self._failure = None
        self._thread = threading.Thread(target=perform)
        self._thread.start()

    def come_to_rest(self) -> None:
        """Wait until the thread has ended, or waits for somebody."""
        assert self._thread is not None
        give_up = time.monotonic() + 20
        while self._thread.is_alive() and self.again < 3 and not self._waits():
            assert time.monotonic() < give_up
            self._thread.join(0.0005)

    def _waits(self) -> bool:
        row = self._scene.admin.execute(
            "SELECT cardinality(pg_blocking_pids(%s)) > 0", (self.pid,)
        ).fetchone()
        return row is not None and bool(row[0])

    def finish(self) -> None:
        assert self._thread is not None
        self._thread.join()
        if self._failure is not None:
            raise self._failure


# -- verbs -------------------------------------------------------------------------------------------


def _enqueue(**fields: Any) -> Callable[[Scene], Operations]:
    """`after`: names of parents."""

    def verb(scene: Scene) -> Operations:
        after = tuple(scene.ids[name] for name in fields.get("after", ()))
        return [scene.store.enqueue([scene.put(**{**fields, "after": after}), scene.put()])]

    return verb


def _deferred(**fields: Any) -> Callable[[Scene], Operations]:
    def verb(scene: Scene) -> Operations:
        after = tuple(scene.ids[name] for name in fields.get("after", ()))
        guest = scene.store.using(scene.admin)
        return [guest.enqueue([scene.put(**{**fields, "after": after}), scene.put()])]

    return verb


def _settle(worker: WorkerId, kind: OutcomeKind, delay: int = 0) -> Callable[[Scene], Operations]:
    def verb(scene: Scene) -> Operations:
        held = scene.run(scene.store.holding(worker))
        # Against the order in which they came.
        outcomes = [
            Outcome(each.id, each.lease, kind, delay=delay, error=ErrorInfo("E", "e")) for each in held[::-1]
        ]
        return [scene.store.settle(worker, outcomes)]

    return verb


def _turn(scene: Scene) -> Operations:
    held = scene.run(scene.store.holding(US))
    notes = [JobNote(each.id, each.lease, 0.5, "half") for each in held[2:]]
    kinds = (OutcomeKind.SUCCEEDED, OutcomeKind.RETRY)
    outcomes = [Outcome(each.id, each.lease, kinds[n % 2]) for n, each in enumerate(held[::-1])]
    return [
        scene.store.annotate(US, notes[::-1]),
        scene.store.settle(US, outcomes),
        scene.store.claim(US, PLAN, 4),
    ]


def _steer(verb: str, *args: Any, **which: Any) -> Callable[[Scene], Operations]:
    return lambda scene: [getattr(scene.store, verb)(Filter(**which), *args, ALL)]


VERBS: dict[str, Callable[[Scene], Operations]] = {
    "enqueue plain": _enqueue(),
    "enqueue keyed": _enqueue(key="k"),
    "enqueue unique": _enqueue(unique=UniqueKey("u")),
    "enqueue unique again": _enqueue(unique=UniqueKey("s")),
    "enqueue unique and keyed": _enqueue(unique=UniqueKey("new"), key="k"),
    "enqueue child of running": _enqueue(after=("plain", "parent")),
    "enqueue child of ready": _enqueue(after=("ready parent", "lost parent")),
    "enqueue child of finished": _enqueue(after=("over 0", "plain")),
    "enqueue to full": _enqueue(queue="full"),
    "enqueue fair": _enqueue(queue="fair", tenant="a"),
    "enqueue delayed": _enqueue(delay=10_000),
    "deferred keyed": _deferred(key="k"),
    "deferred unique": _deferred(unique=UniqueKey("new")),
    "deferred unique again": _deferred(unique=UniqueKey("s")),
    "deferred child of running": _deferred(after=("plain", "parent")),
    "deferred child of finished": _deferred(after=("over 0", "unique")),
    "claim": lambda scene: [scene.store.claim(US, PLAN, ALL)],
    "claim of others": lambda scene: [scene.store.claim(THEM, PLAN, 6)],
    "settle succeeded": _settle(US, OutcomeKind.SUCCEEDED),
    "settle retry": _settle(US, OutcomeKind.RETRY),
    "settle dead": _settle(US, OutcomeKind.DEAD),
    "settle snoozed": _settle(US, OutcomeKind.SNOOZED, 100),
    "settle released": _settle(US, OutcomeKind.RELEASED),
    "settle lost": _settle(LOST, OutcomeKind.SUCCEEDED),
    "turn": _turn,
    "cancel": _steer("cancel"),
    "replay": _steer("replay"),
    "reprioritise": _steer("reprioritise", 1),
    "delete": _steer("delete"),
    "edit": lambda scene: [
        scene.store.edit(scene.ids["parked"], b"x"),
        scene.store.edit(scene.ids["over 1"], b"x"),
    ],
    "rescue": lambda scene: [scene.store.rescue([LOST])],
    "leave": lambda scene: [scene.store.leave(LOST)],
    "heartbeat": lambda scene: [scene.store.heartbeat(US, WorkerStatus(), 1_000 * LEASE)],
    "prune": lambda scene: [scene.store.prune(Retention(succeeded=0, dead=0, other=0), ALL)],
    "declare": lambda scene: [scene.store.declare([QueueSettings(name="fair"), QueueSettings(name="full")])],
}


# -- what must hold ----------------------------------------------------------------------------------

PROMISES = {
    "counts are those of the rows": """
        SELECT * FROM (
            SELECT queue, priority, (c.place - 1)::int AS state, c.n FROM lane, unnest(counts) WITH ORDINALITY c(n, place)
        ) kept FULL JOIN (
            SELECT queue, priority, state::int AS state, count(*) AS n FROM job GROUP BY 1, 2, 3
        ) found USING (queue, priority, state) WHERE coalesce(kept.n, 0) <> coalesce(found.n, 0)""",
    "a key knows its holders": """
        SELECT * FROM room FULL JOIN (
            SELECT key, count(*) FILTER (WHERE flags & 16 <> 0) AS used, count(*) AS jobs
            FROM job WHERE key IS NOT NULL AND state < 5 AND flags & 512 = 0 GROUP BY key
        ) found USING (key)
        WHERE (room.used, room.jobs) IS DISTINCT FROM (found.used, found.jobs) OR room.used > room.room""",
    "a job with a key is ready or running with a place of it, and no finished one has any": """
        SELECT seq, state, flags, key FROM job
        WHERE key IS NOT NULL AND (state IN (2, 4) AND flags & 16 = 0 OR state IN (0, 3) AND flags & 16 <> 0)
            OR state >= 5 AND flags & 16 <> 0""",
    "nobody is parked while there is room": """
        SELECT j.seq FROM job j LEFT JOIN room r ON r.key = j.key WHERE j.state = 3 AND coalesce(r.used < r.room, true)""",
    "a job waits for as many parents as are left": """
        SELECT c.seq, c.missing, c.flags, c.state FROM job c WHERE c.state = 0 AND c.flags & 512 = 0 AND (
            coalesce(c.missing, 0) = 0 OR c.missing <> (SELECT count(*) FROM parent p WHERE p.child = c.seq AND NOT p.done)
            OR c.flags & 4 = 0 AND EXISTS (
                SELECT 1 FROM parent p LEFT JOIN job f ON f.id = p.parent
                WHERE p.child = c.seq AND NOT p.done AND coalesce(f.state, 9) >= 5
            ))""",
    "who is waited for knows it": """
        SELECT f.seq FROM job f JOIN parent p ON p.parent = f.id JOIN job c ON c.seq = p.child
        WHERE c.state = 0 AND c.flags & 512 = 0 AND f.flags & 1 = 0""",
    "jobs run under workers that are alive": """
        SELECT seq FROM job WHERE state = 4 AND NOT EXISTS (SELECT 1 FROM worker w WHERE w.id = worker AND w.gone IS NULL)""",
    "unique keys are held by jobs that are not finished": """
        SELECT u.key FROM unique_key u LEFT JOIN job j ON j.id = u.id
        WHERE u.until IS NULL AND coalesce(j.state >= CASE WHEN j.flags & 64 <> 0 THEN 4 ELSE 5 END, true)""",
    "a job that needs a unique key has it, or gave it back when it was claimed": """
        SELECT j.seq, j.state, j.flags FROM job j WHERE j.flags & 96 <> 0 AND j.state < CASE WHEN j.flags & 64 <> 0 THEN 4
            ELSE 5 END AND j.attempt = 0 AND (j.flags & 64 = 0 OR j.lease = 0)
            AND NOT EXISTS (SELECT 1 FROM unique_key u WHERE u.id = j.id)""",
    "only finished jobs have an end": """
        SELECT seq, state FROM job WHERE (state >= 5) <> (finished_at IS NOT NULL)""",
    "attempts stay within their number": """
        SELECT seq FROM job WHERE attempt > max_attempts OR attempt < 0""",
    "a lane that is not fair has no tags": """
        SELECT seq FROM job j WHERE state = 2 AND (tag <> 0) <> EXISTS (SELECT 1 FROM queue WHERE name = j.queue AND fair)""",
    "nothing is left of jobs that are deleted": """
        SELECT x.seq FROM (SELECT seq FROM attempt UNION ALL SELECT seq FROM note UNION ALL SELECT child FROM parent) x
        WHERE NOT EXISTS (SELECT 1 FROM job j WHERE j.seq = x.seq)""",
}


def check(scene: Scene) -> None:
    broken = {
        promise: rows
        for promise, query in PROMISES.items()
        if (rows := scene.admin.execute(query).fetchall())
    }
    assert not broken
