"""Workers: the register, orders, leaving and being rescued from."""

from __future__ import annotations

from typing import Any, Literal, cast

import pytest

from ferryman.errors import WorkerGone
from ferryman.job import OutcomeKind, State, WorkerId
from ferryman.store.records import Held, Order, Rescued, WorkerRecord, WorkerStatus

from .driver import LEASE, W1, W2, W3, Ferry, worker_info


def _record(ferry: Ferry, worker: WorkerId = W1) -> WorkerRecord:
    (record,) = [r for r in ferry.run(ferry.store.workers()) if r.info.id == worker]
    return record


def test_a_worker_on_the_register_is_told_as_it_described_itself(ferry: Ferry) -> None:
    info = worker_info(
        W2, ["a", "b"], tasks=("x", "y"), concurrency=7, bell="/run/bell", version="1.2", pid_birth=2**40
    )

    ferry.run(ferry.store.register(info, 5_000))

    now = ferry.clock.now()
    assert _record(ferry, W2) == WorkerRecord(
        info=info, status=WorkerStatus(), registered_at=now, seen_at=now, lease_until=now + 5_000
    )


def test_a_worker_may_say_anew_what_it_is_and_keeps_its_jobs_and_orders(ferry: Ferry) -> None:
    ferry.add()
    claim = ferry.take()
    registered = ferry.clock.now()
    ferry.run(ferry.store.heartbeat(W1, WorkerStatus(running=1), LEASE))
    ferry.run(ferry.store.order([W1], Order("pause")))
    ferry.clock.advance(1)
    info = worker_info(W1, tasks=("work", "new"))

    ferry.run(ferry.store.register(info, 5_000))

    record, now = _record(ferry), ferry.clock.now()
    assert (record.info, record.status, record.registered_at) == (info, WorkerStatus(running=1), registered)
    assert (record.seen_at, record.lease_until, record.gone) == (now, now + 5_000, None)
    assert ferry.run(ferry.store.holding(W1)) == [Held(claim.id, claim.lease)]
    assert ferry.heartbeat() == [Order("pause")]


def test_a_worker_that_is_gone_stays_so_whatever_it_says(ferry: Ferry) -> None:
    ferry.run(ferry.store.rescue([W1]))

    ferry.run(ferry.store.register(worker_info(W1), 5_000))

    assert _record(ferry).gone == "dead"
    assert ferry.run(ferry.store.workers(alive=True)) == []
    with pytest.raises(WorkerGone):
        ferry.heartbeat()


def test_workers_are_told_oldest_first(ferry: Ferry) -> None:
    ferry.clock.advance(1)
    ferry.register(W3)
    ferry.clock.advance(1)
    ferry.register(W2)

    assert [record.info.id for record in ferry.run(ferry.store.workers())] == [W1, W3, W2]


def test_a_heartbeat_is_kept_with_the_worker(ferry: Ferry) -> None:
    registered = ferry.clock.now()
    ferry.clock.advance(5)
    status = WorkerStatus(state="draining", running=2, done=30, failed=4)

    ferry.run(ferry.store.heartbeat(W1, status, 20_000))

    record = _record(ferry)
    assert record.status == status
    assert (record.registered_at, record.seen_at) == (registered, ferry.clock.now())
    assert record.lease_until == ferry.clock.now() + 20_000
    assert record.gone is None


def test_an_order_is_given_once_and_in_order(ferry: Ferry) -> None:
    ferry.register(W2)
    orders = [Order("pause"), Order("resume"), Order("drain", reason="upgrade"), Order("stop")]

    counts = [ferry.run(ferry.store.order([W1], order)) for order in orders]

    assert counts == [1, 1, 1, 1]
    assert ferry.heartbeat(W2) == []
    assert ferry.heartbeat(W1) == orders
    assert ferry.heartbeat(W1) == []


def test_an_order_whose_answer_was_lost_is_given_again(ferry: Ferry) -> None:
    ferry.run(ferry.store.order([W1], Order("pause")))
    ferry.run(ferry.store.heartbeat(W1, WorkerStatus(), LEASE))
    ferry.run(ferry.store.order([W1], Order("resume")))

    again = ferry.run(ferry.store.heartbeat(W1, WorkerStatus(), LEASE))
    ferry.run(ferry.store.order([W1], Order("pause")))
    after = ferry.run(ferry.store.heartbeat(W1, WorkerStatus(), LEASE, heard=again.last))
    at_last = ferry.run(ferry.store.heartbeat(W1, WorkerStatus(), LEASE, heard=after.last))

    assert [order.kind for order in again.orders] == ["pause", "resume"]
    assert [order.kind for order in after.orders] == ["pause"]
    assert at_last.orders == []
    assert at_last.last == after.last > again.last


def test_what_a_worker_holds_can_be_asked(ferry: Ferry) -> None:
    ferry.register(W2)
    ferry.add_many(4)
    mine, others = ferry.claim(3), ferry.claim(1, worker=W2)
    ferry.succeed(mine[1])

    held = ferry.run(ferry.store.holding(W1))

    assert held == [Held(mine[0].id, mine[0].lease), Held(mine[2].id, mine[2].lease)]
    assert [each.id for each in ferry.run(ferry.store.holding(W2))] == [others[0].id]
    assert ferry.run(ferry.store.holding(W3)) == []


def test_orders_are_left_for_workers_that_are_alive(ferry: Ferry) -> None:
    ferry.register(W2)
    ferry.register(W3)
    ferry.run(ferry.store.leave(W3))

    count = ferry.run(ferry.store.order([W1, W2, W3, WorkerId("stranger")], Order("drain")))

    assert count == 2
    assert ferry.heartbeat(W1) == ferry.heartbeat(W2) == [Order("drain")]


def test_a_look_shows_whether_there_is_work_or_an_order(ferry: Ferry) -> None:
    idle = ferry.run(ferry.store.peek(W1))
    ferry.add(delay=1_000)
    later = ferry.run(ferry.store.peek(W1))
    ferry.clock.advance(1)
    due = ferry.run(ferry.store.peek(W1))
    ferry.run(ferry.store.order([W1], Order("pause")))
    ordered = ferry.run(ferry.store.peek(W1))

    assert (idle.work, idle.next_due, idle.orders) == (False, None, False)
    assert (later.work, later.next_due, later.now) == (False, ferry.clock.now(), ferry.clock.now() - 1_000)
    assert (due.work, due.orders) == (True, False)
    assert ordered.orders is True


def test_a_look_does_not_write(ferry: Ferry) -> None:
    job = ferry.add(delay=1_000)
    ferry.run(ferry.store.order([W1], Order("pause")))
    ferry.clock.advance(1)

    looks = [ferry.run(ferry.store.peek(W1)) for _ in range(3)]

    assert looks[0] == looks[1] == looks[2]
    assert ferry.state(job) is State.SCHEDULED
    assert ferry.heartbeat() == [Order("pause")]


def test_ready_jobs_of_other_queues_are_no_work_for_a_worker(ferry: Ferry) -> None:
    ferry.register(W2, queues=["mine"])
    ferry.add(queue="theirs")

    before = ferry.run(ferry.store.peek(W2))
    ferry.add(queue="mine")

    assert before.work is False
    assert ferry.run(ferry.store.peek(W2)).work is True


def test_a_worker_that_leaves_is_marked_as_stopped(ferry: Ferry) -> None:
    ferry.run(ferry.store.leave(W1))

    assert _record(ferry).gone == "stopped"


def test_a_worker_that_says_what_is_not_known_here_is_still_seen(ferry: Ferry) -> None:
    newer: dict[str, Any] = {"concurrency": "as many as it takes"}
    ferry.run(ferry.store.register(worker_info(W2, **newer), 5_000))
    ferry.register(W3)
    ferry.run(ferry.store.heartbeat(W3, WorkerStatus(state=cast("Any", "resting")), 6_000))

    records = ferry.run(ferry.store.workers(alive=True))

    assert [record.lease_until - ferry.clock.now() for record in records] == [LEASE, 5_000, 6_000]
    assert [record.info.id for record in records] == [W1, W2, W3]


def test_those_that_are_alive_can_be_asked_for_alone(ferry: Ferry) -> None:
    for number in range(5):
        ferry.clock.advance(1)
        ferry.register(WorkerId(f"worker {5 - number}"))
    ferry.run(ferry.store.leave(WorkerId("worker 4")))
    ferry.run(ferry.store.rescue([WorkerId("worker 2")]))

    alive = ferry.run(ferry.store.workers(alive=True))

    assert [record.info.id for record in alive] == [W1, "worker 5", "worker 3", "worker 1"]
    assert alive == [record for record in ferry.run(ferry.store.workers()) if record.gone is None]


def test_leaving_takes_nothing_from_other_workers(ferry: Ferry) -> None:
    ferry.register(W2)
    ferry.add_many(2)
    ferry.take(W1)
    held = ferry.take(W2)

    ferry.run(ferry.store.leave(W1))

    assert ferry.state(held.id) is State.RUNNING
    assert ferry.settle(held, OutcomeKind.SUCCEEDED, worker=W2)


def test_a_rescue_takes_back_all_that_a_dead_worker_held(ferry: Ferry) -> None:
    ids = ferry.add_many(3, max_attempts=2)
    last = ferry.add(max_attempts=1)
    ferry.claim(4)
    ferry.register(W2, lease=10 * LEASE)

    ferry.clock.advance(LEASE / 1000 + 1)
    rescued = ferry.run(ferry.store.rescue())

    assert rescued == [Rescued(W1, again=3, dead=1)]
    assert ferry.states([*ids, last]) == [State.READY] * 3 + [State.DEAD]
    assert (_record(ferry, W1).gone, _record(ferry, W2).gone) == ("dead", None)
    assert [claim.id for claim in ferry.claim(5, worker=W2)] == ids
    (attempt,) = ferry.history(ids[0]).attempts
    assert (attempt.kind, attempt.worker) == (OutcomeKind.CRASHED, W1)
    assert attempt.error is not None
    assert W1 in attempt.error.message


def test_a_worker_named_as_dead_is_rescued_from_before_its_lease_has_ended(ferry: Ferry) -> None:
    job = ferry.add(max_attempts=2)
    ferry.take()
    ferry.register(W2)

    rescued = ferry.run(ferry.store.rescue([W1]))

    assert rescued == [Rescued(W1, again=1, dead=0)]
    assert ferry.take(W2).id == job


def test_those_who_are_only_late_can_be_left_alone(ferry: Ferry) -> None:
    late, dead = ferry.register(W2), ferry.register(W3)
    ferry.clock.advance(2 * LEASE / 1000)

    rescued = ferry.run(ferry.store.rescue([dead], late=False))

    assert [each.worker for each in rescued] == [dead]
    assert _record(ferry, late).gone is None
    assert {each.worker for each in ferry.run(ferry.store.rescue())} == {W1, late}


def test_nothing_happens_to_workers_that_are_gone_already(ferry: Ferry) -> None:
    ferry.add(max_attempts=5)
    ferry.take()
    ferry.register(W2)
    ferry.run(ferry.store.leave(W2))
    ferry.run(ferry.store.rescue([W1]))
    before = ferry.jobs()

    again = ferry.run(ferry.store.rescue([W1, W2, WorkerId("stranger")]))

    gone: list[Literal["stopped", "dead"] | None] = [_record(ferry, W1).gone, _record(ferry, W2).gone]
    assert again == []
    assert ferry.jobs() == before
    assert gone == ["dead", "stopped"]


def test_a_rescue_with_nobody_to_rescue_from_does_nothing(ferry: Ferry) -> None:
    ferry.add()
    ferry.take()

    assert ferry.run(ferry.store.rescue()) == []


def test_what_a_dead_worker_held_goes_back_to_its_place(ferry: Ferry) -> None:
    ids = ferry.add_many(4, max_attempts=3)
    ferry.claim(2)
    ferry.register(W2)

    ferry.run(ferry.store.rescue([W1]))

    assert [claim.id for claim in ferry.claim(4, worker=W2)] == ids
