"""A crash at every request of every verb leaves no half, and the verb works afterwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import msgspec
import pytest

from ferryman.io.operation import Operation, Requests
from ferryman.job import Claim, JobId, Outcome, OutcomeKind, UniqueKey, WorkerId, new_id
from ferryman.store.cargo import Parcel
from ferryman.store.records import Filter, JobNote, Order, QueueSettings, Retention, Take, WorkerStatus

from .driver import ALL, BOOM, LEASE, W1, W2, W3, Ferry, check_counts, new_job, worker_info

GONE = WorkerId("gone")
KEYS = ("setting", "counter", "new")


class WreckError(Exception):
    """The crash."""


class LateWreckError(WreckError):
    """The crash, after the last request was answered."""


def wrecked(operation: Operation[Any], at: int) -> Operation[Any]:
    """The same operation, which crashes instead of making request number `at` (or of returning, if it is
    the number of all its requests)."""

    def body(now: int) -> Requests[Any]:
        inner = operation.body(now)
        answer: Any = None
        error: BaseException | None = None
        for number in count():
            try:
                request = inner.throw(error) if error is not None else inner.send(answer)
            except StopIteration as stop:
                if number == at:
                    raise LateWreckError from None
                return stop.value
            if number == at:
                inner.close()
                raise WreckError
            answer, error = None, None
            try:
                answer = yield request
            except Exception as raised:
                error = raised

    return Operation(operation.name, body, writes=operation.writes)


class Harbour:
    """A store with something of everything in it."""

    def __init__(self, ferry: Ferry) -> None:
        self.ferry = ferry
        store, run = ferry.store, ferry.run
        run(store.declare([QueueSettings(name="fair", fair=True, weights={"a": 2})]))
        run(store.declare([QueueSettings(name="small", max_size=3, overflow="drop_oldest")]))
        for worker in (W2, W3, GONE):
            ferry.register(worker)
        run(store.kv_put("setting", b"1", expected=None))
        self.version = run(store.kv_put("counter", b"1", expected=None))
        run(store.lock("leader", "ann", 3_600_000))

        self.finished = [self._finish(kind) for kind in (OutcomeKind.SUCCEEDED, OutcomeKind.DEAD)]
        ferry.clock.advance(1)
        self.held = self._hold(W1, 8)
        self.lost = self._hold(W2, 3)
        self.of_leaver = self._hold(W3, 2)
        run(store.leave(GONE))
        ferry.heartbeat(W1, lease=100 * LEASE)
        ferry.heartbeat(W3, lease=100 * LEASE)

        self.ready = ferry.add_many(4, priority=1, tags=("red",))
        self.fair = ferry.add_many(2, queue="fair", tenant="a") + ferry.add_many(2, queue="fair", tenant="b")
        self.small = ferry.add_many(3, queue="small")
        self.scheduled = ferry.add_many(2, delay=LEASE)
        self.short = ferry.add_many(2, ttl=5_000, key="short")
        self.keyed = ferry.add_many(3, key="pool", room=1)
        self.unique = ferry.add(unique=UniqueKey("once"))
        self.children = self._family(self.ready[0]) + self._family(self.held[0].id)
        run(store.cancel(Filter(ids=(self.held[7].id,)), 1, "enough"))
        run(store.order([W1], Order("pause")))
        run(store.annotate(W1, [JobNote(self.held[6].id, self.held[6].lease, 0.1, "under way")]))
        ferry.clock.advance(2 * LEASE / 1000)

    def _finish(self, kind: OutcomeKind) -> JobId:
        self.ferry.add(tags=("red",), max_attempts=2)
        self.ferry.finish_next(OutcomeKind.RETRY)
        return self.ferry.finish_next(kind)

    def _hold(self, worker: WorkerId, number: int) -> list[Claim]:
        self.ferry.add_many(number, max_attempts=2, key=f"of-{worker}", room=number)
        self.ferry.add_many(2, max_attempts=2, key=f"of-{worker}", room=number)
        claims = self.ferry.claim(number, worker=worker)
        assert len(claims) == number
        return claims

    def _family(self, parent: JobId) -> list[JobId]:
        child = self.ferry.add(after=(parent,), key="child", unique=UniqueKey(f"child-of-{parent}"))
        return [
            child,
            self.ferry.add(after=(parent,), on_parent_failure="continue", key="child"),
            self.ferry.add(after=(parent, self.unique), on_parent_failure="hold"),
            self.ferry.add(after=(child,)),
        ]

    def look(self) -> list[Any]:
        """Everything that can be read."""
        store, run = self.ferry.store, self.ferry.run
        ids = [job.id for job in self.ferry.jobs()]
        return [
            run(store.get(ids)),
            [run(store.history(job)) for job in ids],
            [run(store.parent_results(job, 0, ALL)) for job in self.children],
            run(store.lanes()),
            run(store.queues()),
            run(store.workers()),
            run(store.causes(Filter())),
            run(store.stats(0, 2**60)),
            [run(store.kv_get(key)) for key in KEYS],
            [run(store.peek(worker)) for worker in (W1, W2, W3)],
        ]


def _outcomes(claims: Sequence[Claim]) -> list[Outcome]:
    return [
        Outcome(claim.id, claim.lease, kind, 1_000, b"r", 5_000 * (n % 2), BOOM, "why")
        for n, (claim, kind) in enumerate(zip(claims, OutcomeKind, strict=False))
    ]


def _cargo(harbour: Harbour) -> Operation[Any]:
    parent = new_id()
    return harbour.ferry.store.enqueue(
        [
            new_job(id=parent, tags=("red", "blue"), queue="new"),
            new_job(after=(parent, harbour.ready[1])),
            new_job(after=(harbour.finished[1],)),
            new_job(after=(harbour.finished[0],), delay=1_000),
            new_job(key="pool", room=2, priority=3),
            new_job(key="fresh", ordered=True, ttl=1_000),
            new_job(unique=UniqueKey("once")),
            new_job(unique=UniqueKey("twice", period=5_000)),
            new_job(queue="fair", tenant="b"),
            new_job(queue="small"),
            new_job(queue="small"),
        ]
    )


def _newcomers(harbour: Harbour) -> list[Parcel]:
    """The same jobs once more, as if they came from elsewhere."""
    parcels = harbour.ferry.run(harbour.ferry.store.pack((), 0, ALL))
    return [
        msgspec.structs.replace(parcel, job=msgspec.structs.replace(parcel.job, id=new_id(), after=()))
        for parcel in parcels
    ]


OPERATIONS: dict[str, Callable[[Harbour], Operation[Any]]] = {
    "enqueue": _cargo,
    "claim": lambda h: h.ferry.store.claim(
        W1, [Take("default", 1, 2), Take("fair", 0, 3), Take("default", 0, 9)], 12
    ),
    "settle": lambda h: h.ferry.store.settle(W1, _outcomes(h.held)),
    "settle a failed parent": lambda h: h.ferry.store.settle(
        W1, [Outcome(h.held[0].id, h.held[0].lease, OutcomeKind.DEAD, error=BOOM)]
    ),
    "annotate": lambda h: h.ferry.store.annotate(
        W1, [JobNote(c.id, c.lease, 0.5, "half way") for c in h.held]
    ),
    "register": lambda h: h.ferry.store.register(worker_info(WorkerId("w9")), LEASE),
    "heartbeat": lambda h: h.ferry.store.heartbeat(W1, WorkerStatus(running=8), LEASE),
    "leave": lambda h: h.ferry.store.leave(W3),
    "rescue": lambda h: h.ferry.store.rescue([W3]),
    "prune": lambda h: h.ferry.store.prune(Retention(succeeded=0, dead=0, other=0, stats=0, workers=0), ALL),
    "lock": lambda h: h.ferry.store.lock("second", "bob", 10_000),
    "unlock": lambda h: h.ferry.store.unlock("leader", "ann"),
    "kv_put": lambda h: h.ferry.store.kv_put("counter", b"2", expected=h.version, ttl=5_000),
    "kv_put of a new key": lambda h: h.ferry.store.kv_put("new", b"1", expected=None),
    "kv_delete": lambda h: h.ferry.store.kv_delete("setting"),
    "declare": lambda h: h.ferry.store.declare(
        [QueueSettings(name="fair"), QueueSettings(name="new", max_size=5, overflow="block")]
    ),
    "pause": lambda h: h.ferry.store.pause(["default", "new"], True),
    "cancel": lambda h: h.ferry.store.cancel(Filter(), ALL, "storm"),
    "replay": lambda h: h.ferry.store.replay(Filter(), ALL),
    "edit": lambda h: h.ferry.store.edit(h.ready[2], b"mended"),
    "reprioritise": lambda h: h.ferry.store.reprioritise(Filter(), 4, ALL),
    "delete": lambda h: h.ferry.store.delete(Filter(), ALL),
    "unpack": lambda h: h.ferry.store.unpack(_newcomers(h)),
    "forget": lambda h: h.ferry.store.forget([*h.ready, *h.keyed, *h.finished]),
    "order": lambda h: h.ferry.store.order([W1, W3], Order("drain")),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_crash_at_any_request_leaves_no_half(ferry: Ferry, name: str) -> None:
    harbour = Harbour(ferry)
    operation = OPERATIONS[name](harbour)
    before = harbour.look()

    for number in count():
        try:
            ferry.run(wrecked(operation, number))
        except LateWreckError:
            check_counts(ferry.store)
            if not ferry.store.capabilities.undoes_late:
                # Its transaction is the one request: it had been performed in whole when the answer came.
                assert number == 1
                break
            assert harbour.look() == before
        except WreckError:
            assert harbour.look() == before, f"{name} crashed at request {number} and left something behind"
            check_counts(ferry.store)
        else:
            break

    assert number > 0
    check_counts(ferry.store)


def test_a_crash_between_two_operations_of_one_transaction_leaves_no_half(ferry: Ferry) -> None:
    harbour = Harbour(ferry)
    before = harbour.look()
    operations = [OPERATIONS[name](harbour) for name in ("settle", "claim", "enqueue", "cancel", "kv_delete")]

    for last in range(len(operations)):
        with pytest.raises(WreckError):
            ferry.runner.run_all([*operations[:last], wrecked(operations[last], 0)])

        assert harbour.look() == before


def test_an_interrupt_from_the_keyboard_leaves_no_half(ferry: Ferry) -> None:
    harbour = Harbour(ferry)
    before = harbour.look()

    def body(now: int) -> Requests[None]:
        yield from _cargo(harbour).body(now)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ferry.run(Operation("enqueue", body))

    if ferry.store.capabilities.undoes_late:
        assert harbour.look() == before
    check_counts(ferry.store)
    assert ferry.has(ferry.add())


def test_orders_are_not_lost_by_a_crash_of_the_heartbeat_that_fetches_them(ferry: Ferry) -> None:
    harbour = Harbour(ferry)

    for number in count():
        try:
            answer = ferry.run(wrecked(OPERATIONS["heartbeat"](harbour), number))
        except WreckError:
            # The answer was lost, perhaps: so the worker cannot say that it heard them.
            continue
        break

    assert [(order.kind, order.job) for order in answer.orders] == [
        ("cancel", harbour.held[7].id),
        ("pause", None),
    ]


def test_a_lock_is_not_taken_by_a_transaction_that_crashes(ferry: Ferry) -> None:
    taking = ferry.store.lock("leader", "ann", 10_000)

    with pytest.raises(WreckError):
        ferry.runner.run_all([taking, wrecked(taking, 0)])

    assert ferry.run(ferry.store.lock("leader", "bob", 10_000)) is not None


def test_a_lock_is_not_given_back_by_a_transaction_that_crashes(ferry: Ferry) -> None:
    ferry.run(ferry.store.lock("leader", "ann", 10_000))
    giving_back = ferry.store.unlock("leader", "ann")

    with pytest.raises(WreckError):
        ferry.runner.run_all([giving_back, wrecked(giving_back, 0)])

    assert ferry.run(ferry.store.lock("leader", "bob", 10_000)) is None
