"""A Redis store with some of everything, every verb to be tried on it, and a way to make any command of a call fail."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import redis

from ferryman.clock import ManualClock
from ferryman.errors import StoreError
from ferryman.io.operation import Operation
from ferryman.io.redis import Library
from ferryman.job import ErrorInfo, JobId, NewJob, Outcome, OutcomeKind, State, UniqueKey, WorkerId, new_id
from ferryman.store.records import (
    Filter,
    JobNote,
    Order,
    QueueSettings,
    Retention,
    Take,
    WorkerInfo,
    WorkerStatus,
)
from ferryman.store.redis.store import RedisStore

W, V = WorkerId("w"), WorkerId("v")
LEASE = 60_000
SWITCH = "trap"
"""The key that says which command of a call is to fail."""

_TRAP = f"""
local count, trap = 0, 0
local function arm()
    count, trap = 0, tonumber(redis.call('GET', '{SWITCH}') or 0)
end
-- Fails once: what undoes the rest is let through.
local function call_or_fail(...)
    count = count + 1
    if count == trap then
        return redis.call('GET')
    end
    return redis.call(...)
end
"""


def trapped(library: Library) -> Library:
    """The same functions, of which any command can be made to fail."""
    code = library.code
    for text, instead in (
        ("local call = redis.call\n", f"{_TRAP}local call = call_or_fail\n"),
        ("    call = redis.call\n", "    call = call_or_fail\n"),
        (
            "function book.perform(name, keys, args)\n",
            "function book.perform(name, keys, args)\n    arm()\n",
        ),
    ):
        assert code.count(text) == 1
        code = code.replace(text, instead)
    return library._replace(code=code)


def info(worker: WorkerId, queues: tuple[str, ...] | None = None) -> WorkerInfo:
    return WorkerInfo(
        id=worker, host="h", place="p", pid=1, pid_birth=1, queues=queues, tasks=("t",), concurrency=1
    )


def job(**fields: Any) -> NewJob:
    return NewJob(**{"id": new_id(), "task": "t", "args": b"[]", **fields})


class Trap:
    """A store with some of everything, and a way to make any of its commands fail."""

    def __init__(self, url: str) -> None:
        self.clock = ManualClock()
        self.store = RedisStore(url, self.clock)
        self.run = self.store.runner().run
        self.client: Any = redis.Redis.from_url(url)
        self.leased: list[Outcome] = []

    def fill(self) -> None:
        store, run = self.store, self.run
        run(store.register(info(W), LEASE))
        run(store.register(info(V, ("plain",)), LEASE))
        run(
            store.declare(
                [
                    QueueSettings(name="fair", fair=True, weights={"acme": 2}),
                    QueueSettings(name="few", max_size=3, overflow="drop_oldest"),
                ]
            )
        )
        run(store.enqueue([job(queue="few") for _ in range(3)]))
        run(store.enqueue([job(queue="few")]))
        for _ in range(3):
            run(store.enqueue(self.all_kinds()))
        self.leased = self.claim_some(14)
        run(store.annotate(W, [JobNote(each.id, each.lease, 0.5, "half") for each in self.leased[:4]]))
        done = self.claim_some(6)
        kinds = (OutcomeKind.SUCCEEDED, OutcomeKind.DEAD, OutcomeKind.CANCELLED)
        run(store.settle(W, [self.become(each, kinds[n % 3]) for n, each in enumerate(done)]))
        run(store.settle(W, self.claim_some(12)))
        run(store.order([W], Order("pause")))
        run(store.order([W], Order("resume")))
        run(store.cancel(Filter(ids=(self.leased[0].id,)), 1, "enough"))
        run(store.lock("leader", "ann", LEASE))
        run(store.kv_put("known", b"value", expected=None, ttl=LEASE))
        self.clock.advance(10)

    def all_kinds(self) -> list[NewJob]:
        """A batch with jobs of every kind."""
        parent, keyed, unique = job(), f"k-{new_id()[-4:]}", new_id()
        return [
            parent,
            job(),
            job(args=b"x" * 300),
            job(priority=3, tags=("red", "blue")),
            job(delay=5_000, tags=("red",)),
            job(delay=500_000, ttl=600_000),
            job(ttl=700_000),
            job(queue="fair", tenant="acme"),
            job(queue="fair", tenant="other"),
            job(queue="keyed", key=keyed, room=1),
            job(queue="keyed", key=keyed, room=1, priority=2),
            job(queue="keyed", key=f"o-{keyed}", ordered=True),
            job(queue="keyed", key=f"o-{keyed}", ordered=True),
            job(unique=UniqueKey(unique)),
            job(unique=UniqueKey(unique)),
            job(unique=UniqueKey(f"{unique}p", 9_000)),
            job(unique=UniqueKey(f"{unique}s", until="started")),
            job(after=(parent.id,)),
            job(after=(parent.id,), on_parent_failure="hold"),
            job(after=(parent.id,), on_parent_failure="continue", key=keyed),
        ]

    def claim_some(self, count: int) -> list[Outcome]:
        plan = [
            Take(*lane, count)
            for lane in (("default", 3), ("keyed", 2), ("fair", 0), ("keyed", 0), ("default", 0), ("few", 0))
        ]
        claims = self.run(self.store.claim(W, plan, count)).jobs
        return [Outcome(claim.id, claim.lease, OutcomeKind.SUCCEEDED, ran_us=1_500) for claim in claims]

    def become(self, outcome: Outcome, kind: OutcomeKind) -> Outcome:
        return Outcome(
            outcome.id,
            outcome.lease,
            kind,
            outcome.ran_us,
            result=b'"done"' if kind is OutcomeKind.SUCCEEDED else None,
            delay=1_000 if kind in (OutcomeKind.RETRY, OutcomeKind.SNOOZED) else 0,
            error=ErrorInfo("ValueError", "boom") if kind in (OutcomeKind.RETRY, OutcomeKind.DEAD) else None,
            keep_result=5_000 if kind is OutcomeKind.SUCCEEDED else None,
        )

    def outcomes(self) -> list[Outcome]:
        """One of each kind and more, of jobs of every kind."""
        kinds = list(OutcomeKind)
        mixed = [self.become(each, kinds[n % len(kinds)]) for n, each in enumerate(self.leased[:9])]
        return mixed + self.leased[9:]

    def some(self, state: State) -> list[JobId]:
        return [each.id for each in self.run(self.store.find(Filter(states=(state,)), 5))]

    def all_there_is(self) -> dict[bytes, Any]:
        """Every key and what it holds."""
        read: dict[bytes, Callable[[Any, bytes], Any]] = {
            b"string": lambda pipe, key: pipe.get(key),
            b"hash": lambda pipe, key: pipe.hgetall(key),
            b"set": lambda pipe, key: pipe.smembers(key),
            b"zset": lambda pipe, key: pipe.zrange(key, 0, -1, withscores=True),
            b"list": lambda pipe, key: pipe.lrange(key, 0, -1),
        }
        keys = sorted(key for key in self.client.scan_iter(count=1_000) if key != SWITCH.encode())
        types = self.client.pipeline(transaction=False)
        for key in keys:
            types.type(key)
        values = self.client.pipeline(transaction=False)
        for key, kind in zip(keys, types.execute(), strict=True):
            read[kind](values, key)
        return dict(zip(keys, values.execute(), strict=True))

    def repacked(self) -> Operation[list[bool]]:
        """Take all that is not running away, to be brought back."""
        states = sorted(set(State) - {State.RUNNING})
        parcels = self.run(self.store.pack(states, 0, 1_000))
        self.run(self.store.forget([parcel.job.id for parcel in parcels]))
        return self.store.unpack(parcels)

    def fails_at(self, command: int, operations: Sequence[Operation[Any]]) -> bool:
        self.client.set(SWITCH, command)
        try:
            self.store.runner().run_all(operations)
        except StoreError:
            return True
        finally:
            self.client.delete(SWITCH)
        return False


VERBS: dict[str, Callable[[Trap], Operation[Any] | list[Operation[Any]]]] = {
    "enqueue one": lambda trap: trap.store.enqueue([job()]),
    "enqueue plain jobs": lambda trap: trap.store.enqueue([job(queue="new") for _ in range(3)]),
    "enqueue jobs of every kind": lambda trap: trap.store.enqueue(trap.all_kinds()),
    "enqueue into a full queue": lambda trap: trap.store.enqueue([job(queue="few"), job(queue="few")]),
    "enqueue children of what has ended": lambda trap: trap.store.enqueue(
        [job(after=(id_,)) for state in (State.SUCCEEDED, State.DEAD) for id_ in trap.some(state)]
    ),
    "claim": lambda trap: trap.store.claim(
        W, [Take(queue, 0, 9) for queue in ("keyed", "fair", "default", "few")], 20
    ),
    "settle": lambda trap: trap.store.settle(W, trap.outcomes()),
    "settle one": lambda trap: trap.store.settle(W, trap.leased[-1:]),
    "settle and claim": lambda trap: [
        trap.store.settle(W, trap.outcomes()),
        trap.store.claim(W, [Take("default", 0, 5), Take("keyed", 0, 5)], 10),
    ],
    "annotate": lambda trap: trap.store.annotate(
        W, [JobNote(each.id, each.lease, 0.7, "more") for each in trap.leased]
    ),
    "register": lambda trap: trap.store.register(info(WorkerId("new"), ("a", "b")), LEASE),
    "register again": lambda trap: trap.store.register(info(V), LEASE),
    "heartbeat": lambda trap: trap.store.heartbeat(W, WorkerStatus(done=3), LEASE, 2**50),
    "leave": lambda trap: trap.store.leave(W),
    "rescue": lambda trap: trap.store.rescue([W, V]),
    "prune": lambda trap: trap.store.prune(
        Retention(succeeded_count=0, dead_count=1, other_count=0, stats=0, workers=0), 100
    ),
    "lock": lambda trap: trap.store.lock("other", "bob", 500),
    "lock again": lambda trap: trap.store.lock("leader", "ann", 500),
    "unlock": lambda trap: trap.store.unlock("leader", "ann"),
    "kv_put": lambda trap: trap.store.kv_put("unknown", b"value", expected=None),
    "kv_delete": lambda trap: trap.store.kv_delete("known"),
    "declare": lambda trap: trap.store.declare(
        [QueueSettings(name="fair"), QueueSettings(name="new", fair=True)]
    ),
    "declare a bound": lambda trap: trap.store.declare(
        [QueueSettings(name=name, max_size=50, overflow="drop_oldest") for name in ("default", "keyed")]
    ),
    "pause": lambda trap: trap.store.pause(["fair", "unheard-of"], True),
    "cancel": lambda trap: trap.store.cancel(Filter(), 100, "over"),
    "replay": lambda trap: trap.store.replay(Filter(), 100),
    "edit": lambda trap: trap.store.edit(trap.some(State.SCHEDULED)[0], b"[1]"),
    "reprioritise": lambda trap: trap.store.reprioritise(Filter(), 7, 100),
    "delete": lambda trap: trap.store.delete(Filter(), 100),
    "order": lambda trap: trap.store.order([W, V], Order("drain")),
    "unpack": lambda trap: trap.repacked(),
    "forget": lambda trap: trap.store.forget([id_ for state in State for id_ in trap.some(state)]),
}
